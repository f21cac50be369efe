package graceful_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

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

// TestHooksBeforeServe: hooks run for a shutdown that comes before Serve too, as
// under net/http.
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
			over:     func(nc net.Conn) net.Conn { return noRemoteAddr{nc} },
			addr:     func() net.Addr { return nil },
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
// Serve, as under net/http. After a recover the other requests are answered, and
// the server stops; it used to wait for ever for the listener and for the
// connection, which no goroutine read.
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

// TestServeAfterEnd: a server that was stopped cannot serve again: http.ErrServerClosed.
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

// TestStopHalfSpoken: how long half a request is waited for follows from the
// timeout that Stop was given. It used to follow from the Timeout field: Stop(0)
// of a server that has one never ended.
func TestStopHalfSpoken(t *testing.T) {
	for _, tc := range []struct {
		name          string
		timeout, stop time.Duration
		want          time.Duration
		ends          ends
	}{
		{"no timeout in place of one", time.Minute, 0, 5 * time.Second, ends{GaveUp: 1}},
		{"a timeout in place of none", 0, 30 * time.Second, 30 * time.Second, ends{Killed: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				defer outlast()
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, Timeout: tc.timeout}, l)
				newClient(t, l.dial()).send("GET / HT")
				synctest.Wait()
				s.stopAt = time.Now()
				s.Stop(tc.stop)
				time.AfterFunc(time.Hour, func() { s.Close() })
				if got := s.end(); got != tc.want {
					t.Errorf("over after %v, want %v", got, tc.want)
				}
				if got := endsOf(s.Report()); got != tc.ends {
					t.Errorf("ends are %+v, want %+v", got, tc.ends)
				}
			})
		})
	}
}

// TestStopWhileDelaying: a shutdown that is under way can only be shortened,
// also before its drain. Stop(0) used to take the timeout away.
func TestStopWhileDelaying(t *testing.T) {
	for _, longer := range []time.Duration{0, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := newVirtListener()
			defer outlast()
			s := serve(t, &graceful.Server{
				Server: &http.Server{Handler: sleeper}, Timeout: time.Second, ShutdownDelay: time.Second,
			}, l)
			newClient(t, l.dial()).ask("/1h")
			synctest.Wait()
			s.stop()
			synctest.Wait()
			s.Stop(longer)
			if got := s.end(); got != 2*time.Second {
				t.Errorf("Stop(%v): over after %v", longer, got)
			}
		})
	}
}

// TestVetoedTimeout: a Stop that came while BeforeShutdown was thinking, and was
// refused with the rest, used to leave its timeout behind.
func TestVetoedTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		agree := make(chan bool)
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: sleeper}, Timeout: time.Minute,
			BeforeShutdown: func() bool { return <-agree },
		}, l)
		newClient(t, l.dial()).ask("/1h")
		synctest.Wait()
		s.Stop(time.Hour)
		synctest.Wait()
		s.Stop(time.Second)
		synctest.Wait()
		agree <- false
		synctest.Wait()
		s.stopAt = time.Now()
		go s.Shutdown(bg)
		if got := s.end(); got != time.Minute {
			t.Errorf("over after %v", got)
		}
	})
}

// TestShutdownAfterEnd: after an orderly end Shutdown returns nil, whatever has
// become of its context. It used to be a matter of luck.
func TestShutdownAfterEnd(t *testing.T) {
	s := serve(t, &graceful.Server{IdleGrace: -1}, listenTCP(t))
	waitAddr(s)
	s.stop()
	s.end()
	ctx, cancel := context.WithCancel(bg)
	cancel()
	for range 20 {
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHooks: the hooks of the inner http.Server run, and Server.ConnState after
// its own; they see the connection that the listener produced, or the TLS laid
// over it, and no wrapper.
func TestHooks(t *testing.T) {
	type key string
	for _, tc := range []struct {
		name   string
		tls    bool
		beside bool
		conn   string // its type
	}{
		{"plain", false, false, "*net.TCPConn"},
		{"TLS", true, false, "*tls.Conn"},
		{"a TLS listener", true, true, "*tls.Conn"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			noted := make(chan struct{}, 100)
			note := func(format string, args ...any) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprintf(format, args...))
				noted <- struct{}{}
			}
			inner := &http.Server{}
			l := listenTCP(t)
			given := l
			srv := &graceful.Server{Server: inner, IdleGrace: -1}
			srv.ConnState = func(nc net.Conn, state http.ConnState) { note("outer ConnState %T %v", nc, state) }
			inner.ConnState = func(nc net.Conn, state http.ConnState) { note("inner ConnState %T %v", nc, state) }
			inner.BaseContext = func(l net.Listener) context.Context {
				note("BaseContext %v", l == given)
				return context.WithValue(bg, key("base"), "B")
			}
			inner.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
				note("ConnContext %T", nc)
				return context.WithValue(ctx, key("conn"), "C")
			}
			inner.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				note("Handler %v%v server %v local %v draining %v TLS %v",
					ctx.Value(key("base")), ctx.Value(key("conn")),
					ctx.Value(http.ServerContextKey) == inner,
					ctx.Value(http.LocalAddrContextKey).(net.Addr).String() == given.Addr().String(),
					graceful.Draining(ctx) != nil, r.TLS != nil)
			})
			inner.RegisterOnShutdown(func() { note("inner OnShutdown") })
			srv.RegisterOnShutdown(func() { note("outer OnShutdown") })
			srv.ShutdownInitiated = func() { note("ShutdownInitiated") }
			srv.BeforeShutdown = func() bool { note("BeforeShutdown"); return true }
			var s *served
			var c *client
			if tc.tls {
				if tc.beside {
					config := serverTLS()
					given = tls.NewListener(l, config)
					s = serve(t, srv, given)
				} else {
					s = serveTLS(t, srv, l, false)
				}
				c = dialTLS(t, waitAddr(s), "http/1.1")
			} else {
				s = serve(t, srv, l)
				c = dialClient(t, waitAddr(s))
			}
			c.get("/", "")
			waitStats(s, func(st graceful.Stats) int { return st.Idle }, 1)
			s.stop()
			s.end()
			late := make(chan struct{})
			srv.RegisterOnShutdown(func() { note("late OnShutdown"); close(late) })
			<-late
			want := []string{
				"BaseContext true",
				"inner ConnState " + tc.conn + " new", "outer ConnState " + tc.conn + " new",
				"ConnContext " + tc.conn,
				"inner ConnState " + tc.conn + " active", "outer ConnState " + tc.conn + " active",
				fmt.Sprintf("Handler BC server true local true draining true TLS %v", tc.tls),
				"inner ConnState " + tc.conn + " idle", "outer ConnState " + tc.conn + " idle",
				"BeforeShutdown",
				"inner ConnState " + tc.conn + " closed", "outer ConnState " + tc.conn + " closed",
				"ShutdownInitiated", "inner OnShutdown", "outer OnShutdown", "late OnShutdown",
			}
			// Those of the shutdown run on goroutines of their own.
			patience, cancel := context.WithTimeout(bg, 5*time.Second)
			defer cancel()
			for range want {
				select {
				case <-noted:
				case <-patience.Done(): // the comparison says what is missing
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			inOrder := func(list []string) (of []string) {
				for _, line := range list {
					if strings.Contains(line, "ConnState") {
						of = append(of, line)
					}
				}
				return of
			}
			if diff := cmp.Diff(inOrder(want), inOrder(got)); diff != "" {
				t.Errorf("order of ConnState (-want +got):\n%s", diff)
			}
		})
	}
}

// TestInnerShutdown: the Shutdown of the inner http.Server stops the Server, and
// loses no request.
func TestInnerShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		inner := &http.Server{Handler: sleeper}
		s := serve(t, &graceful.Server{Server: inner}, l)
		c := newClient(t, l.dial())
		c.ask("/3s")
		synctest.Wait()
		s.stopAt = time.Now()
		if err := inner.Shutdown(bg); err != nil {
			t.Error(err)
		}
		c.expect("done")
		if got := s.end(); got != 3*time.Second {
			t.Errorf("over after %v", got)
		}
		if got := s.Report().Reason; got != "Shutdown of the http.Server" {
			t.Errorf("the reason is %q", got)
		}
	})
}

// TestVeto: BeforeShutdown is asked by Stop, and no more than once at a time;
// a veto leaves the server as it was. Shutdown does not ask.
func TestVeto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		var asked atomic.Int32
		srv := &graceful.Server{
			Server:         &http.Server{Handler: text("ok")},
			BeforeShutdown: func() bool { asked.Add(1); time.Sleep(time.Second); return false },
		}
		s := serve(t, srv, l)
		c := newClient(t, l.dial())
		for range 3 {
			s.Stop(0)
		}
		time.Sleep(time.Minute)
		if got := c.get("/", "ok"); asked.Load() != 1 || got.close || s.Phase() != graceful.PhaseServing {
			t.Errorf("asked %d times; %+v; %v", asked.Load(), got, s.Phase())
		}
		if !s.lines.has("refused by BeforeShutdown") {
			t.Errorf("log: %q", s.lines.all())
		}
		s.Stop(0)
		time.Sleep(time.Minute)
		if asked.Load() != 2 {
			t.Errorf("asked %d times", asked.Load())
		}
		s.stopAt = time.Now()
		if err := s.Shutdown(bg); err != nil {
			t.Error(err)
		}
		if got := s.end(); got != 0 || asked.Load() != 2 {
			t.Errorf("over after %v, asked %d times", got, asked.Load())
		}
	})
}

// TestDelayServes: during ShutdownDelay everything is served as before, new
// connections too; HTTP/1 responses say close.
func TestDelayServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: text("ok")}, ShutdownDelay: 10 * time.Second}, l)
		kept := newClient(t, l.dial())
		if kept.get("/", "ok").close {
			t.Error("close before the shutdown")
		}
		s.stop()
		for range 9 {
			time.Sleep(time.Second)
			if !newClient(t, l.dial()).get("/", "ok").close {
				t.Error("no close while delaying")
			}
		}
		if !kept.get("/", "ok").close {
			t.Error("no close while delaying on a kept connection")
		}
		if got := s.end(); got != 10*time.Second {
			t.Errorf("over after %v", got)
		}
	})
}

// TestPanics: a panic of a handler or a hook has the effect that it has under
// net/http, and does not harm other requests, also while draining.
func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		var logged lockedBuffer
		mux := http.NewServeMux()
		mux.Handle("/10s", sleeper)
		mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("on purpose") })
		inner := &http.Server{Handler: mux, ErrorLog: log.New(&logged, "", 0)}
		inner.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				panic("hook on purpose")
			}
		}
		s := serve(t, &graceful.Server{Server: inner, Timeout: time.Minute}, l)
		long := newClient(t, l.dial())
		long.ask("/10s")
		hung := newClient(t, l.dial())
		hung.send("GET /panic HTTP/1.1\r\nHost: h\r\n") // the rest comes later
		for _, path := range []string{"/abort", "/panic"} {
			c := newClient(t, l.dial())
			c.ask(path)
			if got := c.answer(); got.err != io.ErrUnexpectedEOF && got.err != io.EOF {
				t.Errorf("%s: got %+v", path, got)
			}
		}
		quiet := newClient(t, l.dial())
		quiet.ask("/none")
		if got := quiet.answer(); got.status != 404 {
			t.Errorf("got %+v", got)
		}
		synctest.Wait()
		s.stop()
		synctest.Wait()
		hung.send("\r\n")
		if got := hung.answer(); got.err == nil {
			t.Errorf("got %+v", got)
		}
		long.expect("done")
		if got := s.end(); got != 10*time.Second {
			t.Errorf("over after %v\n%v", got, s.Report())
		}
		text := logged.String()
		for what, n := range map[string]int{"panic serving client: on purpose": 2, "panic serving client: hook on purpose": 1} {
			if got := strings.Count(text, what); got != n {
				t.Errorf("%q was logged %d times, want %d:\n%s", what, got, n, text)
			}
		}
	})
}

// TestHooksOnce: ShutdownInitiated and the functions registered for the shutdown,
// with the Server and with its http.Server, run once, however often and by whatever
// means the shutdown is begun; when the listeners are closed, so that a successor
// finds the port free, or with ShutdownSendRetryAfter, which keeps them open, when
// draining begins. Each has a goroutine of its own: one that does not return holds
// nothing up.
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
				t.Run(fmt.Sprintf("%s, ShutdownSendRetryAfter %v, delay %v", name, retryAfter, delay), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newVirtListener()
						closed := make(chan struct{})
						killed := name == "Close" || name == "Stop, Close" || name == "a context that ended"
						// Closing takes almost as long as the hooks wait for it, and a
						// request is in progress.
						cl := &hookedListener{Listener: l, close: func() error {
							if !killed {
								time.Sleep(900 * ms)
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
						srv := &graceful.Server{Server: inner, ShutdownSendRetryAfter: retryAfter, ShutdownDelay: delay, ShutdownInitiated: note("initiated")}
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
