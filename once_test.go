package graceful_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// TestHooksOnce: ShutdownInitiated and the functions registered for the shutdown,
// with the Server and with its http.Server, run once, whoever begins it, and how
// many do; when the listeners are closed, so that a successor finds the port free,
// or with RetryAfter, which keeps them open, when draining begins. Each has a
// goroutine of its own: one that does not return holds nothing up.
func TestHooksOnce(t *testing.T) {
	for name, begin := range map[string]func(s *served){
		"Stop":                 func(s *served) { s.Stop(0) },
		"Stop, Stop":           func(s *served) { s.Stop(0); s.Stop(0) },
		"Shutdown":             func(s *served) { go s.Shutdown(bg) },
		"Shutdown, Shutdown":   func(s *served) { go s.Shutdown(bg); go s.Shutdown(bg) },
		"a context that ended": func(s *served) { ctx, cancel := context.WithCancel(bg); cancel(); go s.Shutdown(ctx) },
		"Close":                func(s *served) { go s.Close() },
		"Stop, Close":          func(s *served) { s.Stop(0); time.AfterFunc(ms, func() { s.Close() }) },
		"inner Shutdown":       func(s *served) { go s.Server.Server.Shutdown(bg) },
		"inner Shutdown, then Shutdown": func(s *served) {
			go s.Server.Server.Shutdown(bg)
			time.AfterFunc(ms, func() { s.Shutdown(bg) })
		},
	} {
		for _, retryAfter := range []time.Duration{0, time.Second} {
			for _, delay := range []time.Duration{0, time.Minute} {
				t.Run(fmt.Sprintf("%s, RetryAfter %v, delay %v", name, retryAfter, delay), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newVirtListener()
						closed := make(chan struct{})
						killed := name == "Close" || name == "Stop, Close" || name == "a context that ended"
						// Closing takes a second, and a request is in progress.
						cl := &hookedListener{Listener: l, close: func() error {
							if !killed {
								time.Sleep(time.Second)
							}
							defer close(closed)
							return l.Close()
						}}
						over := make(chan struct{})
						defer outlast()
						defer close(over)
						var mu sync.Mutex // guards ran
						var ran []string
						note := func(who string) func() {
							return func() {
								open := false
								select {
								case <-closed:
								default:
									open = true
								}
								mu.Lock()
								ran = append(ran, fmt.Sprintf("%s, listening %v", who, open))
								mu.Unlock()
								<-over
							}
						}
						inner := &http.Server{Handler: sleeper}
						inner.RegisterOnShutdown(note("inner"))
						srv := &graceful.Server{Server: inner, RetryAfter: retryAfter, ShutdownDelay: delay, ShutdownInitiated: note("initiated")}
						srv.RegisterOnShutdown(note("outer"))
						s := serve(t, srv, cl)
						newClient(t, l.dial()).ask("/1h")
						synctest.Wait()
						s.stopAt = time.Now()
						begin(s)
						time.Sleep(delay + 10*time.Minute)
						synctest.Wait()
						defer s.end() // with the request
						mu.Lock()
						defer mu.Unlock()
						slices.Sort(ran)
						// What net/http's own Shutdown was called for runs at once.
						innerOpen := retryAfter > 0 || strings.HasPrefix(name, "inner")
						if killed {
							for i := range ran {
								ran[i] = ran[i][:5]
							}
							if diff := cmp.Diff([]string{"initi", "inner", "outer"}, ran); diff != "" {
								t.Errorf("(-want +got):\n%s", diff)
							}
							return
						}
						want := []string{
							fmt.Sprintf("initiated, listening %v", retryAfter > 0),
							fmt.Sprintf("inner, listening %v", innerOpen),
							fmt.Sprintf("outer, listening %v", retryAfter > 0),
						}
						if diff := cmp.Diff(want, ran); diff != "" {
							t.Errorf("(-want +got):\n%s", diff)
						}
					})
				})
			}
		}
	}
}

// TestHookFindsPortFree is the same with a real socket, of the server's own and not,
// under clients that connect all the time.
func TestHookFindsPortFree(t *testing.T) {
	for _, own := range []bool{true, false} {
		for range 5 {
			l := listenTCP(t)
			if !own {
				var err error
				if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
					t.Fatal(err)
				}
			}
			addr := l.Addr()
			bound := make(chan error, 1)
			srv := &graceful.Server{Server: &http.Server{Handler: text("ok")}, Timeout: 20 * time.Second, IdleGrace: 20 * ms}
			srv.ShutdownInitiated = func() {
				l, err := net.Listen("tcp", addr.String())
				if err == nil {
					l.Close()
				}
				bound <- err
			}
			s := serve(t, srv, l)
			waitAddr(s)
			stop := make(chan struct{})
			answered := make(chan struct{}, 1)
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if fetch("http", addr) == "ok" {
							select {
							case answered <- struct{}{}:
							default:
							}
						} else {
							time.Sleep(ms)
						}
					}
				})
			}
			for range 20 {
				<-answered
			}
			s.stop()
			if err := <-bound; err != nil {
				t.Errorf("own %v: %v", own, err)
			}
			s.end()
			close(stop)
			clients.Wait()
		}
	}
}

// TestInterrupted: Interrupted is true while BeforeShutdown is asked, as in
// tylerstillwater/graceful, and false again when it has refused.
func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []bool
		agree := false
		srv := &graceful.Server{Server: &http.Server{}}
		srv.BeforeShutdown = func() bool {
			asked = append(asked, srv.Interrupted)
			return agree
		}
		s := serve(t, srv, newVirtListener())
		synctest.Wait()
		for _, agrees := range []bool{false, false, true} {
			agree = agrees
			if srv.Interrupted {
				t.Error("interrupted before, or after a veto")
			}
			s.stop()
			synctest.Wait()
		}
		if diff := cmp.Diff([]bool{true, true, true}, asked); diff != "" || !srv.Interrupted {
			t.Errorf("Interrupted %v; in BeforeShutdown (-want +got):\n%s", srv.Interrupted, diff)
		}
		s.end()
	})
}
