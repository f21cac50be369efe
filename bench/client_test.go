package bench

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A client makes the same request again and again.
type client struct {
	nc     net.Conn
	answer []byte // of the length that each answer has; nil before the first
}

var request = []byte("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

func newClient(nc net.Conn) *client { return &client{nc: nc} }

// get makes a request. Every answer is as long as the first: the date in it is.
func (c *client) get(tb testing.TB) {
	if _, err := c.nc.Write(request); err != nil {
		tb.Fatal(err)
	}
	if c.answer == nil {
		c.first(tb)
		return
	}
	if _, err := io.ReadFull(c.nc, c.answer); err != nil {
		tb.Fatal(err)
	}
}

var answerLen atomic.Int64 // 0 before it is known

func (c *client) first(tb testing.TB) {
	if n := answerLen.Load(); n > 0 {
		c.answer = make([]byte, n)
		if _, err := io.ReadFull(c.nc, c.answer); err != nil {
			tb.Fatal(err)
		}
		return
	}
	n := &countReader{r: c.nc}
	br := bufio.NewReaderSize(n, 4096)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello, world\n" || br.Buffered() > 0 {
		tb.Fatalf("%q, %v", body, err)
	}
	answerLen.Store(n.n)
	c.answer = make([]byte, n.n)
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// close closes without TIME_WAIT, which would use the ports up.
func (c *client) close() {
	if tc, ok := c.nc.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.nc.Close()
}

func clientTLS() *tls.Config {
	config := traffic.ClientTLS().Clone()
	config.ServerName = "127.0.0.1"
	return config
}

func (s *server) dial(tb testing.TB) net.Conn {
	if l, ok := s.l.(*memListener); ok {
		return l.dial()
	}
	nc, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	return nc
}

// idleConns opens n connections and makes a request on each.
func idleConns(tb testing.TB, srv *server, n int) []*client {
	clients := make([]*client, n)
	answer := make([]byte, 4096)
	for i := range clients {
		c := newClient(srv.dial(tb))
		if _, err := c.nc.Write(request); err != nil {
			tb.Fatal(err)
		}
		if _, err := c.nc.Read(answer); err != nil {
			tb.Fatal(err)
		}
		clients[i] = c
	}
	return clients
}
