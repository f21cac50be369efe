package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// What tylerstillwater/graceful exports, with its names and signatures.
var (
	_ func(string, time.Duration, http.Handler)                    = graceful.Run
	_ func(string, time.Duration, http.Handler) error              = graceful.RunWithErr
	_ func(*http.Server, time.Duration) error                      = graceful.ListenAndServe
	_ func(*http.Server, string, string, time.Duration) error      = graceful.ListenAndServeTLS
	_ func(*http.Server, net.Listener, time.Duration) error        = graceful.Serve
	_ func(net.Listener, int) net.Listener                         = graceful.LimitListener
	_ func() *log.Logger                                           = graceful.DefaultLogger
	_ func(*tls.Config) bool                                       = graceful.TLSConfigHasHTTP2Enabled
	_ error                                                        = graceful.ErrNotTCP
	_ func(*graceful.Server) error                                 = (*graceful.Server).ListenAndServe
	_ func(*graceful.Server, string, string) (net.Listener, error) = (*graceful.Server).ListenTLS
	_ func(*graceful.Server, string, string) error                 = (*graceful.Server).ListenAndServeTLS
	_ func(*graceful.Server, *tls.Config) error                    = (*graceful.Server).ListenAndServeTLSConfig
	_ func(*graceful.Server, net.Listener) error                   = (*graceful.Server).Serve
	_ func(*graceful.Server, time.Duration)                        = (*graceful.Server).Stop
	_ func(*graceful.Server) <-chan struct{}                       = (*graceful.Server).StopChan

	_ = graceful.Server{
		Server:            (*http.Server)(nil),
		Timeout:           time.Duration(0),
		ListenLimit:       int(0),
		TCPKeepAlive:      time.Duration(0),
		ConnState:         func(net.Conn, http.ConnState) {},
		BeforeShutdown:    func() bool { return true },
		ShutdownInitiated: func() {},
		NoSignalHandling:  true,
		Logger:            (*log.Logger)(nil),
		LogFunc:           func(format string, args ...interface{}) {},
		Interrupted:       true,
	}
)

// What is added to it.
var (
	_ func(string, string) (net.Listener, error)                       = graceful.Listen
	_ func(*graceful.Server, net.Listener, string, string) error       = (*graceful.Server).ServeTLS
	_ func(*graceful.Server, context.Context) (<-chan struct{}, error) = (*graceful.Server).Start
	_ func(*graceful.Server) []net.Addr                                = (*graceful.Server).Addrs
	_ func(*graceful.Server, context.Context) error                    = (*graceful.Server).Shutdown
	_ func(*graceful.Server) error                                     = (*graceful.Server).Close
	_ func(*graceful.Server, func())                                   = (*graceful.Server).RegisterOnShutdown
	_ func(*graceful.Server) graceful.Phase                            = (*graceful.Server).Phase
	_ func(*graceful.Server) graceful.Stats                            = (*graceful.Server).Stats
	_ func(*graceful.Server) graceful.Report                           = (*graceful.Server).Report
	_ func(*graceful.Server) http.Handler                              = (*graceful.Server).ReadyHandler
	_ func(context.Context) <-chan struct{}                            = graceful.Draining
	_ error                                                            = graceful.ErrKilled
	_ fmt.Stringer                                                     = graceful.Phase(0)
	_ fmt.Stringer                                                     = graceful.Stats{}
	_ fmt.Stringer                                                     = graceful.Report{}
	_ fmt.Stringer                                                     = graceful.KilledConn{}

	_ = graceful.Server{
		ShutdownDelay:          time.Duration(0),
		IdleGrace:              time.Duration(0),
		WaitHijacked:           true,
		ReusePort:              true,
		OwnsListener:           true,
		ShutdownSendRetryAfter: time.Duration(0),
	}
)

// fetch makes one request to a server and returns the answer's body, or what
// went wrong.
func fetch(scheme string, addr net.Addr) string {
	tr := &http.Transport{TLSClientConfig: traffic.ClientTLS(), DisableKeepAlives: true}
	c := http.Client{Transport: tr, Timeout: 20 * time.Second}
	resp, err := c.Get(scheme + "://" + addr.String() + "/")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body := make([]byte, 100)
	n, _ := resp.Body.Read(body)
	return string(body[:n])
}

// certFiles writes a certificate and its key.
func certFiles(t *testing.T) (cert, key string) {
	t.Helper()
	certPEM, keyPEM := traffic.CertPEM()
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for name, b := range map[string][]byte{cert: certPEM, key: keyPEM} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TestWaysToServe: each of the methods serves, and returns nil after Stop.
func TestWaysToServe(t *testing.T) {
	cert, key := certFiles(t)
	for _, tc := range []struct {
		name, scheme string
		config       *tls.Config
		serve        func(*graceful.Server) error
	}{
		{"ListenAndServe", "http", nil, (*graceful.Server).ListenAndServe},
		{"Serve", "http", nil, func(s *graceful.Server) error { return s.Serve(listenTCP(t)) }},
		{"Serve, a listener of package net", "http", nil, func(s *graceful.Server) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			return s.Serve(l)
		}},
		{"ListenAndServeTLS", "https", nil, func(s *graceful.Server) error { return s.ListenAndServeTLS(cert, key) }},
		{"ListenAndServeTLS, no files", "https", serverTLS(), func(s *graceful.Server) error { return s.ListenAndServeTLS("", "") }},
		{"ListenAndServeTLSConfig", "https", nil, func(s *graceful.Server) error { return s.ListenAndServeTLSConfig(serverTLS()) }},
		{"ServeTLS", "https", nil, func(s *graceful.Server) error { return s.ServeTLS(listenTCP(t), cert, key) }},
		{"ListenTLS", "https", nil, func(s *graceful.Server) error {
			l, err := s.ListenTLS(cert, key)
			if err != nil {
				return err
			}
			return s.Serve(l)
		}},
		{"Start", "http", nil, func(s *graceful.Server) error {
			stopped, err := s.Start(bg)
			if err == nil {
				<-stopped
			}
			return err
		}},
		{"Start, TLS", "https", serverTLS(), func(s *graceful.Server) error {
			stopped, err := s.Start(bg)
			if err == nil {
				<-stopped
			}
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := &graceful.Server{
				Server:  &http.Server{Addr: "127.0.0.1:0", Handler: text("served"), TLSConfig: tc.config},
				Timeout: 10 * time.Second, IdleGrace: 20 * ms,
			}
			s := serveWith(t, srv, func() error { return tc.serve(srv) })
			if got := fetch(tc.scheme, waitAddr(s)); got != "served" {
				t.Errorf("got %q", got)
			}
			s.stop()
			s.end()
			if !s.Interrupted {
				t.Error("Interrupted is false after the end")
			}
		})
	}
}

// TestListenTLSForOthers: ListenTLS's listener is one of TLS for anybody.
func TestListenTLSForOthers(t *testing.T) {
	cert, key := certFiles(t)
	srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}}
	l, err := srv.ListenTLS(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: text("plain")}
	done := make(chan struct{})
	go func() { defer close(done); hs.Serve(l) }()
	if got := fetch("https", l.Addr()); got != "plain" {
		t.Errorf("got %q", got)
	}
	hs.Close()
	<-done
}

// TestSeveralListeners: one server serves plain and TLS at once, Addrs names
// both, and one stop ends both.
func TestSeveralListeners(t *testing.T) {
	g := newGate()
	srv := &graceful.Server{Server: &http.Server{Handler: g, TLSConfig: serverTLS()}, IdleGrace: 20 * ms}
	s := serve(t, srv, listenTCP(t))
	plain := waitAddr(s)
	s2 := serveWith(t, srv, func() error { return srv.ServeTLS(listenTCP(t), "", "") })
	eventually(t, func() (bool, any) { a := s.Addrs(); return len(a) == 2, a })
	c1, c2 := dialClient(t, plain), dialClient(t, s.Addrs()[1])
	config := traffic.ClientTLS()
	config.ServerName = "127.0.0.1"
	c2 = newClient(t, tls.Client(c2.Conn, config))
	c1.ask("/one")
	c2.ask("/two")
	<-g.entered
	<-g.entered
	s.stop()
	waitPhase(s, graceful.PhaseDraining)
	for _, addr := range s.Addrs() {
		waitRefused(t, addr)
	}
	select {
	case <-s.returned:
		t.Error("Serve returned before the last response of the other listener")
	case <-s2.returned:
		t.Error("ServeTLS returned before the last response of the other listener")
	default:
	}
	close(g.open)
	c1.expect("/one")
	c2.expect("/two")
	s.end()
	s2.end()
	// waitRefused's last connections may have been accepted before the close.
	if got := s.Report(); got.Start.Active != 2 || got.Finished+got.IdleClosed != got.Start.Open()+got.AcceptedLate {
		t.Errorf("%v", got)
	}
}

// TestStart: an address in use is Start's error, and the end of its context
// the end of the server.
func TestStart(t *testing.T) {
	newServer := func(addr string) *graceful.Server {
		return &graceful.Server{Server: &http.Server{Addr: addr, Handler: text("started")}, NoSignalHandling: true, IdleGrace: 20 * ms}
	}
	ctx, cancel := context.WithCancelCause(bg)
	srv := newServer("127.0.0.1:0")
	stopped, err := srv.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	addrs := srv.Addrs()
	if len(addrs) != 1 || addrs[0].(*net.TCPAddr).Port == 0 {
		t.Fatalf("Addrs are %v", addrs)
	}
	if got := fetch("http", addrs[0]); got != "started" {
		t.Errorf("got %q", got)
	}
	if _, err := newServer(addrs[0].String()).Start(bg); err == nil {
		t.Error("two servers on one address")
	}
	select {
	case <-stopped:
		t.Fatal("stopped too early")
	default:
	}
	cancel(errors.New("enough"))
	<-stopped
	if err := srv.Wait(); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if got := srv.Report().Reason; got != "the context of Start: enough" {
		t.Errorf("the reason is %q", got)
	}
	if _, err := newServer("127.0.0.1:0").Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a context that has ended: %v", err)
	}
}

// TestWait: Wait returns the error of Accept, a kill, and both.
func TestWait(t *testing.T) {
	bad := errors.New("out of luck")
	for _, tc := range []struct{ fails, kills bool }{{true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprintf("%+v", tc), func(t *testing.T) {
			g := newGate()
			defer close(g.open)
			l := listenTCP(t)
			broken := make(chan struct{})
			s := serve(t, &graceful.Server{Server: &http.Server{Handler: g}, IdleGrace: 5 * ms}, failingListener(l, 1, func() error {
				<-broken
				return bad
			}))
			c := dialClient(t, waitAddr(s))
			c.ask("/one")
			<-g.entered
			wait := make(chan error, 1)
			go func() { wait <- s.Wait() }()
			if tc.fails {
				close(broken)
				waitPhase(s, graceful.PhaseDraining)
			} else {
				defer close(broken)
			}
			if tc.kills {
				s.Close()
			} else {
				g.open <- struct{}{}
			}
			err := <-wait
			if errors.Is(err, bad) != tc.fails || errors.Is(err, graceful.ErrKilled) != tc.kills {
				t.Errorf("Wait: %v", err)
			}
			if again := s.Wait(); fmt.Sprint(again) != fmt.Sprint(err) {
				t.Errorf("Wait again: %v", again)
			}
		})
	}
}

// TestNilHandler: a nil Handler is the DefaultServeMux, and a nil http.Server
// a zero one.
func TestNilHandler(t *testing.T) {
	old := http.DefaultServeMux
	defer func() { http.DefaultServeMux = old }()
	http.DefaultServeMux = http.NewServeMux()
	http.DefaultServeMux.Handle("/", text("mux"))
	for name, hs := range map[string]*http.Server{"nil Handler": {}, "nil http.Server": nil} {
		s := serve(t, &graceful.Server{Server: hs, IdleGrace: 20 * ms}, listenTCP(t))
		if got := fetch("http", waitAddr(s)); got != "mux" {
			t.Errorf("%s: got %q", name, got)
		}
		s.stop()
		s.end()
	}
}

// TestUnixSocket: the socket's file goes with the server, and a successor's
// stays.
func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listen := func() net.Listener {
		l, err := graceful.Listen("unix", path)
		if err != nil {
			t.Skip(err) // some system has none
		}
		return l
	}
	s := serve(t, &graceful.Server{Server: &http.Server{Handler: text("unix")}, IdleGrace: 20 * ms}, listen())
	dialClient(t, waitAddr(s)).get("/", "unix")
	s.stop()
	s.end()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file after the end: %v", err)
	}

	s = serve(t, &graceful.Server{Server: &http.Server{Handler: text("old")}, IdleGrace: 20 * ms}, listen())
	c := dialClient(t, waitAddr(s))
	if err := os.Rename(path, path+".old"); err != nil { // as who takes over does
		t.Fatal(err)
	}
	s2 := serve(t, &graceful.Server{Server: &http.Server{Handler: text("new")}, IdleGrace: 20 * ms}, listen())
	waitAddr(s2)
	c.get("/", "old")
	s.stop()
	s.end()
	dialClient(t, waitAddr(s2)).get("/", "new")
	s2.stop()
	s2.end()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the successor's file after its end: %v", err)
	}
}

// TestOneLiners: the functions serve, and return nil after a stop. What they
// log, and how Run ends: process_unix_test.go.
func TestOneLiners(t *testing.T) {
	cert, key := certFiles(t)
	for _, tc := range []struct {
		name, scheme string
		serve        func(*http.Server, net.Listener) error
		needsAddr    bool
	}{
		{"Serve", "http", func(hs *http.Server, l net.Listener) error { return graceful.Serve(hs, l, time.Second) }, false},
		{"ListenAndServe", "http", func(hs *http.Server, _ net.Listener) error {
			return graceful.ListenAndServe(hs, time.Second)
		}, true},
		{"ListenAndServeTLS", "https", func(hs *http.Server, _ net.Listener) error {
			return graceful.ListenAndServeTLS(hs, cert, key, time.Second)
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := listenTCP(t)
			if tc.needsAddr {
				l.Close()
			}
			hs := &http.Server{Addr: l.Addr().String(), Handler: text("one")}
			done := make(chan error, 1)
			go func() { done <- tc.serve(hs, l) }()
			eventually(t, func() (bool, any) { got := fetch(tc.scheme, l.Addr()); return got == "one", got })
			hs.Shutdown(bg) // which is all that a caller has in hand, but for signals
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	l := listenTCP(t)
	if err := graceful.RunWithErr(l.Addr().String(), 0, nil); err == nil {
		t.Error("RunWithErr on an address in use")
	}
	if err := graceful.RunContext(bg, l.Addr().String(), 0, nil); err == nil {
		t.Error("RunContext on an address in use")
	}
	addr := l.Addr()
	l.Close()
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error, 1)
	go func() { done <- graceful.RunContext(ctx, addr.String(), time.Second, text("one")) }()
	eventually(t, func() (bool, any) { got := fetch("http", addr); return got == "one", got })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := graceful.RunContext(ctx, addr.String(), time.Second, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("RunContext with a context that has ended: %v", err)
	}
}

func TestTLSConfigHasHTTP2Enabled(t *testing.T) {
	for _, tc := range []struct {
		config *tls.Config
		want   bool
	}{
		{nil, false},
		{&tls.Config{}, false},
		{&tls.Config{NextProtos: []string{"http/1.1"}}, false},
		{&tls.Config{NextProtos: []string{"http/1.1", "h2"}}, true},
	} {
		if got := graceful.TLSConfigHasHTTP2Enabled(tc.config); got != tc.want {
			t.Errorf("%v: got %v", tc.config, got)
		}
	}
}

// TestBadInput: each mistake is an error at the call that says what and why,
// and nothing has been started or bound.
func TestBadInput(t *testing.T) {
	cert, key := certFiles(t)
	broken := filepath.Join(t.TempDir(), "broken.pem")
	if err := os.WriteFile(broken, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := listenTCP(t)
	listenAndServe := (*graceful.Server).ListenAndServe
	start := func(s *graceful.Server) error { _, err := s.Start(bg); return err }
	for _, tc := range []struct {
		name string
		srv  *graceful.Server
		call func(*graceful.Server) error
		says []string
		is   error // in the chain, if not nil
	}{
		{"negative Timeout", &graceful.Server{Timeout: -time.Second}, listenAndServe, []string{"Timeout", "negative", "-1s"}, nil},
		{"negative Timeout, Start", &graceful.Server{Timeout: -time.Second}, start, []string{"Timeout", "negative", "-1s"}, nil},
		{"negative ListenLimit", &graceful.Server{ListenLimit: -3}, listenAndServe, []string{"ListenLimit", "negative", "-3"}, nil},
		{"negative ShutdownDelay", &graceful.Server{ShutdownDelay: -ms}, listenAndServe, []string{"ShutdownDelay", "negative", "-1ms"}, nil},
		{"negative RetryAfter", &graceful.Server{ShutdownSendRetryAfter: -ms}, listenAndServe, []string{"RetryAfter", "negative", "-1ms"}, nil},
		{"nil listener", new(graceful.Server), func(s *graceful.Server) error { return s.Serve(nil) }, []string{"Serve", "nil listener"}, nil},
		{"nil listener, TLS", new(graceful.Server), func(s *graceful.Server) error { return s.ServeTLS(nil, cert, key) }, []string{"nil listener"}, nil},
		{"nil TLS config", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLSConfig(nil) }, []string{"nil config"}, nil},
		{"TLS config without certificate", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLSConfig(new(tls.Config)) }, []string{"neither a certificate"}, nil},
		{"missing certificate", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLS("/no/cert.pem", key) }, []string{"certificate", "/no/cert.pem"}, fs.ErrNotExist},
		{"missing key", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLS(cert, "/no/key.pem") }, []string{"key", "/no/key.pem"}, fs.ErrNotExist},
		{"no certificate", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLS("", "") }, []string{"certificate", `""`}, fs.ErrNotExist},
		{"broken certificate", new(graceful.Server), func(s *graceful.Server) error { return s.ListenAndServeTLS(broken, key) }, []string{"broken.pem", "PEM"}, nil},
		{"broken key", new(graceful.Server), func(s *graceful.Server) error { _, err := s.ListenTLS(cert, broken); return err }, []string{"broken.pem", "PEM"}, nil},
		{"address in use", &graceful.Server{Server: &http.Server{Addr: taken.Addr().String()}}, listenAndServe, []string{"listen", taken.Addr().String(), "in use"}, syscall.EADDRINUSE},
		{"address in use, Start", &graceful.Server{Server: &http.Server{Addr: taken.Addr().String()}}, start, []string{"listen", taken.Addr().String(), "in use"}, syscall.EADDRINUSE},
		{"no address", &graceful.Server{Server: &http.Server{Addr: "127.0.0.1"}}, listenAndServe, []string{"127.0.0.1", "missing port"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.srv.Server == nil {
				tc.srv.Server = &http.Server{Addr: "127.0.0.1:0"}
			}
			done := make(chan error, 1)
			go func() { done <- tc.call(tc.srv) }()
			select {
			case err := <-done:
				if err == nil {
					t.Fatal("no error")
				}
				for _, text := range tc.says {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%q does not say %q", err, text)
					}
				}
				if tc.is != nil && !errors.Is(err, tc.is) {
					t.Errorf("%q is not %q", err, tc.is)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it serves")
			}
			if addrs := tc.srv.Addrs(); len(addrs) > 0 {
				t.Errorf("it has bound %v", addrs)
			}
		})
	}
}

// TestBadInputKeepsListener: an error of the configuration leaves the caller's
// listener to the caller, and a mistake in one call does not end the server.
func TestBadInputKeepsListener(t *testing.T) {
	l := listenTCP(t)
	if err := (&graceful.Server{Timeout: -1}).Serve(l); err == nil {
		t.Fatal("no error")
	}
	srv := &graceful.Server{Server: &http.Server{Handler: text("ok")}, IdleGrace: 20 * ms}
	if err := srv.ServeTLS(l, "/no/cert", "/no/key"); err == nil {
		t.Fatal("no error")
	}
	if err := srv.Serve(nil); err == nil {
		t.Fatal("no error")
	}
	s := serve(t, srv, l)
	dialClient(t, waitAddr(s)).get("/", "ok")
	s.stop()
	s.end()
}

func TestListenBadNetwork(t *testing.T) {
	for _, network := range []string{"", "udp", "unixgram"} {
		_, err := graceful.Listen(network, "127.0.0.1:0")
		var unknown net.UnknownNetworkError
		if !errors.As(err, &unknown) || string(unknown) != network {
			t.Errorf("Listen(%q): %v", network, err)
		}
	}
}

// TestMisusePanics: what only a programmer can do wrong.
func TestMisusePanics(t *testing.T) {
	for name, f := range map[string]func(){
		"LimitListener":   func() { graceful.LimitListener(nil, 0) },
		"LimitListener -": func() { graceful.LimitListener(nil, -1) },
		"Stop":            func() { new(graceful.Server).Stop(-1) },
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "graceful: ") {
					t.Errorf("%s panicked with %q", name, s)
				}
			}()
			f()
		}()
	}
}

// TestAcceptFails: Serve returns the error of Accept, after the requests in
// progress have been answered.
func TestAcceptFails(t *testing.T) {
	g := newGate()
	bad := errors.New("out of luck")
	s := serve(t, &graceful.Server{Server: &http.Server{Handler: g}, IdleGrace: 5 * time.Second}, failingListener(listenTCP(t), 1, func() error { return bad }))
	c := dialClient(t, waitAddr(s))
	c.ask("/one")
	<-g.entered
	waitPhase(s, graceful.PhaseDraining)
	close(g.open)
	c.expect("/one")
	<-s.returned
	if s.err != bad {
		t.Errorf("Serve returned %v", s.err)
	}
	if got := s.Report().Reason; !strings.Contains(got, "accepting on") || !strings.Contains(got, "out of luck") {
		t.Errorf("the reason is %q", got)
	}
}

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
	eventually(s.t, func() (bool, any) { return s.Phase() >= p, s.Phase() })
}

// waitRefused waits until connections to addr are refused.
func waitRefused(t *testing.T, addr net.Addr) {
	t.Helper()
	eventually(t, func() (bool, any) {
		nc, err := net.Dial(addr.Network(), addr.String())
		if err == nil {
			nc.Close()
		}
		return err != nil, "it still accepts"
	})
}

// HTTP/2 has not to be asked for: as under net/http, a TLS configuration whose
// NextProtos are empty offers it, and the server speaks it. It used to offer it
// and then close every connection that took the offer.
func TestServeTLSSpeaksHTTP2(t *testing.T) {
	cert := traffic.ServerTLS().Certificates
	for name, tc := range map[string]struct {
		protos []string
		want   string
	}{
		"none named":   {nil, "HTTP/2.0"},
		"HTTP/1 first": {[]string{"http/1.1"}, "HTTP/1.1"}, // the server's order decides
		"HTTP/2 named": {[]string{"h2"}, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &graceful.Server{
				Server: &http.Server{
					TLSConfig: &tls.Config{Certificates: cert, NextProtos: tc.protos},
					Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
				},
				NoSignalHandling: true,
			}
			served := make(chan error, 1)
			go func() { served <- srv.ServeTLS(l, "", "") }()
			tr := &http.Transport{TLSClientConfig: traffic.ClientTLS(), ForceAttemptHTTP2: true}
			resp, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String())
			if err != nil {
				t.Error(err)
			} else if body, err := io.ReadAll(resp.Body); err != nil || string(body) != tc.want {
				t.Errorf("%q, %v", body, err)
			}
			tr.CloseIdleConnections()
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadyHandler: ready while serving, unready from the beginning of the
// shutdown; the answer is text, and not to be cached.
func TestReadyHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l := newVirtListener()
		srv := &graceful.Server{
			Server:        &http.Server{Handler: sleeper},
			ShutdownDelay: 2 * time.Second,
			Timeout:       time.Second,
		}
		ready := srv.ReadyHandler()
		var got []int
		look := func() {
			t.Helper()
			synctest.Wait()
			w := httptest.NewRecorder()
			ready.ServeHTTP(w, httptest.NewRequest("GET", "/ready", nil))
			got = append(got, w.Code)
			if w.Header().Get("Cache-Control") != "no-store" || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
				t.Errorf("%d with the header %v", w.Code, w.Header())
			}
			if w.Body.Len() == 0 || !strings.HasSuffix(w.Body.String(), "\n") {
				t.Errorf("%d with the body %q", w.Code, w.Body)
			}
		}
		look()
		s := serve(t, srv, l)
		newClient(t, l.dial()).ask("/1h")
		look()
		s.stop()
		look() // delaying
		time.Sleep(2 * time.Second)
		look() // draining
		s.end()
		look()
		if diff := cmp.Diff([]int{200, 200, 503, 503, 503}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestReadyWithPhase: once Phase is delaying, the ready handler answers 503.
func TestReadyWithPhase(t *testing.T) {
	for range 200 {
		srv := &graceful.Server{NoSignalHandling: true}
		ready := srv.ReadyHandler()
		srv.Stop(0)
		for srv.Phase() == graceful.PhaseServing {
			runtime.Gosched()
		}
		w := httptest.NewRecorder()
		ready.ServeHTTP(w, httptest.NewRequest("GET", "/ready", nil))
		<-srv.StopChan()
		if w.Code != 503 || !srv.Interrupted {
			t.Fatalf("the ready handler says %d, interrupted: %v", w.Code, srv.Interrupted)
		}
	}
}
