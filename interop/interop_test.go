// Package interop tests graceful with servers and clients that it does not
// import: each is stopped under load, and what is lost is counted.
package interop

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// A server is one that a load is on.
type server struct {
	addr string
	stop func() // stops it, and fails the test if anything had to be cut
}

// newGroup returns a group as these tests use it. Its Timeout is what a test
// that hangs takes.
func newGroup() *graceful.Group {
	return &graceful.Group{NoSignalHandling: true, Budget: 30 * time.Second}
}

// grace is the IdleGrace of all servers.
const grace = 50 * time.Millisecond

// start starts the group and returns it as a server.
func start(t *testing.T, addr string, g *graceful.Group) server {
	t.Helper()
	if _, err := g.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return server{addr, func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Errorf("%v\n%v", err, g.Report())
		}
	}}
}

// A load is clients that exchange something with a server again and again,
// while one server after the other is stopped. As behind a load balancer that
// hears of everything at once, new connections go to the next server before the
// one in use is stopped.
type load struct {
	t    *testing.T
	addr atomic.Value // a string
	over atomic.Bool  // read with ended

	mu    sync.Mutex
	moved sync.Cond // done has grown, or a client has returned
	done  int       // exchanges that were complete
	lost  []error
	left  int // clients that have not returned
}

const (
	stops   = 8
	clients = 8
	// tooMany losses end the clients.
	tooMany = 100
	// between two stops there are so many exchanges for each client.
	between = 20
)

// play runs clients while servers are stopped, and returns when all have
// returned. Each calls exchange for each exchange, and returns when ended
// reports true between two of them.
func play(t *testing.T, next func() server, client func(l *load, n int)) *load {
	t.Helper()
	l := &load{t: t, left: clients}
	l.moved.L = &l.mu
	now := next()
	l.addr.Store(now.addr)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.over.Store(true)
	for n := range clients {
		wg.Go(func() {
			defer func() {
				l.mu.Lock()
				l.left--
				l.moved.Broadcast()
				l.mu.Unlock()
			}()
			client(l, n)
		})
	}
	for range stops {
		l.await(clients * between)
		last := now
		now = next()
		l.addr.Store(now.addr)
		last.stop()
	}
	l.await(clients * between)
	l.over.Store(true)
	wg.Wait()
	now.stop()
	t.Logf("%d exchanges over %d stops, %d lost", l.done, stops, len(l.lost))
	return l
}

// await waits for n more exchanges.
func (l *load) await(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n += l.done; l.done < n && l.left > 0 && !l.ended(); {
		l.moved.Wait()
	}
}

// ended reports whether the clients are to return.
func (l *load) ended() bool { return l.over.Load() }

// exchange counts an exchange: a complete one if err is nil.
func (l *load) exchange(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.moved.Broadcast()
	if err == nil {
		l.done++
		return
	}
	if l.lost = append(l.lost, err); len(l.lost) == tooMany {
		l.over.Store(true)
	}
}

// wantNoLoss fails the test if an exchange was lost.
func (l *load) wantNoLoss() {
	l.t.Helper()
	for i, err := range l.lost {
		if i == 5 {
			l.t.Errorf("and %d more", len(l.lost)-i)
			return
		}
		l.t.Errorf("lost: %v", err)
	}
}

// dial connects to the current server. If that one was stopped meanwhile and
// refuses, dial tries the next, as a load balancer does.
func (l *load) dial() (net.Conn, error) {
	for {
		addr := l.addr.Load()
		nc, err := net.Dial("tcp", addr.(string))
		if errors.Is(err, syscall.ECONNREFUSED) && addr != l.addr.Load() {
			continue
		}
		return nc, err
	}
}

// dialContext is dial for clients that bring an address of their own.
func (l *load) dialContext(context.Context, string, string) (net.Conn, error) { return l.dial() }

// listen opens a socket.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// message returns what client n says the i-th time.
func message(n, i int) string { return fmt.Sprintf("message %d of client %d", i, n) }

// http1Client asks for one thing after the other on a connection until a
// response says that it was the last. It does not ask again, as http.Transport
// would behind our back. open, if not nil, is called with each new connection.
// want is the body of every response, or "" for any.
func http1Client(l *load, n int, open func(net.Conn) error, want string) {
	for i := 0; !l.ended(); {
		nc, err := l.dial()
		if err != nil {
			l.exchange(err)
			return
		}
		if open != nil {
			err = open(nc)
		}
		r := bufio.NewReader(nc)
		for last := false; err == nil && !last && !l.ended(); i++ {
			last, err = get(nc, r, i, want)
			l.exchange(err)
		}
		nc.Close()
	}
}

// get asks and reports whether the response was the connection's last. Every
// second request has a body.
func get(nc net.Conn, r *bufio.Reader, i int, want string) (last bool, err error) {
	method, body := "GET", ""
	if i%2 == 1 {
		method, body = "POST", "with a body"
	}
	if _, err := fmt.Fprintf(nc, "%s / HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body); err != nil {
		return true, err
	}
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || want != "" && string(got) != want) {
		err = fmt.Errorf("%s %q", resp.Status, got)
	}
	return resp.Close, err
}

// expect reads a response and compares it.
func expect(resp *http.Response, want string) error {
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || string(got) != want) {
		err = fmt.Errorf("%s %q, want %q", resp.Status, got, want)
	}
	return err
}

// post sends a body and expects it back, followed by suffix.
func post(tr http.RoundTripper, url, body, suffix string) error {
	req, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	return expect(resp, body+suffix)
}

// certificate returns one and a client's configuration that trusts it.
func certificate(t *testing.T) (tls.Certificate, *tls.Config) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	cfg := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.ServerName = "example.com"
	return s.TLS.Certificates[0], cfg
}
