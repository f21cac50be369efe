package graceful_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
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

// TestInnerShutdown: whoever holds nothing but the http.Server can stop it, and
// loses nobody by it.
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

// TestPanics: a handler or a hook that panics does what it does under net/http,
// and nobody else's request suffers, also while draining.
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
