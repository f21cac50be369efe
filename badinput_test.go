package graceful_test

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
		{"negative RetryAfter", &graceful.Server{RetryAfter: -ms}, listenAndServe, []string{"RetryAfter", "negative", "-1ms"}, nil},
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

// failingListener fails from the second Accept on.
type failingListener struct {
	net.Listener
	n   int
	err error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.n++; l.n > 1 {
		return nil, l.err
	}
	return l.Listener.Accept()
}

// TestAcceptFails: Serve returns the error of Accept, after the requests in
// progress have been answered.
func TestAcceptFails(t *testing.T) {
	g := newGate()
	bad := errors.New("out of luck")
	s := serve(t, &graceful.Server{Server: &http.Server{Handler: g}, IdleGrace: 5 * time.Second}, &failingListener{Listener: listenTCP(t), err: bad})
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
