package graceful_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// TestStopsAtOnce: Stop, Shutdown, Close and the end of the inner http.Server,
// concurrently and repeatedly, are one shutdown, and none of them hangs or
// panics.
func TestStopsAtOnce(t *testing.T) {
	for range 5 {
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: text("ok")}, Timeout: 10 * time.Second}, listenTCP(t))
		c := dialClient(t, waitAddr(s))
		c.get("/", "ok")
		s.stopAt = time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { s.Stop(time.Second) })
			wg.Go(func() { s.Shutdown(bg) })
			wg.Go(func() { s.Server.Server.Shutdown(bg) })
			wg.Go(func() { s.Close() })
		}
		wg.Wait()
		s.end()
		for range 2 { // and after the end
			s.Stop(time.Second)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Shutdown(bg); err != nil && !errors.Is(err, graceful.ErrKilled) {
				t.Error(err)
			}
		}
		if got := s.Phase(); got != graceful.PhaseStopped {
			t.Errorf("phase %v", got)
		}
	}
}

// TestStopBeforeServe: whatever stopped it before, Serve returns nil at once,
// and has closed its listener.
func TestStopBeforeServe(t *testing.T) {
	for name, stop := range map[string]func(*graceful.Server) error{
		"Stop":     func(s *graceful.Server) error { s.Stop(time.Hour); <-s.StopChan(); return nil },
		"Shutdown": func(s *graceful.Server) error { return s.Shutdown(bg) },
		"Close":    (*graceful.Server).Close,
	} {
		t.Run(name, func(t *testing.T) {
			srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true}
			if err := stop(srv); err != nil {
				t.Error(err)
			}
			for range 2 {
				l := listenTCP(t)
				if err := srv.Serve(l); err != nil {
					t.Errorf("Serve: %v", err)
				}
				if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the listener is still open: %v", err)
				}
			}
			if err := srv.ListenAndServe(); err != nil {
				t.Errorf("ListenAndServe: %v", err)
			}
			if _, err := srv.Start(bg); err == nil {
				t.Error("Start began to serve")
			}
			if addrs := srv.Addrs(); len(addrs) > 0 {
				t.Errorf("it has served on %v", addrs)
			}
		})
	}
}

// TestServeAfterEnd: a second life is refused with http.ErrServerClosed.
func TestServeAfterEnd(t *testing.T) {
	s := serve(t, &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0", TLSConfig: serverTLS()}, IdleGrace: 20 * ms}, listenTCP(t))
	waitAddr(s)
	s.stop()
	s.end()
	l := listenTCP(t)
	for name, err := range map[string]error{
		"Serve":          s.Serve(l),
		"ServeTLS":       s.ServeTLS(listenTCP(t), "", ""),
		"ListenAndServe": s.ListenAndServe(),
		"Start":          func() error { _, err := s.Start(bg); return err }(),
	} {
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve has left its listener open: %v", err)
	}
}

// TestStartStopped: what else stops a started server leaves nothing behind that
// would wait for the context.
func TestStartStopped(t *testing.T) {
	srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true, IdleGrace: 20 * ms}
	ctx, cancel := context.WithCancel(bg)
	stopped, err := srv.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(bg); err != nil {
		t.Error(err)
	}
	<-stopped
	cancel()
	if got := srv.Report().Reason; got != "Shutdown" {
		t.Errorf("the reason is %q", got)
	}
}

// TestNilServerMethods: the methods of a zero Server do not need it to serve.
func TestNilServerMethods(t *testing.T) {
	var s graceful.Server
	if diff := cmp.Diff(graceful.Report{}, s.Report()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(graceful.Stats{}, s.Stats()); diff != "" {
		t.Error(diff)
	}
	if s.Phase() != graceful.PhaseServing || len(s.Addrs()) > 0 {
		t.Errorf("phase %v, addresses %v", s.Phase(), s.Addrs())
	}
	s.SetKeepAlivesEnabled(false)
	s.RegisterOnShutdown(func() {})
	if err := s.Shutdown(bg); err != nil {
		t.Error(err)
	}
	<-s.StopChan()
}
