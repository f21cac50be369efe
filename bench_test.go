package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// All benchmarks have net/http beside ours in the same run; docs/performance.md
// says how to compare them:
//
//	go test -run '^$' -bench . -count 10 | benchstat -col /server -

// BenchmarkKeepAlive is a request on a connection that is kept, with several
// clients at it at once. The clients allocate nothing, so that the allocations
// are the server's. In memory there is less noise, since no kernel is in it.
func BenchmarkKeepAlive(b *testing.B) {
	overEach(b, func(b *testing.B, network benchNetwork, serve serveFunc) {
		srv := serve(b, network.listen(b), hello, nil)
		defer srv.close()
		b.ReportAllocs()
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			c := newBenchClient(b, srv.dial(b))
			defer c.close()
			for pb.Next() {
				c.get(b)
			}
		})
	})
}

// BenchmarkNewConn is a connection with one request.
func BenchmarkNewConn(b *testing.B) {
	overEach(b, func(b *testing.B, network benchNetwork, serve serveFunc) {
		srv := serve(b, network.listen(b), hello, nil)
		defer srv.close()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				c := newBenchClient(b, srv.dial(b))
				c.get(b)
				c.close()
			}
		})
	})
}

// BenchmarkTLS is BenchmarkKeepAlive over TLS.
func BenchmarkTLS(b *testing.B) {
	overEach(b, func(b *testing.B, network benchNetwork, serve serveFunc) {
		srv := serve(b, network.listen(b), hello, traffic.ServerTLS())
		defer srv.close()
		config := benchClientTLS()
		b.ReportAllocs()
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			c := newBenchClient(b, tls.Client(srv.dial(b), config))
			defer c.close()
			for pb.Next() {
				c.get(b)
			}
		})
	})
}

// BenchmarkHTTP2 is a request over HTTP/2, all on one connection. Its
// allocations are the client's as well.
func BenchmarkHTTP2(b *testing.B) {
	overEach(b, func(b *testing.B, network benchNetwork, serve serveFunc) {
		srv := serve(b, network.listen(b), hello, traffic.ServerTLS())
		defer srv.close()
		transport := &http.Transport{
			DialContext:     func(context.Context, string, string) (net.Conn, error) { return srv.dial(b), nil },
			TLSClientConfig: benchClientTLS(),
			Protocols:       new(http.Protocols),
		}
		transport.Protocols.SetHTTP2(true)
		defer transport.CloseIdleConnections()
		b.ReportAllocs()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				req, _ := http.NewRequest("GET", "https://127.0.0.1/", nil)
				resp, err := transport.RoundTrip(req)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	})
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "hello, world\n")
})

func benchClientTLS() *tls.Config {
	config := traffic.ClientTLS().Clone()
	config.ServerName = "127.0.0.1"
	return config
}

// overEach runs f for each network and each server, named so that benchstat
// lays the servers side by side.
func overEach(b *testing.B, f func(*testing.B, benchNetwork, serveFunc)) {
	for _, network := range benchNetworks {
		b.Run("net="+network.name, func(b *testing.B) {
			eachServer(b, func(b *testing.B, serve serveFunc) { f(b, network, serve) })
		})
	}
}

func eachServer(b *testing.B, f func(*testing.B, serveFunc)) {
	b.Run("server=nethttp", func(b *testing.B) { f(b, serveNetHTTP) })
	b.Run("server=graceful", func(b *testing.B) { f(b, serveGraceful) })
}

// A serveFunc serves h on l, over TLS if config is not nil.
type serveFunc func(b *testing.B, l net.Listener, h http.Handler, config *tls.Config) *benchServer

// A benchServer is net/http's or ours.
type benchServer struct {
	l        net.Listener
	shutdown func(context.Context) error
	abort    func() error
	served   chan error // holds what Serve returned
}

func serveNetHTTP(b *testing.B, l net.Listener, h http.Handler, config *tls.Config) *benchServer {
	hs := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	return serveBench(l, config, hs.Serve, hs.ServeTLS, hs.Shutdown, hs.Close)
}

// serveGraceful has no quiet window: net/http knows of none, and with it the
// window is what would be measured.
func serveGraceful(b *testing.B, l net.Listener, h http.Handler, config *tls.Config) *benchServer {
	srv := &graceful.Server{
		Server:           &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)},
		IdleGrace:        -1,
		NoSignalHandling: true,
	}
	return serveBench(l, config, srv.Serve, srv.ServeTLS, srv.Shutdown, srv.Close)
}

func serveBench(l net.Listener, config *tls.Config, serve func(net.Listener) error,
	serveTLS func(net.Listener, string, string) error, shutdown func(context.Context) error, abort func() error) *benchServer {
	s := &benchServer{l: l, shutdown: shutdown, abort: abort, served: make(chan error, 1)}
	go func() {
		if config != nil {
			s.served <- serveTLS(l, "", "")
		} else {
			s.served <- serve(l)
		}
	}()
	return s
}

// stop shuts the server down and returns when Serve has, too.
func (s *benchServer) stop(b *testing.B) {
	if err := s.shutdown(context.Background()); err != nil {
		b.Error(err)
	}
	s.end(b)
}

func (s *benchServer) close() {
	s.abort()
	<-s.served
}

func (s *benchServer) end(b *testing.B) {
	if err := <-s.served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		b.Error(err)
	}
}

func (s *benchServer) dial(b *testing.B) net.Conn {
	if l, ok := s.l.(*memListener); ok {
		return l.dial()
	}
	nc, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	return nc
}

// A benchClient makes the same request again and again.
type benchClient struct {
	nc     net.Conn
	answer []byte // of the length that each answer has; nil before the first
}

var benchRequest = []byte("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

func newBenchClient(b *testing.B, nc net.Conn) *benchClient { return &benchClient{nc: nc} }

// get makes a request. Every answer is as long as the first: the date in it is.
func (c *benchClient) get(b *testing.B) {
	if _, err := c.nc.Write(benchRequest); err != nil {
		b.Fatal(err)
	}
	if c.answer == nil {
		c.first(b)
		return
	}
	if _, err := io.ReadFull(c.nc, c.answer); err != nil {
		b.Fatal(err)
	}
}

var benchAnswerLen atomic.Int64 // 0 before it is known

func (c *benchClient) first(b *testing.B) {
	if n := benchAnswerLen.Load(); n > 0 {
		c.answer = make([]byte, n)
		if _, err := io.ReadFull(c.nc, c.answer); err != nil {
			b.Fatal(err)
		}
		return
	}
	n := new(countReader)
	n.r = c.nc
	br := bufio.NewReaderSize(n, 4096)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		b.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello, world\n" || br.Buffered() > 0 {
		b.Fatalf("%q, %v", body, err)
	}
	benchAnswerLen.Store(n.n)
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
func (c *benchClient) close() {
	if tc, ok := c.nc.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.nc.Close()
}

// A benchNetwork is what connections are made of.
type benchNetwork struct {
	name   string
	listen func(testing.TB) net.Listener
}

var benchNetworks = []benchNetwork{
	{"tcp", func(tb testing.TB) net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		return l
	}},
	{"mem", func(testing.TB) net.Listener { return newMemListener() }},
}

// A memListener accepts one end of a net.Pipe for each dial.
type memListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr{} }

// dial returns the client's end once the other was accepted.
func (l *memListener) dial() net.Conn {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
	case <-l.closed:
		client.Close()
	}
	return client
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "memory" }
