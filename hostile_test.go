package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
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
	time.Sleep(200 * ms) // longer than the quiet window
	c.send("two\n")
	if line, err := c.br.ReadString('\n'); line != "answer\n" {
		t.Errorf("got %q, %v", line, err)
	}
	s.end()
}

// A stuckConn's Close blocks.
type stuckConn struct {
	net.Conn
	stuck, free chan struct{} // stuck takes a value when Close is called
}

func (c *stuckConn) Close() error {
	select {
	case c.stuck <- struct{}{}:
	default:
	}
	<-c.free
	return c.Conn.Close()
}

type stuckListener struct {
	net.Listener
	stuck, free chan struct{}
}

func (l *stuckListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stuckConn{nc, l.stuck, l.free}, nil
}
func (l *stuckListener) Unwrap() net.Listener { return l.Listener }

// TestKeepAlivesDisabledAndStuck: SetKeepAlivesEnabled closes idle connections,
// which may block; that holds up neither the hooks nor the kill.
func TestKeepAlivesDisabledAndStuck(t *testing.T) {
	t.Parallel()
	l := &stuckListener{listenTCP(t), make(chan struct{}, 1), make(chan struct{})}
	srv := &graceful.Server{Server: &http.Server{Handler: text("x")}, Timeout: 300 * ms}
	s := serve(t, srv, l)
	c := dialClient(t, waitAddr(s))
	c.get("/", "x")
	waitStats(s, func(st graceful.Stats) int { return st.Idle }, 1)
	done := make(chan struct{})
	go func() { srv.SetKeepAlivesEnabled(false); close(done) }()
	<-l.stuck
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
	mu sync.Mutex
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
	entered := make(chan struct{}, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case entered <- struct{}{}:
		default:
		}
		time.Sleep(100 * ms)
	})
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
	<-entered
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
		time.Sleep(300 * ms) // longer than the quiet window
		c.send("GET /second HTTP/1.1\r\nHost: h\r\n\r\n"[len(half):])
		c.expect("x")
		s.end()
	}
}

var hostile = flag.Int("hostile", 1500, "how many connections each kind of server gets in TestHostileSlots; 100000 is the long form")

// TestThousandLives: servers that are started, used and stopped in one process
// leave no goroutine, no descriptor and no memory behind, however they end.
func TestThousandLives(t *testing.T) {
	lives := 1000
	if raceDetector {
		lives = 200
	}
	const warm = 100 // what net/http, TLS and signals keep once is there by then
	var before residue
	for i := range lives + warm {
		if i == warm {
			before = measure(t, residue{})
		}
		oneLife(t, i)
	}
	after := measure(t, before)
	t.Logf("%v after %d, %v after %d", before, warm, after, lives+warm)
	if after.goroutines > before.goroutines || after.descriptors > before.descriptors {
		t.Errorf("%d lives left %v, from %v", lives, after, before)
	}
	// A Server alone is more than a KiB; the slack is the runtime's.
	if grown := after.heap - before.heap; grown > int64(lives)*256 {
		t.Errorf("%d lives left %d bytes", lives, grown)
	}
}

// A residue is what a process holds.
type residue struct {
	goroutines  int
	descriptors int   // 0 where they can't be counted
	heap        int64 // bytes
}

// measure returns what the process holds. Goroutines that are about to end have
// some time to do so, until there are no more than want has.
func measure(t *testing.T, want residue) residue {
	http.DefaultClient.CloseIdleConnections()
	var r residue
	limit := 2 * time.Second
	if want == (residue{}) {
		limit = 200 * ms
	}
	graceful.Poll(limit, func() bool {
		r.goroutines = runtime.NumGoroutine()
		if d, err := os.ReadDir("/proc/self/fd"); err == nil {
			r.descriptors = len(d)
		}
		return r.goroutines <= want.goroutines && r.descriptors <= want.descriptors
	})
	for range 3 { // sync.Pool keeps what it has through two
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r.heap = int64(m.HeapAlloc)
	return r
}

// oneLife starts a server, gives it something to do, and stops it: each in the
// i-th of several ways.
func oneLife(t *testing.T, i int) {
	t.Helper()
	hang := make(chan struct{})
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/hang":
				close(hang)
				<-r.Context().Done()
			case "/hijack":
				nc, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					nc.Close()
				}
			default:
				io.WriteString(w, r.Proto)
			}
		})},
		IdleGrace:   -1,
		ListenLimit: i % 3 * 10,
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: traffic.ClientTLS(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	get := func(url string) error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	start := func() string {
		if _, err := srv.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		return "http://" + srv.Addrs()[0].String()
	}
	var err error
	switch i % 6 {
	case 0:
		err = get(start())
		srv.Shutdown(context.Background())
	case 1: // HTTP/2
		srv.TLSConfig = traffic.ServerTLS()
		l := mustListen(t)
		served := make(chan error, 1)
		go func() { served <- srv.ServeTLS(l, "", "") }()
		err = get("https://" + l.Addr().String())
		srv.Shutdown(context.Background())
		<-served
	case 2: // killed
		base := start()
		answer := make(chan error, 1)
		go func() { answer <- get(base + "/hang") }()
		<-hang
		srv.Close()
		<-answer // an error, or what the handler said when it was cut
	case 3:
		if get(start()+"/hijack") == nil {
			t.Error("a hijacked connection answered")
		}
		srv.Stop(time.Second)
		<-srv.StopChan()
	case 4: // in a group, which catches signals, with workers
		srv.NoSignalHandling = true
		g := &graceful.Group{Budget: time.Minute}
		g.Add("web", srv)
		g.Go("worker", func(ctx context.Context) error { <-ctx.Done(); return nil })
		g.Defer("cleanup", func(context.Context) error { return nil })
		if _, err := g.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		err = get("http://" + srv.Addrs()[0].String())
		g.Shutdown(context.Background())
	case 5: // nothing was ever asked, and it was stopped while it started
		go srv.Shutdown(context.Background())
		srv.ListenAndServe()
		srv.Shutdown(context.Background())
	}
	if err != nil {
		t.Error(err)
	}
}

func mustListen(t *testing.T) net.Listener {
	t.Helper()
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTwoServers: what one Server is told and is configured with does not reach
// another in the same process.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-graceful.ShutdownBegun(r.Context()):
			io.WriteString(w, "stopping")
		default:
			io.WriteString(w, "serving")
		}
	})
	patient := &graceful.Server{
		Server: &http.Server{Handler: h}, NoSignalHandling: true,
		ShutdownDelay: time.Hour, IdleGrace: time.Hour, ShutdownSendRetryAfter: time.Hour, ListenLimit: 1,
		BeforeShutdown: func() bool { return false },
	}
	hasty := &graceful.Server{Server: &http.Server{Handler: h}, NoSignalHandling: true, IdleGrace: -1}
	lp, lh := mustListen(t), mustListen(t)
	p := serve(t, patient, lp)
	serve(t, hasty, lh)

	one := dialClient(t, lp.Addr()) // has the only place of patient
	one.get("/", "serving")
	for range 3 {
		dialClient(t, lh.Addr()).get("/", "serving")
	}
	if err := hasty.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if patient.Phase() != graceful.PhaseServing || hasty.Phase() != graceful.PhaseStopped {
		t.Errorf("phases %v, %v", patient.Phase(), hasty.Phase())
	}
	one.get("/", "serving")
	patient.Stop(0) // refused
	one.get("/", "serving")
	go patient.Shutdown(context.Background())
	for patient.Phase() == graceful.PhaseServing {
		runtime.Gosched()
	}
	one.get("/", "stopping")
	patient.Close()
	p.end()
}

// An ending is a way in which a connection can end. It does that to nc, with
// what the server at the other end understands.
type ending struct {
	name string
	do   func(nc net.Conn)
}

// say writes and waits for an answer, or the end.
func say(nc net.Conn, text string) {
	io.WriteString(nc, text)
	bufio.NewReader(nc).ReadString('\n')
}

func endings() []ending {
	request := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	return []ending{
		{"at once", func(net.Conn) {}},
		{"reset at once", func(nc net.Conn) { reset(nc) }},
		{"half a header", func(nc net.Conn) { io.WriteString(nc, "GET / HT") }},
		{"half a header, reset", func(nc net.Conn) { io.WriteString(nc, "GET / HT"); reset(nc) }},
		{"garbage", func(nc net.Conn) { say(nc, "\x16\x03\x01 garbage\r\n\r\n") }},
		{"a request", func(nc net.Conn) { say(nc, request("/")) }},
		{"the last of some requests", func(nc net.Conn) {
			say(nc, request("/"))
			say(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			io.Copy(io.Discard, nc)
		}},
		{"HTTP/1.0", func(nc net.Conn) { io.WriteString(nc, "GET / HTTP/1.0\r\n\r\n"); io.Copy(io.Discard, nc) }},
		{"not waiting for the answer", func(nc net.Conn) { io.WriteString(nc, request("/")) }},
		{"a reset in the answer", func(nc net.Conn) { io.WriteString(nc, request("/")); reset(nc) }},
		{"half a body", func(nc net.Conn) {
			io.WriteString(nc, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
		}},
		{"a panic", func(nc net.Conn) { say(nc, request("/panic")) }},
		{"hijacked, closed by the handler", func(nc net.Conn) { say(nc, request("/hijack")) }},
		{"hijacked, closed twice", func(nc net.Conn) { say(nc, request("/hijack-twice")) }},
		{"hijacked, closed by the client", func(nc net.Conn) { say(nc, request("/hijack-wait")) }},
		{"hijacked, reset by the client", func(nc net.Conn) { say(nc, request("/hijack-wait")); reset(nc) }},
		{"hijacked, and the client has gone", func(nc net.Conn) { io.WriteString(nc, request("/hijack-wait")) }},
		{"hijacked, and the client has reset", func(nc net.Conn) { io.WriteString(nc, request("/hijack-wait")); reset(nc) }},
		{"the server's patience", func(nc net.Conn) { io.WriteString(nc, "GET / HT"); io.Copy(io.Discard, nc) }},
		{"half closed", func(nc net.Conn) {
			io.WriteString(nc, request("/"))
			nc.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, nc)
		}},
		{"HTTP/2, greeted", func(nc net.Conn) {
			io.WriteString(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			io.ReadFull(nc, make([]byte, 9)) // of its SETTINGS
		}},
		{"HTTP/2, garbage", func(nc net.Conn) {
			io.WriteString(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+strings.Repeat("garbage", 10))
			io.ReadFull(nc, make([]byte, 9))
		}},
	}
}

// reset closes the connection with a RST.
func reset(nc net.Conn) {
	nc.(*net.TCPConn).SetLinger(0)
	nc.Close()
}

// endingHandler serves what endings ask for. "/enter" says "in" and waits for
// the client to leave.
func endingHandler(w http.ResponseWriter, r *http.Request) {
	hijack := func() net.Conn {
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		return nc
	}
	switch r.URL.Path {
	case "/panic":
		panic(http.ErrAbortHandler)
	case "/hijack":
		hijack().Close()
	case "/hijack-twice":
		nc := hijack()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { nc.Close() })
		}
		wg.Wait()
		nc.Close()
	case "/hijack-wait", "/enter":
		nc := hijack()
		defer nc.Close()
		io.WriteString(nc, "in\n")
		io.Copy(io.Discard, nc)
	default:
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "ok\n")
	}
}

// TestHostileSlots: each way in which a connection can end gives back exactly
// one slot of the limit: afterwards there are as many as before.
func TestHostileSlots(t *testing.T) {
	const limit = 50
	n := *hostile
	if raceDetector && n > 400 {
		n = 400
	}
	config := func() *http.Server {
		s := &http.Server{Handler: http.HandlerFunc(endingHandler), ReadHeaderTimeout: 200 * ms, Protocols: new(http.Protocols)}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		return s
	}
	for _, kind := range []struct {
		name  string
		start func(t *testing.T, l net.Listener) (stop func())
	}{
		{"ListenLimit", func(t *testing.T, l net.Listener) func() {
			srv := &graceful.Server{Server: config(), ListenLimit: limit, NoSignalHandling: true, IdleGrace: -1}
			s := serve(t, srv, l)
			return func() { srv.Close(); s.end() }
		}},
		{"LimitListener in a Server", func(t *testing.T, l net.Listener) func() {
			srv := &graceful.Server{Server: config(), NoSignalHandling: true, IdleGrace: -1, WaitHijacked: true}
			s := serve(t, srv, graceful.LimitListener(l, limit))
			return func() { srv.Close(); s.end() }
		}},
		{"LimitListener under net/http", func(t *testing.T, l net.Listener) func() {
			srv := config()
			served := make(chan error, 1)
			go func() { served <- srv.Serve(graceful.LimitListener(l, limit)) }()
			return func() { srv.Close(); <-served }
		}},
		{"Listener under net/http", func(t *testing.T, l net.Listener) func() {
			gl := newListener(l)
			gl.ListenLimit, gl.IdleGrace = limit, -1
			srv := config()
			served := make(chan error, 1)
			go func() { served <- srv.Serve(gl) }()
			return func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				gl.Shutdown(ctx)
				srv.Close()
				<-served
			}
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			l := mustListen(t)
			stop := kind.start(t, l)
			defer stop()
			ways := endings()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range 2 * limit { // half of them wait for a slot
				wg.Go(func() {
					for next.Add(1) <= int64(n) {
						nc, err := net.Dial("tcp", l.Addr().String())
						if err != nil {
							t.Error(err)
							return
						}
						nc.SetDeadline(time.Now().Add(30 * time.Second))
						ways[rand.IntN(len(ways))].do(nc)
						nc.Close()
					}
				})
			}
			wg.Wait()
			countSlots(t, l.Addr().String(), limit)
		})
	}
}

// countSlots expects that limit connections are served at once, and no more.
func countSlots(t *testing.T, addr string, limit int) {
	t.Helper()
	enter := func(wait time.Duration) (net.Conn, error) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(wait))
		io.WriteString(nc, "GET /enter HTTP/1.1\r\nHost: x\r\n\r\n")
		line, err := bufio.NewReader(nc).ReadString('\n')
		if err == nil && line != "in\n" {
			err = fmt.Errorf("answer %q", line)
		}
		if err != nil {
			nc.Close()
		}
		return nc, err
	}
	var first net.Conn
	for i := range limit {
		nc, err := enter(20 * time.Second)
		if err != nil {
			t.Fatalf("of %d slots there are %d left: %v", limit, i, err)
		}
		first = nc
	}
	// A slot too many would let this one in at once.
	if _, err := enter(100 * ms); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one connection more than %d is served: %v", limit, err)
	}
	first.Close()
	if _, err := enter(20 * time.Second); err != nil {
		t.Errorf("the slot of a connection that ended is not given to the next: %v", err)
	}
}
