package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

// TestGroupOfOurs: a Server and a Listener in one group, each with a client in
// the middle of something. During the delay both serve on, unready; then both
// finish what they hold, and no connection is cut.
func TestGroupOfOurs(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(entered)
				<-finish
			}
			io.WriteString(w, "whole")
		})},
		// In a group these are the group's.
		ShutdownDelay: time.Hour,
		IdleGrace:     10 * time.Millisecond,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo := graceful.NewListener(l)
	echo.IdleGrace = 10 * time.Millisecond

	g := &graceful.Group{Budget: 30 * time.Second, ShutdownDelay: 300 * time.Millisecond}
	g.Add("web", srv)
	g.Add("echo", echo, func() error {
		for {
			c, err := echo.Accept()
			if err != nil {
				return err // net.ErrClosed at the end
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					io.WriteString(c, line)
				}
			}()
		}
	})
	stopped, err := g.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + srv.Addrs()[0].String()
	probe := func(h http.Handler) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		return w.Code
	}
	if a, b := probe(srv.ReadyHandler()), probe(g.ReadyHandler()); a != 200 || b != 200 {
		t.Errorf("before: ready handlers say %d, %d", a, b)
	}

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string) string {
		resp, err := client.Get(base + path)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprint(string(b), " ", err)
	}
	slow := make(chan string, 1)
	go func() { slow <- get("/slow") }()
	<-entered
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, "one")
	lines := bufio.NewReader(conn)
	if s, err := lines.ReadString('\n'); s != "one\n" {
		t.Fatal(s, err)
	}

	begun := time.Now()
	g.Stop("test")
	// Phase tells when the group's goroutine has come to its first step.
	eventually(t, func() (bool, any) { p := srv.Phase(); return p > graceful.PhaseServing, p })
	if a, b := probe(srv.ReadyHandler()), probe(g.ReadyHandler()); a != 503 || b != 503 {
		t.Errorf("in the delay: ready handlers say %d, %d", a, b)
	}
	if s := get("/"); s != "whole <nil>" && time.Since(begun) < g.ShutdownDelay {
		t.Errorf("a new request in the delay got %s", s)
	}
	eventually(t, func() (bool, any) { p := srv.Phase(); return p > graceful.PhaseDelaying, p })
	if d := time.Since(begun); d < g.ShutdownDelay {
		t.Errorf("drained after %v", d)
	}
	close(finish)
	if s := <-slow; s != "whole <nil>" {
		t.Errorf("the slow request got %s", s)
	}
	if _, err := lines.ReadString('\n'); err != io.EOF {
		t.Errorf("the echo's client saw %v", err)
	}
	<-stopped
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	var got []string
	for _, e := range g.Report().Entries {
		got = append(got, e.Name+" "+string(e.Outcome))
	}
	if diff := cmp.Diff([]string{"web done", "echo done"}, got); diff != "" {
		t.Error(diff, g.Report())
	}
}

// TestGroupBoundsTimeout: a Server's own Timeout is longer than the budget,
// and a request that hangs is cut within the budget.
func TestGroupBoundsTimeout(t *testing.T) {
	entered, free := make(chan struct{}), make(chan struct{})
	defer close(free)
	srv := &graceful.Server{
		Timeout: time.Hour,
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-free // deaf to its context
		})},
	}
	g := &graceful.Group{Budget: time.Second, NoSignalHandling: true}
	g.Add("web", srv)
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	end := make(chan error, 1)
	go func() {
		_, err := client.Get("http://" + srv.Addrs()[0].String())
		end <- err
	}()
	<-entered
	err := g.Shutdown(t.Context())
	// Left behind: on a machine that is so busy that 100 ms pass between the
	// context's end and Shutdown's return.
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, graceful.ErrLeftBehind) || !strings.HasPrefix(err.Error(), "web: ") {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-end; err == nil {
		t.Error("the hanging request was answered")
	}
	if r := g.Report(); r.Took > time.Minute {
		t.Error(r)
	}
	<-srv.StopChan()
}

// TestGroupAddressInUse: what a Server can not bind is Start's error, and the
// one that was started before it stops.
func TestGroupAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	one := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}}
	two := &graceful.Server{Server: &http.Server{Addr: l.Addr().String()}}
	g := &graceful.Group{Budget: 10 * time.Second}
	g.Add("one", one)
	g.Add("two", two)
	_, err = g.Start(t.Context())
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "two: ") {
		t.Errorf("Start: %v", err)
	}
	if one.Phase() != graceful.PhaseStopped {
		t.Errorf("the first is %v", one.Phase())
	}
}

// TestGroupAddTwice: one server can not be in two groups, nor twice in one.
func TestGroupAddTwice(t *testing.T) {
	srv := &graceful.Server{}
	var g, h graceful.Group
	g.Add("one", srv)
	for _, g := range []*graceful.Group{&g, &h} {
		func() {
			defer func() {
				if v := fmt.Sprint(recover()); !strings.HasPrefix(v, "graceful: ") {
					t.Errorf("panic %q", v)
				}
			}()
			g.Add("two", srv)
		}()
	}
}

func TestGroupReadyHandler(t *testing.T) {
	g := &graceful.Group{NoSignalHandling: true}
	probe := func(code int, body string) {
		t.Helper()
		w := httptest.NewRecorder()
		g.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != code || w.Body.String() != body || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%d %q %v, want %d %q", w.Code, w.Body, w.Header(), code, body)
		}
	}
	probe(503, "starting\n")
	g.Start(t.Context())
	probe(200, "ready\n")
	g.Shutdown(t.Context())
	probe(503, "shutting down\n")
}

// TestGroupHTTP: net/http's own server in a group drains what it has, and is
// closed at the deadline.
func TestGroupHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in, out := make(chan struct{}, 2), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in <- struct{}{}
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		<-out
		io.WriteString(w, "whole")
	})}
	g := &graceful.Group{Budget: time.Second, NoSignalHandling: true}
	g.AddFuncs("http", func() error { return srv.Serve(l) }, graceful.ShutdownThenClose(srv))
	stopped, err := g.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	hang, slow := make(chan error, 1), make(chan string, 1)
	go func() {
		_, err := client.Get("http://" + l.Addr().String() + "/hang")
		hang <- err
	}()
	go func() {
		r, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			slow <- err.Error()
			return
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		slow <- string(b)
	}()
	<-in
	<-in
	go g.Shutdown(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { close(out) })
	<-stopped
	if got := <-slow; got != "whole" {
		t.Errorf("the slow request got %q", got)
	}
	if err := <-hang; err == nil {
		t.Error("the hanging request was not cut")
	}
	if err := g.Wait(); err == nil || err.Error() != "http: context deadline exceeded" {
		t.Errorf("error %v", err)
	}
}

// readyGroup starts a group with a Server for each Health. They do not serve:
// their readiness is that of their Health.
func readyGroup(t *testing.T, healths ...*graceful.Health) *graceful.Group {
	g := &graceful.Group{NoSignalHandling: true}
	for i, h := range healths {
		quit := make(chan struct{})
		srv := &graceful.Server{Server: &http.Server{}, Health: h, ShutdownInitiated: func() { close(quit) }}
		g.Add(string(rune('a'+i)), srv, func() error { <-quit; return nil })
	}
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

func probeGroup(ctx context.Context, h http.Handler) (code int, body string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/readyz", nil))
	return w.Code, w.Body.String()
}

// TestGroupReadyAsksHealth: the group's readiness is all of its members'. It
// used to be whether the application had said that it is ready, without the
// checks and without Health.Shutdown.
func TestGroupReadyAsksHealth(t *testing.T) {
	fails := func(context.Context) error { return errors.New("down") }
	for _, tc := range []struct {
		name string
		do   func(h *graceful.Health)
		want string // in parentheses; "" for ready
	}{
		{"nothing", func(h *graceful.Health) {}, ""},
		{"a check that succeeds", func(h *graceful.Health) {
			h.AddCheck("db", func(context.Context) error { return nil })
		}, ""},
		{"a live check that fails", func(h *graceful.Health) { h.AddLiveCheck("loop", fails) }, ""},
		{"a check that fails", func(h *graceful.Health) { h.AddCheck("db", fails) }, "db"},
		{"a check that panics", func(h *graceful.Health) {
			h.AddCheck("db", func(context.Context) error { panic("boom") })
		}, "db"},
		{"a check that hangs", func(h *graceful.Health) {
			h.AddCheck("db", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}, "db"},
		{"Shutdown", (*graceful.Health).Shutdown, "shutdown"},
		{"SetReady(false)", func(h *graceful.Health) { h.SetReady(false) }, "startup"},
		{"WaitForReady", func(h *graceful.Health) { h.WaitForReady = true }, "startup"},
		{"several", func(h *graceful.Health) {
			h.Shutdown()
			h.SetReady(false)
			h.AddCheck("db", fails)
			h.AddCheck("cache", fails)
		}, "startup, shutdown, db, cache"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &graceful.Health{}
				tc.do(h)
				g := readyGroup(t, &graceful.Health{}, h)
				defer g.Shutdown(t.Context())
				own, _ := probeGroup(t.Context(), h.ReadyHandler())
				code, body := probeGroup(t.Context(), g.ReadyHandler())
				want := "ready\n"
				if tc.want != "" {
					want = "not ready: b (" + tc.want + ")\n"
				}
				if code != own || body != want || g.Ready() != (tc.want == "") {
					t.Errorf("the group's ready handler says %d %q, want %d %q; Ready says %v", code, body, own, want, g.Ready())
				}
			})
		})
	}
}

// TestGroupReadyBlocks: the checks of all members run at once, and a shutdown
// that begins meanwhile is heard of.
func TestGroupReadyBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		a, b := &graceful.Health{}, &graceful.Health{CheckTimeout: 3 * time.Second}
		a.AddCheck("one", hangs)
		b.AddCheck("two", hangs)
		g := readyGroup(t, a, b)
		start := time.Now()
		_, body := probeGroup(t.Context(), g.ReadyHandler())
		if d := time.Since(start); body != "not ready: a (one), b (two)\n" || d != 3*time.Second {
			t.Errorf("%q after %v", body, d)
		}
		time.Sleep(2 * time.Second) // the results are kept for a second
		time.AfterFunc(time.Second, func() { g.Stop("test") })
		if _, body := probeGroup(t.Context(), g.ReadyHandler()); body != "shutting down\n" {
			t.Errorf("%q of a probe in which the shutdown began", body)
		}
		g.Wait()
	})
}

// TestGroupReadyByAnother: a probe that comes by a server outside the group,
// which is shutting down, leaves the Health of the members as it is.
func TestGroupReadyByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := &graceful.Group{NoSignalHandling: true}
		var ctx context.Context // one whose ShutdownBegun is closed
		other.Go("worker", func(c context.Context) error { ctx = c; return nil })
		other.Run(t.Context())
		<-graceful.ShutdownBegun(ctx)

		g := readyGroup(t, &graceful.Health{})
		defer g.Shutdown(t.Context())
		if code, body := probeGroup(context.WithoutCancel(ctx), g.ReadyHandler()); code != 200 {
			t.Errorf("%d %q", code, body)
		}
		if !g.Ready() {
			t.Error("it stays unready")
		}
	})
}

// TestGroupStartedLate: a worker that a worker starts in the last step has a
// cancelled context and is waited for like the others.
func TestGroupStartedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("one", func(ctx context.Context) error {
			<-ctx.Done()
			s.worker(g, "two", time.Second)
			g.Defer("late", func(context.Context) error { s.note("late cleaned"); return nil })
			return nil
		})
		g.Start(t.Context())
		if err := g.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		s.want(t, "0 two finishes", "1 two done", "1 late cleaned")
	})
}

func TestGroupBadFields(t *testing.T) {
	for _, tc := range []struct {
		group *graceful.Group
		want  string
	}{
		{&graceful.Group{Budget: -1}, "graceful: Group.Budget is negative: -1ns"},
		{&graceful.Group{ShutdownDelay: -1}, "graceful: Group.ShutdownDelay is negative: -1ns"},
		{&graceful.Group{Budget: time.Second, ShutdownDelay: time.Second},
			"graceful: Group.Budget of 1s leaves nothing for the servers: ShutdownDelay 1s, WorkerReserve 100ms, CleanupReserve 100ms"},
		{&graceful.Group{Budget: time.Second, ShutdownDelay: time.Second, WorkerReserve: -1, CleanupReserve: -1},
			"graceful: Group.Budget of 1s leaves nothing for the servers: ShutdownDelay 1s, WorkerReserve 0s, CleanupReserve 0s"},
	} {
		g := tc.group
		g.Defer("db", func(context.Context) error { panic("ran") })
		if _, err := g.Start(t.Context()); err == nil || err.Error() != tc.want {
			t.Errorf("error %v, want %s", err, tc.want)
		}
	}
}

func TestGroupMisuse(t *testing.T) {
	g := &graceful.Group{NoSignalHandling: true}
	ok := func(context.Context) error { return nil }
	for name, f := range map[string]func(){
		"nil serve":                   func() { g.AddFuncs("x", nil, ok) },
		"nil shutdown":                func() { g.AddFuncs("x", func() error { return nil }, nil) },
		"nil worker":                  func() { g.Go("x", nil) },
		"nil cleanup":                 func() { g.Defer("x", nil) },
		"nil member":                  func() { g.Add("x", nil) },
		"nil Server":                  func() { g.Add("x", (*graceful.Server)(nil)) },
		"nil Listener":                func() { g.Add("x", (*graceful.Listener)(nil)) },
		"no such server to stop last": func() { g.StopLast("y") },
		"server after Start": func() {
			g.Start(t.Context())
			defer g.Shutdown(t.Context())
			g.AddFuncs("x", func() error { return nil }, ok)
		},
		"StopLast after Start": func() {
			g := &graceful.Group{NoSignalHandling: true}
			g.AddFuncs("x", func() error { return nil }, ok)
			g.Start(t.Context())
			defer g.Shutdown(t.Context())
			g.StopLast("x")
		},
	} {
		func() {
			defer func() {
				if v, _ := recover().(string); !strings.HasPrefix(v, "graceful: Group") {
					t.Errorf("%s: panic %q", name, v)
				}
			}()
			f()
		}()
	}
}

// TestGroupTooLate: what comes once its step is over does not run, and the log
// says so; what a worker left running learns that the group is over.
func TestGroupTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{NoSignalHandling: true, LogFunc: func(format string, args ...any) {
			if strings.Contains(format, "too late") {
				s.note(fmt.Sprintf(format, args...))
			}
		}}
		g.Go("mail", func(ctx context.Context) error {
			context.AfterFunc(graceful.Finishing(ctx), func() { s.note("over") })
			return nil
		})
		g.Defer("db", func(context.Context) error {
			g.Go("worker", func(context.Context) error { panic("ran") })
			time.Sleep(time.Second)
			g.Defer("cache", func(context.Context) error { panic("ran") })
			time.Sleep(time.Second)
			return nil
		})
		if err := g.Run(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		s.want(t, "0 graceful: worker worker was added too late and is not started",
			"1 graceful: cleanup cache was added too late and is not run", "2 over")
	})
}
