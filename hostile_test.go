package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// TestLongInterim: an interim response whose header is longer than net/http's
// buffer does not say close; the final one behind it does.
func TestLongInterim(t *testing.T) {
	t.Parallel()
	g := newGate()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.entered <- ""
		<-g.open
		w.Header().Set("Link", "</"+strings.Repeat("x", 9000)+">; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.WriteString(w, "final")
	})
	s, c := servePlainOrTLS(t, &graceful.Server{Server: &http.Server{Handler: h}, Timeout: 10 * time.Second}, false)
	c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-g.entered
	s.stop()
	waitPhase(s, graceful.PhaseDraining)
	close(g.open)
	b, err := io.ReadAll(c.br)
	if err != nil {
		t.Error(err)
	}
	interim, final, ok := strings.Cut(string(b), "\r\n\r\n")
	if !ok || strings.Contains(interim, "Connection: close") {
		t.Errorf("the interim response says close")
	}
	if !strings.Contains(final, "\r\nConnection: close\r\n") {
		t.Errorf("the final response does not say close: %q", final)
	}
	s.end()
}

// TestOtherALPN: a connection of a protocol that the program has registered in
// TLSNextProto is in use until that protocol has done with it.
func TestOtherALPN(t *testing.T) {
	t.Parallel()
	hs := &http.Server{TLSConfig: serverTLS()}
	hs.TLSConfig.NextProtos = []string{"line"}
	asked := make(chan struct{})
	hs.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"line": func(_ *http.Server, nc *tls.Conn, _ http.Handler) {
			defer nc.Close()
			br := bufio.NewReader(nc)
			if _, err := br.ReadString('\n'); err != nil {
				t.Error(err)
			}
			close(asked)
			if _, err := br.ReadString('\n'); err != nil { // it takes a while to come
				t.Error(err)
			}
			io.WriteString(nc, "answer\n")
		},
	}
	l := listenTCP(t)
	srv := &graceful.Server{Server: hs, IdleGrace: 20 * ms, Timeout: 10 * time.Second}
	s := serveWith(t, srv, func() error { return srv.ServeTLS(l, "", "") })
	c := dialTLS(t, l.Addr(), "line")
	c.send("one\n")
	<-asked
	s.stop()
	waitPhase(s, graceful.PhaseDraining)
	time.Sleep(200 * ms)
	c.send("two\n")
	if line, err := c.br.ReadString('\n'); line != "answer\n" {
		t.Errorf("got %q, %v", line, err)
	}
	s.end()
}

// A stuckConn's Close blocks.
type stuckConn struct {
	net.Conn
	free chan struct{}
}

func (c *stuckConn) Close() error { <-c.free; return c.Conn.Close() }

type stuckListener struct {
	net.Listener
	free chan struct{}
}

func (l *stuckListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stuckConn{nc, l.free}, nil
}
func (l *stuckListener) Unwrap() net.Listener { return l.Listener }

// TestKeepAlivesDisabledAndStuck: SetKeepAlivesEnabled closes idle connections,
// which may block; that holds up neither the hooks nor the kill.
func TestKeepAlivesDisabledAndStuck(t *testing.T) {
	t.Parallel()
	l := &stuckListener{listenTCP(t), make(chan struct{})}
	srv := &graceful.Server{Server: &http.Server{Handler: text("x")}, Timeout: 300 * ms}
	s := serve(t, srv, l)
	c := dialClient(t, waitAddr(s))
	c.get("/", "x")
	waitStats(s, func(st graceful.Stats) int { return st.Idle }, 1)
	done := make(chan struct{})
	go func() { srv.SetKeepAlivesEnabled(false); close(done) }()
	time.Sleep(50 * ms)
	s.stop()
	select {
	case <-s.StopChan():
	case <-time.After(3 * time.Second):
		t.Errorf("still %v, 3 s after a stop with a timeout of 300 ms", s.Phase())
	}
	close(l.free)
	<-done
	s.end()
}

// A lockedListener's methods share a lock.
type lockedListener struct {
	*net.TCPListener
	mu   sync.Mutex
	free chan struct{}
}

func (l *lockedListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.TCPListener.Accept()
}
func (l *lockedListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.TCPListener.SetDeadline(t)
}
func (l *lockedListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.TCPListener.Close()
}

type lockedUnwrap struct{ *lockedListener }

func (l lockedUnwrap) Unwrap() net.Listener { return l.TCPListener }

// TestLockedListener: a listener whose methods wait for its Accept does not keep
// the timeout from killing.
func TestLockedListener(t *testing.T) {
	t.Parallel()
	for _, unwraps := range []bool{false, true} {
		tl, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ll := &lockedListener{TCPListener: tl.(*net.TCPListener)}
		var l net.Listener = ll
		if unwraps {
			l = lockedUnwrap{ll}
		}
		g := newGate()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: g}, Timeout: 300 * ms}, l)
		c := dialClient(t, waitAddr(s))
		c.ask("/")
		<-g.entered
		s.stop()
		select {
		case <-s.StopChan():
		case <-time.After(3 * time.Second):
			t.Errorf("unwraps %v: still %v, 3 s after a stop with a timeout of 300 ms", unwraps, s.Phase())
		}
		close(g.open)
		tl.Close()
		<-s.returned
	}
}

// TestLongMethod: what a client says is not repeated at any length.
func TestLongMethod(t *testing.T) {
	t.Parallel()
	g := newGate()
	s, c := servePlainOrTLS(t, &graceful.Server{Server: &http.Server{Handler: g}, Timeout: 10 * time.Second}, false)
	c.send(strings.Repeat("M", 500_000) + " /" + strings.Repeat("t", 100_000) + " HTTP/1.1\r\nHost: h\r\n\r\n")
	<-g.entered
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := len(s.Report().String()); n > 2000 {
		t.Errorf("the report has %d bytes", n)
	}
	close(g.open)
	<-s.returned
}

// TestRudeHTTP2: a client that goes on opening streams, though it has
// acknowledged that it may not, does not hold the shutdown for ever.
func TestRudeHTTP2(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(100 * ms) })
	srv, url := serveEither(t, &http.Server{Handler: h}, false, true)
	nc := speakHTTP2(t, strings.SplitN(url, "//", 2)[1], false)
	go func() {
		for id := uint16(1); ; id += 2 {
			// :method GET, :scheme http, :path /, :authority h
			_, err := nc.Write([]byte{0, 0, 6, 1, 5, 0, 0, byte(id >> 8), byte(id), 0x82, 0x86, 0x84, 0x41, 1, 'h'})
			if err != nil {
				return
			}
			time.Sleep(50 * ms)
		}
	}()
	time.Sleep(100 * ms)
	began := time.Now()
	srv.Stop(0)
	go func() {
		for {
			kind, payload, err := readHTTP2Frame(nc)
			if err != nil {
				return
			}
			if kind == 6 {
				nc.Write(append([]byte{0, 0, 8, 6, 1, 0, 0, 0, 0}, payload...))
			}
		}
	}()
	<-srv.StopChan()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("stopped after %v", d)
	}
}

// TestHalfBehindTheFirst: half a request that came with the first one of a
// connection counts as receiving, where HTTP/2 may be spoken in the clear, too.
func TestHalfBehindTheFirst(t *testing.T) {
	t.Parallel()
	for _, half := range []string{"GET", "GET /sec", "GET /second HTTP/1.1\r\nHo"} {
		hs := &http.Server{Handler: text("x"), Protocols: new(http.Protocols)}
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
		s := serve(t, &graceful.Server{Server: hs, IdleGrace: 50 * ms}, listenTCP(t))
		c := dialClient(t, waitAddr(s))
		c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n" + half)
		c.expect("x")
		s.stop()
		waitPhase(s, graceful.PhaseDraining)
		time.Sleep(300 * ms)
		c.send("GET /second HTTP/1.1\r\nHost: h\r\n\r\n"[len(half):])
		c.expect("x")
		s.end()
	}
}
