package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A served is a Server that serves, and what it says.
type served struct {
	*graceful.Server
	t     *testing.T
	lines logLines

	// stopAt is when stopped was called.
	stopAt time.Time

	// Of Serve. Written before returned is closed.
	err      error
	at       time.Time
	returned chan struct{}
}

// serve serves l with srv in the background, without signals.
func serve(t *testing.T, srv *graceful.Server, l net.Listener) *served {
	return serveWith(t, srv, func() error { return srv.Serve(l) })
}

// serveWith is serve for another way to serve.
func serveWith(t *testing.T, srv *graceful.Server, f func() error) *served {
	s := &served{Server: srv, t: t, returned: make(chan struct{})}
	if !srv.NoSignalHandling { // it may serve already
		srv.NoSignalHandling = true
	}
	if srv.LogFunc == nil && srv.Logger == nil {
		srv.LogFunc = s.lines.logf
	}
	s.lines.began = time.Now()
	go func() {
		s.err = f()
		s.at = time.Now()
		close(s.returned)
	}()
	return s
}

// stop begins a shutdown with the server's Timeout.
func (s *served) stop() {
	s.stopAt = time.Now()
	s.Stop(s.Timeout)
}

// end waits until Serve has returned and StopChan is closed, and returns how
// long after stop that was.
func (s *served) end() time.Duration {
	s.t.Helper()
	<-s.returned
	<-s.StopChan()
	if s.err != nil {
		s.t.Errorf("Serve: %v", s.err)
	}
	return s.at.Sub(s.stopAt)
}

// logLines collects what a server logs.
type logLines struct {
	began time.Time
	mu    sync.Mutex // guards lines
	lines []string   // each with the time since began
}

func (l *logLines) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%v ", time.Since(l.began))+fmt.Sprintf(format, args...))
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// has reports whether a line contains text.
func (l *logLines) has(text string) bool {
	return strings.Contains(strings.Join(l.all(), "\n"), text)
}

// A client is one HTTP/1 connection.
type client struct {
	net.Conn
	t  *testing.T
	br *bufio.Reader
}

func newClient(t *testing.T, nc net.Conn) *client {
	return &client{nc, t, bufio.NewReader(nc)}
}

// dialClient connects to a TCP address. The connection does not outlast the
// test, and nothing on it takes longer than 20 s.
func dialClient(t *testing.T, addr net.Addr) *client {
	t.Helper()
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return newClient(t, nc)
}

// send writes text.
func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Errorf("send: %v", err)
	}
}

// ask sends a GET request for path.
func (c *client) ask(path string) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n")
}

// reply is what came back.
type reply struct {
	status int
	body   string
	close  bool // the header says so
	err    error
}

// answer reads one response.
func (c *client) answer() reply {
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, string(body), resp.Close, err}
}

// get sends a request for path and expects the body that it is answered with.
func (c *client) get(path, want string) reply {
	c.t.Helper()
	c.ask(path)
	return c.expect(want)
}

// expect expects a response with status 200 and the body want.
func (c *client) expect(want string) reply {
	c.t.Helper()
	got := c.answer()
	if got.err != nil || got.status != 200 || got.body != want {
		c.t.Errorf("got %+v, want %q", got, want)
	}
	return got
}

// ended reads to the end of the connection and returns how it ended, nil for
// EOF. More bytes are an error.
func (c *client) ended() error {
	b, err := io.ReadAll(c.br)
	if len(b) > 0 {
		return fmt.Errorf("more bytes: %q (%v)", b, err)
	}
	return err
}

// listenTCP listens on a port of 127.0.0.1, on a socket of the server's own.
func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serverTLS returns a configuration with a certificate for 127.0.0.1.
func serverTLS() *tls.Config { return traffic.ServerTLS() }

// text answers with s.
func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}

// A gate holds handlers up.
type gate struct {
	entered chan string   // the path, for each handler that came
	open    chan struct{} // close it to let all go
}

func newGate() *gate { return &gate{make(chan string, 1000), make(chan struct{})} }

// ServeHTTP answers with the path once the gate is open.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.entered <- r.URL.Path
	<-g.open
	io.WriteString(w, r.URL.Path)
}

// bg is a context for what the test itself bounds.
var bg = context.Background()

// dialTLS is dialClient over TLS, with the handshake made.
func dialTLS(t *testing.T, addr net.Addr, proto string) *client {
	t.Helper()
	c := dialClient(t, addr)
	config := traffic.ClientTLS()
	config.ServerName, config.NextProtos = "127.0.0.1", []string{proto}
	nc := tls.Client(c.Conn, config)
	if err := nc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return newClient(t, nc)
}

// servePlainOrTLS serves a new socket with srv, and returns an HTTP/1 connection
// to it.
func servePlainOrTLS(t *testing.T, srv *graceful.Server, secure bool) (*served, *client) {
	t.Helper()
	if secure {
		s := serveTLS(t, srv, listenTCP(t), false)
		return s, dialTLS(t, waitAddr(s), "http/1.1")
	}
	s := serve(t, srv, listenTCP(t))
	return s, dialClient(t, waitAddr(s))
}

// h2Client returns a transport that trusts serverTLS's certificate and speaks
// nothing but HTTP/2, or nothing but HTTP/1.
func h2Client(h2 bool) *http.Transport {
	tr := &http.Transport{TLSClientConfig: traffic.ClientTLS(), Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	return tr
}

// waitPhase waits until s has come to p.
func waitPhase(s *served, p graceful.Phase) {
	s.t.Helper()
	for began := time.Now(); s.Phase() < p; time.Sleep(ms) {
		if time.Since(began) > 10*time.Second {
			s.t.Fatalf("%v after 10 s, not yet %v", s.Phase(), p)
		}
	}
}

// waitRefused waits until nobody can connect to addr.
func waitRefused(t *testing.T, addr net.Addr) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * ms) {
		nc, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			return
		}
		nc.Close()
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%v still accepts", addr)
		}
	}
}
