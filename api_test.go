package graceful_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

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
		ShutdownDelay: time.Duration(0),
		IdleGrace:     time.Duration(0),
		WaitHijacked:  true,
		ReusePort:     true,
		OwnsListener:  true,
		RetryAfter:    time.Duration(0),
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
	for len(s.Addrs()) < 2 {
		time.Sleep(ms)
	}
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
	// Whoever asked whether it refuses may have been accepted before it did.
	if got := s.Report(); got.Start.Active != 2 || got.Finished+got.Idle != got.Start.Open()+got.Late {
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
	if got := srv.Report().Reason; got != "the context of Start: enough" {
		t.Errorf("the reason is %q", got)
	}
	if _, err := newServer("127.0.0.1:0").Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a context that has ended: %v", err)
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
			var got string
			for began := time.Now(); got != "one" && time.Since(began) < 10*time.Second; time.Sleep(ms) {
				got = fetch(tc.scheme, l.Addr())
			}
			if got != "one" {
				t.Errorf("got %q", got)
			}
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
