package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

// groupScript notes what happens in a bubble, and when: seconds since its start.
type groupScript struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func newGroupScript() *groupScript { return &groupScript{start: time.Now()} }

func (s *groupScript) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf("%g %s", time.Since(s.start).Seconds(), what))
}

func (s *groupScript) want(t *testing.T, lines ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(lines, s.lines); diff != "" {
		t.Error(diff)
	}
}

// server adds a server whose shutdown takes so long, and which honours its
// context or does not (then it is endless at the deadline).
func (s *groupScript) server(g *graceful.Group, name string, takes time.Duration) {
	quit := make(chan struct{})
	g.Server(name, func() error {
		s.note(name + " serves")
		<-quit
		return http.ErrServerClosed
	}, func(ctx context.Context) error {
		s.note(name + " drains")
		close(quit)
		return s.work(ctx, name, takes)
	})
}

// work takes so long, or until ctx ends.
func (s *groupScript) work(ctx context.Context, name string, takes time.Duration) error {
	select {
	case <-time.After(takes):
		s.note(name + " done")
		return nil
	case <-ctx.Done():
		s.note(name + " cut")
		return ctx.Err()
	}
}

// worker adds a worker that needs so long after its context's end.
func (s *groupScript) worker(g *graceful.Group, name string, takes time.Duration) {
	g.Go(name, func(ctx context.Context) error {
		<-ctx.Done()
		s.note(name + " finishes")
		if err := s.work(graceful.Finishing(ctx), name, takes); err != nil {
			return err
		}
		return ctx.Err()
	})
}

func (s *groupScript) cleanup(g *graceful.Group, name string, takes time.Duration) {
	g.Defer(name, func(ctx context.Context) error {
		s.note(name + " begins")
		return s.work(ctx, name, takes)
	})
}

// groupOutcomes is what a report says of each, without errors.
func groupOutcomes(r graceful.GroupReport) []string {
	var list []string
	for _, e := range r.Entries {
		list = append(list, fmt.Sprintf("%s %s %s %g", e.Kind, e.Name, e.Outcome, e.Took.Seconds()))
	}
	return list
}

const groupForever = 1000 * time.Hour

func TestGroupOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{Timeout: 20 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true}
		s.server(g, "web", 2*time.Second)
		s.server(g, "admin", time.Second)
		s.worker(g, "mail", 3*time.Second)
		s.cleanup(g, "db", time.Second)
		s.cleanup(g, "cache", time.Second)
		g.Go("watch", func(ctx context.Context) error {
			<-graceful.Draining(ctx)
			s.note("watch sees it")
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		stopped, err := g.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.lines = nil // the order of starting is another test's
		if !g.Ready() {
			t.Error("not ready while running")
		}
		time.Sleep(5 * time.Second)
		cancel()
		synctest.Wait()
		if g.Ready() {
			t.Error("ready after the shutdown's first moment")
		}
		select {
		case <-stopped:
			t.Error("stopped at once")
		default:
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		// Both servers drain at 6 s, in any order.
		slices.Sort(s.lines[1:3])
		s.want(t,
			"5 watch sees it",
			"6 admin drains", "6 web drains", "7 admin done", "8 web done",
			"8 mail finishes", "11 mail done",
			"11 cache begins", "12 cache done", "12 db begins", "13 db done")
		want := []string{
			"server web done 2", "server admin done 1", "worker mail done 3", "worker watch done 0",
			"cleanup cache done 1", "cleanup db done 1",
		}
		r := g.Report()
		if diff := cmp.Diff(want, groupOutcomes(r)); diff != "" {
			t.Error(diff)
		}
		if r.Took != 8*time.Second || !r.Over || r.Killed || r.Reason != "context ended: context canceled" {
			t.Errorf("report: %+v", r)
		}
	})
}

func queueOf(list ...int) <-chan int {
	c := make(chan int, len(list))
	for _, i := range list {
		c <- i
	}
	return c
}

// TestGroupFailure: who fails by himself begins the shutdown and comes first.
func TestGroupFailure(t *testing.T) {
	boom := errors.New("boom")
	sleepThen := func(err error) func() error {
		return func() error { time.Sleep(time.Second); return err }
	}
	ok := func(context.Context) error { return nil }
	for _, tc := range []struct {
		name   string
		add    func(g *graceful.Group)
		reason string
		err    string
	}{
		{"worker", func(g *graceful.Group) {
			g.Go("mail", func(context.Context) error { return sleepThen(boom)() })
		}, "worker mail failed: boom", "mail: boom\nweb: late"},
		{"worker that says canceled before it was", func(g *graceful.Group) {
			g.Go("mail", func(context.Context) error { return sleepThen(context.Canceled)() })
		}, "worker mail failed: context canceled", "mail: context canceled\nweb: late"},
		{"server", func(g *graceful.Group) { g.Server("api", sleepThen(boom), ok) },
			"server api failed: boom", "api: boom\nweb: late"},
		{"server whose listener is closed under it", func(g *graceful.Group) { g.Server("api", sleepThen(net.ErrClosed), ok) },
			"server api failed: use of closed network connection", "api: use of closed network connection\nweb: late"},
		{"server that ends", func(g *graceful.Group) { g.Server("api", sleepThen(nil), ok) },
			"server api ended", "web: late"},
		{"server that another stopped", func(g *graceful.Group) { g.Server("api", sleepThen(http.ErrServerClosed), ok) },
			"server api ended", "web: late"},
		{"Goexit", func(g *graceful.Group) {
			g.Go("mail", func(context.Context) error { runtime.Goexit(); return nil })
		}, "worker mail failed: graceful: the function called runtime.Goexit",
			"mail: graceful: the function called runtime.Goexit\nweb: late"},
		{"nil from a worker is none", func(g *graceful.Group) {
			g.Go("once", func(context.Context) error { return nil })
			g.Go("mail", func(context.Context) error { return sleepThen(boom)() })
		}, "worker mail failed: boom", "mail: boom\nweb: late"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &graceful.Group{NoSignalHandling: true}
				quit := make(chan struct{})
				g.Server("web", func() error { <-quit; return errors.New("late") },
					func(context.Context) error { close(quit); return nil })
				tc.add(g)
				err := g.Run(t.Context())
				if err == nil || err.Error() != tc.err {
					t.Errorf("error %q, want %q", err, tc.err)
				}
				if r := g.Report(); r.Reason != tc.reason {
					t.Errorf("reason %q, want %q", r.Reason, tc.reason)
				}
			})
		})
	}
}

func TestGroupPanic(t *testing.T) {
	g := &graceful.Group{NoSignalHandling: true}
	cleaned := false
	g.Go("mail", func(context.Context) error { panic(io.ErrUnexpectedEOF) })
	g.Defer("db", func(context.Context) error { cleaned = true; panic("too") })
	err := g.Run(t.Context())
	var p *graceful.PanicError
	if !errors.As(err, &p) || p.Value != io.ErrUnexpectedEOF || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(string(p.Stack), "TestGroupPanic") {
		t.Errorf("the stack does not have the worker:\n%s", p.Stack)
	}
	if !strings.HasPrefix(err.Error(), "mail: panic: unexpected EOF\n") || !strings.Contains(err.Error(), "\ndb: panic: too\n") {
		t.Errorf("error %v", err)
	}
	if !cleaned {
		t.Error("no cleanup")
	}
}

// TestGroupJoinedCancel: an error joined to the context's is not lost with it.
func TestGroupJoinedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("mail", func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("mail: %w", errors.Join(ctx.Err(), boom))
		})
		g.Go("wrapped", func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("receive: %w", ctx.Err())
		})
		g.Start(t.Context())
		if err := g.Shutdown(t.Context()); err == nil || err.Error() != "mail: mail: context canceled\nboom" {
			t.Errorf("error %v", err)
		}
	})
}

// TestGroupAllReturned: workers alone end the group by returning, as with errgroup.
func TestGroupAllReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		start := time.Now()
		g.Go("one", func(context.Context) error { time.Sleep(time.Second); return nil })
		g.Go("two", func(context.Context) error {
			g.Go("three", func(ctx context.Context) error { time.Sleep(3 * time.Second); return ctx.Err() })
			return nil
		})
		if err := g.Run(t.Context()); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		g.Go("late", func(context.Context) error { panic("ran") })
		g.Defer("late", func(context.Context) error { panic("ran") })
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

// TestGroupShutdownBeforeStart: it is remembered, and cleanup still runs.
func TestGroupShutdownBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{NoSignalHandling: true, Timeout: time.Second}
		s.server(g, "web", 0)
		s.worker(g, "mail", 0)
		s.cleanup(g, "db", 0)
		if err := g.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if err := g.Run(t.Context()); err != nil {
			t.Error(err)
		}
		s.want(t, "3600 db begins", "3600 db done")
		want := []string{"server web not started 0", "worker mail not started 0", "cleanup db done 0"}
		if diff := cmp.Diff(want, groupOutcomes(g.Report())); diff != "" {
			t.Error(diff)
		}
		if _, err := g.Start(t.Context()); err == nil {
			t.Error("a second Start has no error")
		}
	})
}

func TestGroupShutdownMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		newGroupScript().server(g, "web", time.Second)
		g.Start(t.Context())
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := g.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Shutdown(ended); err != nil || g.Report().Killed {
			t.Errorf("Shutdown after the end: %v", err)
		}
	})
}

func TestGroupBadFields(t *testing.T) {
	for _, tc := range []struct {
		group *graceful.Group
		want  string
	}{
		{&graceful.Group{Timeout: -1}, "graceful: Group.Timeout is negative: -1ns"},
		{&graceful.Group{ShutdownDelay: -1}, "graceful: Group.ShutdownDelay is negative: -1ns"},
		{&graceful.Group{Timeout: time.Second, ShutdownDelay: time.Second},
			"graceful: Group.Timeout of 1s leaves nothing for the servers: ShutdownDelay 1s, WorkerReserve 100ms, CleanupReserve 100ms"},
		{&graceful.Group{Timeout: time.Second, ShutdownDelay: time.Second, WorkerReserve: -1, CleanupReserve: -1},
			"graceful: Group.Timeout of 1s leaves nothing for the servers: ShutdownDelay 1s, WorkerReserve 0s, CleanupReserve 0s"},
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
		"nil serve":    func() { g.Server("x", nil, ok) },
		"nil shutdown": func() { g.Server("x", func() error { return nil }, nil) },
		"nil worker":   func() { g.Go("x", nil) },
		"nil cleanup":  func() { g.Defer("x", nil) },
		"nil member":   func() { g.Add("x", nil) },
		"server after Start": func() {
			g.Start(t.Context())
			defer g.Shutdown(t.Context())
			g.Server("x", func() error { return nil }, ok)
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
	g := &graceful.Group{Timeout: time.Second, NoSignalHandling: true}
	g.Server("http", func() error { return srv.Serve(l) }, graceful.ShutdownThenClose(srv))
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

// TestGroupStopThenKill: a stop without a context, as gRPC's, is killed when
// the servers' time is up.
func TestGroupStopThenKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		quit := make(chan struct{})
		g := &graceful.Group{Timeout: 10 * time.Second, NoSignalHandling: true}
		g.Server("grpc", func() error { <-quit; return nil },
			graceful.StopThenKill(func() { s.note("GracefulStop"); <-quit }, func() { s.note("Stop"); close(quit) }))
		g.Start(t.Context())
		err := g.Shutdown(t.Context())
		if err == nil || err.Error() != "grpc: context deadline exceeded" {
			t.Errorf("error %v", err)
		}
		s.want(t, "0 GracefulStop", "9.75 Stop")
	})
}

// TestFinishing: it ends with the worker's time, with a cause, and has the
// values; outside a group it never ends.
func TestFinishing(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{Timeout: 10 * time.Second, NoSignalHandling: true}
		g.Go("mail", func(ctx context.Context) error {
			ctx = context.WithValue(ctx, key{}, "mine")
			<-ctx.Done()
			f := graceful.Finishing(ctx)
			child, cancel := context.WithCancel(f)
			defer cancel()
			if f.Err() != nil || child.Err() != nil || context.Cause(f) != nil || f.Value(key{}) != "mine" {
				t.Errorf("at the stop: %v, %v, %v", f.Err(), context.Cause(f), f.Value(key{}))
			}
			if graceful.Draining(f) == nil {
				t.Error("it does not know the group")
			}
			start := time.Now()
			<-child.Done()
			if d := time.Since(start); d != 9750*time.Millisecond || context.Cause(f) != graceful.ErrLeftBehind || context.Cause(child) != graceful.ErrLeftBehind {
				t.Errorf("ended after %v, cause %v", d, context.Cause(f))
			}
			return nil
		})
		g.Start(t.Context())
		g.Shutdown(t.Context())
	})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "mine"))
	cancel()
	if f := graceful.Finishing(ctx); f.Err() != nil || f.Value(key{}) != "mine" {
		t.Errorf("outside a group: %v, %v", f.Err(), f.Value(key{}))
	}
}

// TestGroupStop: a worker may end its own group.
func TestGroupStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("once", func(ctx context.Context) error {
			g.Stop("enough")
			g.Stop("more")
			<-ctx.Done()
			return nil
		})
		if err := g.Run(t.Context()); err != nil || g.Report().Reason != "enough" {
			t.Errorf("%v, %s", err, g.Report())
		}
	})
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
		s.want(t, "0 graceful: worker worker came too late to be started",
			"1 graceful: cleanup cache came too late to be run", "2 over")
	})
}

// TestGroupNoDelay: with the only server gone nobody needs the delay; and a
// worker's return is not the end while there is one.
func TestGroupNoDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true, ShutdownDelay: time.Hour}
		g.Go("once", func(context.Context) error { return nil })
		g.Server("web", func() error { time.Sleep(time.Second); return nil }, func(context.Context) error { return nil })
		start := time.Now()
		err := g.Run(t.Context())
		if d := time.Since(start); err != nil || d != time.Second || g.Report().Reason != "server web ended" {
			t.Errorf("%v after %v: %s", err, d, g.Report())
		}
	})
}
