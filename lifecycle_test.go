package graceful_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// TestStopBesideServe: a Stop at the very moment of the first Serve is one
// before it or one after it; Serve used to return http.ErrServerClosed if it
// was in between.
func TestStopBesideServe(t *testing.T) {
	for range 2000 {
		srv := &graceful.Server{NoSignalHandling: true}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Stop(0) })
		if err := srv.Serve(newVirtListener()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
}

// TestHooksBeforeServe: who waits for the shutdown hears of one that came
// before anything was served, as under net/http.
func TestHooksBeforeServe(t *testing.T) {
	for name, inner := range map[string]*http.Server{"an http.Server": {}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex // guards heard
				var heard []string
				hear := func(who string) func() {
					return func() {
						mu.Lock()
						defer mu.Unlock()
						heard = append(heard, who)
					}
				}
				srv := &graceful.Server{Server: inner, ShutdownInitiated: hear("ShutdownInitiated")}
				srv.RegisterOnShutdown(hear("registered"))
				want := []string{"ShutdownInitiated", "late", "registered"}
				if inner != nil {
					inner.RegisterOnShutdown(hear("inner"))
					want = []string{"ShutdownInitiated", "inner", "late", "registered"}
				}
				if err := srv.Shutdown(bg); err != nil {
					t.Error(err)
				}
				srv.RegisterOnShutdown(hear("late"))
				synctest.Wait()
				slices.Sort(heard)
				if !slices.Equal(heard, want) {
					t.Errorf("%q heard of it, want %q", heard, want)
				}
			})
		})
	}
}

// TestCloseFreesPort: when Close has returned, the port can be bound again.
func TestCloseFreesPort(t *testing.T) {
	for range 50 {
		srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true}
		stopped, err := srv.Start(bg)
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		l, err := net.Listen("tcp", srv.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		<-stopped
	}
}

// neverDone is a context of a type that package context doesn't know, for which
// it starts a goroutine that waits.
type neverDone struct{ context.Context }

func (neverDone) Done() <-chan struct{} { return never }

var never = make(chan struct{})

// TestStartForgetsContext: Start's context may outlive the server by far. It
// used to keep it, and here a goroutine.
func TestStartForgetsContext(t *testing.T) {
	srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true}
	stopped, err := srv.Start(neverDone{bg})
	if err != nil {
		t.Fatal(err)
	}
	srv.Close()
	<-stopped // and TestMain looks for goroutines
}

// TestForEver: a duration that is meant as "for ever" used to be added to a
// time, and was over at once.
func TestForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: sleeper}, Timeout: math.MaxInt64, IdleGrace: math.MaxInt64,
		}, l)
		c := newClient(t, l.dial())
		time.Sleep(time.Minute)
		c.get("/0s", "done")
		synctest.Wait()
		s.stop()
		time.Sleep(time.Minute)
		c.get("/0s", "done")
		if got := s.end(); got != time.Minute {
			t.Errorf("over after %v", got)
		}
	})
}

// hookedListener calls functions, those that are not nil, in the place of its
// methods.
type hookedListener struct {
	net.Listener
	accept func() (net.Conn, error)
	close  func() error
	addr   func() net.Addr
}

func (l *hookedListener) Accept() (net.Conn, error) {
	if l.accept != nil {
		return l.accept()
	}
	return l.Listener.Accept()
}

func (l *hookedListener) Close() error {
	if l.close != nil {
		return l.close()
	}
	return l.Listener.Close()
}

func (l *hookedListener) Addr() net.Addr {
	if l.addr != nil {
		return l.addr()
	}
	return l.Listener.Addr()
}

// TestListenerCloseBlocks: a listener whose Close hangs does not keep the
// shutdown from ending when its time is over.
func TestListenerCloseBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, block := newVirtListener(), make(chan struct{})
		s := serve(t, &graceful.Server{Timeout: 3 * time.Second}, &hookedListener{
			Listener: l,
			close:    func() error { <-block; return l.Close() },
		})
		synctest.Wait()
		s.stop()
		select {
		case <-s.StopChan():
		case <-time.After(time.Hour):
		}
		if took := time.Since(s.stopAt); took != 3*time.Second {
			t.Errorf("over after %v", took)
		}
		close(block)
		s.end()
	})
}

type noRemoteAddr struct{ net.Conn }

func (noRemoteAddr) RemoteAddr() net.Addr { return nil }

// TestNoAddr: net/http serves listeners and connections that have no address.
// They used to make the shutdown panic.
func TestNoAddr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, Timeout: time.Second}, &hookedListener{
			Listener: l,
			accept: func() (net.Conn, error) {
				nc, err := l.Accept()
				if err != nil {
					return nil, err
				}
				return noRemoteAddr{nc}, nil
			},
			addr: func() net.Addr { return nil },
		})
		newClient(t, l.dial()).ask("/1h")
		synctest.Wait()
		s.stop()
		s.end()
		if got, want := fmt.Sprint(s.Report().Killed), `[unknown active for 1s: GET "/1h"]`; got != want {
			t.Errorf("killed %s, want %s", got, want)
		}
	})
}

// TestNewConnectionPanics: a hook that panics for a new connection does so in
// Serve, as under net/http. Who recovers has a server whose other requests are
// answered, and that stops; it used to wait for ever for the listener and for
// the connection that nobody reads.
func TestNewConnectionPanics(t *testing.T) {
	for _, hook := range []string{"ConnState", "ConnContext"} {
		t.Run(hook, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				defer outlast()
				calls := 0
				second := func() {
					if calls++; calls == 2 {
						panic(hook)
					}
				}
				hs := &http.Server{Handler: sleeper}
				if hook == "ConnState" {
					hs.ConnState = func(_ net.Conn, state http.ConnState) {
						if state == http.StateNew {
							second()
						}
					}
				} else {
					hs.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
						second()
						return ctx
					}
				}
				var recovered any
				srv := &graceful.Server{Server: hs}
				s := serveWith(t, srv, func() error {
					defer func() { recovered = recover() }()
					return srv.Serve(l)
				})
				c := newClient(t, l.dial())
				c.ask("/10s")
				synctest.Wait()
				lost := newClient(t, l.dial())
				<-s.returned
				if recovered != hook {
					t.Errorf("recovered %v", recovered)
				}
				s.stop()
				time.AfterFunc(time.Hour, func() { s.Close() })
				c.expect("done")
				<-s.StopChan()
				if took := time.Since(s.stopAt); took != 10*time.Second {
					t.Errorf("over after %v\n%v", took, s.Report())
				}
				if err := lost.ended(); err != nil {
					t.Errorf("the new connection ended with %v", err)
				}
			})
		})
	}
}
