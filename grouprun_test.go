package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
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
	g.AddFuncs(name, func() error {
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
		g := &graceful.Group{Budget: 20 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true}
		s.server(g, "web", 2*time.Second)
		s.server(g, "admin", time.Second)
		s.worker(g, "mail", 3*time.Second)
		s.cleanup(g, "db", time.Second)
		s.cleanup(g, "cache", time.Second)
		g.Go("watch", func(ctx context.Context) error {
			<-graceful.ShutdownBegun(ctx)
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

// TestGroupDraining: the group's channels, and those of the contexts that it makes,
// are closed at the two moments of the shutdown.
func TestGroupDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{ShutdownDelay: 3 * time.Second, NoSignalHandling: true}
		type key struct{}
		ctx := g.Context(context.WithValue(t.Context(), key{}, "kept")) // before Start
		if ctx.Value(key{}) != "kept" {
			t.Error("the parent's values are lost")
		}
		end := make(chan struct{})
		g.AddFuncs("foreign", func() error { <-end; return nil }, func(context.Context) error { close(end); return nil })
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		began := time.Now()
		g.Stop("")
		<-g.ShutdownBegun()
		<-graceful.ShutdownBegun(ctx)
		if took := time.Since(began); took != 0 {
			t.Errorf("ShutdownBegun after %v", took)
		}
		<-graceful.Draining(ctx)
		<-g.Draining()
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("Draining after %v", took)
		}
		if err := g.Wait(); err != nil || ctx.Err() != nil {
			t.Error(err, ctx.Err())
		}
	})
}

// TestGroupStopLast: servers that stop last start before the others, serve through all
// steps, and have a part of the cleanup's reserve.
func TestGroupStopLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{Budget: 20 * time.Second, CleanupReserve: 4 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true}
		s.server(g, "web", 2*time.Second)
		s.server(g, "metrics", groupForever)
		s.server(g, "pprof", time.Second)
		s.worker(g, "mail", 3*time.Second)
		s.cleanup(g, "db", groupForever)
		s.cleanup(g, "cache", time.Second)
		g.StopLast("metrics", "pprof")
		ctx, cancel := context.WithCancel(t.Context())
		stopped, err := g.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		cancel()
		<-stopped
		if err := g.Wait(); err == nil || !strings.Contains(err.Error(), "db: ") || !strings.Contains(err.Error(), "metrics: ") {
			t.Error(err)
		}
		// From the 7th second, in which workers have ended, 14 s are left. The cache
		// takes one of its third, and db half of the rest.
		want := []string{"server web done 2", "worker mail done 3", "cleanup cache done 1", "cleanup db cut 6.25", "server metrics cut 6.5", "server pprof done 1"}
		if diff := cmp.Diff(want, groupOutcomes(g.Report())); diff != "" {
			t.Error(diff)
		}
		s.mu.Lock()
		lines := slices.DeleteFunc(slices.Clone(s.lines), func(l string) bool { return strings.HasSuffix(l, "serves") })
		s.mu.Unlock()
		wantLines := []string{"2 web drains", "4 web done", "4 mail finishes", "7 mail done",
			"7 cache begins", "8 cache done", "8 db begins", "14.25 db cut",
			"14.25 metrics drains", "14.25 pprof drains", "15.25 pprof done", "20.75 metrics cut"}
		slices.Sort(lines[8:10])
		if diff := cmp.Diff(wantLines, lines); diff != "" {
			t.Error(diff)
		}
	})
}

// TestGroupStopLastStarts: a server that stops last is the first to be started.
func TestGroupStopLastStarts(t *testing.T) {
	g := &graceful.Group{NoSignalHandling: true}
	for _, name := range []string{"web", "metrics"} {
		g.Add(name, &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:99999"}})
	}
	g.StopLast("metrics")
	_, err := g.Start(t.Context())
	var outcomes []string
	for _, e := range g.Report().Entries {
		outcomes = append(outcomes, fmt.Sprintf("%s %s", e.Name, e.Outcome))
	}
	if want := []string{"web not started", "metrics failed"}; !slices.Equal(outcomes, want) || err == nil {
		t.Errorf("%q, %v", outcomes, err)
	}
}

// TestGroupStopLastAlone: servers that stop last do not keep a group going whose
// workers have returned, but one without workers.
func TestGroupStopLastAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, workers := range []int{0, 2} {
			s := newGroupScript()
			g := &graceful.Group{NoSignalHandling: true}
			s.server(g, "metrics", 0)
			g.StopLast("metrics")
			for range workers {
				g.Go("job", func(context.Context) error { time.Sleep(time.Minute); return nil })
			}
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			if err := g.Run(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			want := time.Hour
			if workers > 0 {
				want = time.Minute
			}
			if took := time.Since(began); took != want {
				t.Errorf("%d workers: the group took %v, want %v", workers, took, want)
			}
		}
	})
}

// TestGroupStopLastKill: a kill leaves the servers that stop last the time that it
// leaves the cleanup.
func TestGroupStopLastKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{CleanupReserve: 2 * time.Second, NoSignalHandling: true}
		s.server(g, "web", groupForever)
		s.server(g, "metrics", groupForever)
		s.cleanup(g, "db", time.Second)
		g.StopLast("metrics")
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g.Shutdown(ctx)
		g.Wait()
		// db would have half of the reserve, and keeps within it but for the notice.
		want := []string{"server web cut 0", "cleanup db cut 0.9", "server metrics cut 1.8"}
		if diff := cmp.Diff(want, groupOutcomes(g.Report())); diff != "" {
			t.Error(diff)
		}
	})
}

// TestGroupFailure: a part that fails by itself begins the shutdown, and its error
// comes first.
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
		{"server", func(g *graceful.Group) { g.AddFuncs("api", sleepThen(boom), ok) },
			"server api failed: boom", "api: boom\nweb: late"},
		{"server whose listener is closed under it", func(g *graceful.Group) { g.AddFuncs("api", sleepThen(net.ErrClosed), ok) },
			"server api failed: use of closed network connection", "api: use of closed network connection\nweb: late"},
		{"server that ends", func(g *graceful.Group) { g.AddFuncs("api", sleepThen(nil), ok) },
			"server api ended", "web: late"},
		{"server that another stopped", func(g *graceful.Group) { g.AddFuncs("api", sleepThen(http.ErrServerClosed), ok) },
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
				g.AddFuncs("web", func() error { <-quit; return nil },
					func(context.Context) error { close(quit); return errors.New("late") })
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

// TestGroupShutdownBeforeStart: it is remembered, and cleanup still runs.
func TestGroupShutdownBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{NoSignalHandling: true, Budget: time.Second}
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

// TestGroupStopThenKill: a stop without a context, as gRPC's, is killed when
// the servers' time is up.
func TestGroupStopThenKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		quit := make(chan struct{})
		g := &graceful.Group{Budget: 10 * time.Second, NoSignalHandling: true}
		g.AddFuncs("grpc", func() error { <-quit; return nil },
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
		g := &graceful.Group{Budget: 10 * time.Second, NoSignalHandling: true}
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

// TestGroupNoDelay: there is no delay if the only server has ended. The return of
// the last worker begins no shutdown while there is a server.
func TestGroupNoDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true, ShutdownDelay: time.Hour}
		g.Go("once", func(context.Context) error { return nil })
		g.AddFuncs("web", func() error { time.Sleep(time.Second); return nil }, func(context.Context) error { return nil })
		start := time.Now()
		err := g.Run(t.Context())
		if d := time.Since(start); err != nil || d != time.Second || g.Report().Reason != "server web ended" {
			t.Errorf("%v after %v: %s", err, d, g.Report())
		}
	})
}

// TestGroupServerEnds: what a serve function returns after its shutdown function
// was called is no error but a note, whatever it is; grpc-go's and cmux's errors
// for a stop that was asked for used to be errors of Run.
func TestGroupServerEnds(t *testing.T) {
	boom := errors.New("the server has been stopped\nand more")
	for _, tc := range []struct {
		name          string
		serve         func() error
		shutdown      error
		err           string // the beginning of Run's; "" for nil
		outcome, note string
	}{
		{"nil", func() error { return nil }, nil, "", "done", ""},
		{"http.ErrServerClosed", func() error { return http.ErrServerClosed }, nil, "", "done", ""},
		{"net.ErrClosed", func() error { return fmt.Errorf("accept: %w", net.ErrClosed) }, nil, "", "done", ""},
		{"its own", func() error { return boom }, nil, "", "done", "the server has been stopped"},
		{"its own, and shutdown fails", func() error { return boom }, io.ErrShortWrite,
			"web: short write", "failed", "the server has been stopped"},
		{"panic", func() error { panic("oh") }, nil, "web: panic: oh\n", "failed", ""},
		{"Goexit", func() error { runtime.Goexit(); return nil }, nil,
			"web: graceful: the function called runtime.Goexit", "failed", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				quit := make(chan struct{})
				g := &graceful.Group{NoSignalHandling: true}
				g.AddFuncs("web", func() error { <-quit; return tc.serve() },
					func(context.Context) error { close(quit); return tc.shutdown })
				g.Go("worker", func(context.Context) error { return nil })
				g.Start(t.Context())
				err := g.Shutdown(t.Context())
				if (err == nil) != (tc.err == "") || err != nil && !strings.HasPrefix(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				e := g.Report().Entries[0]
				if string(e.Outcome) != tc.outcome || e.Detail != tc.note {
					t.Errorf("%s with detail %q, want %s with %q", e.Outcome, e.Detail, tc.outcome, tc.note)
				}
			})
		})
	}
}

// TestGroupContextEnded: a context that has ended before Start is a shutdown
// before Start. What was started used to depend on which goroutine came first.
func TestGroupContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		var cleaned bool
		g := &graceful.Group{NoSignalHandling: true}
		g.AddFuncs("web", func() error { panic("served") }, func(context.Context) error { panic("shut down") })
		g.Go("mail", func(context.Context) error { panic("ran") })
		g.Defer("db", func(context.Context) error { cleaned = true; return nil })
		if err := g.Run(ctx); err != nil || !cleaned {
			t.Fatalf("error %v, cleaned %v", err, cleaned)
		}
	}
}

// TestGroupKillsWhatPanics: a graceful stop that panics has ended nothing, so
// the server is killed; it used to be left behind when the time was up.
func TestGroupKillsWhatPanics(t *testing.T) {
	for _, tc := range []struct {
		name string
		stop func()
	}{
		{"panic", func() { panic("not implemented") }},
		{"Goexit", func() { runtime.Goexit() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, two := make(chan struct{}), make(chan struct{})
				g := &graceful.Group{NoSignalHandling: true, Budget: time.Hour}
				g.AddFuncs("grpc", func() error { <-one; return nil },
					graceful.StopThenKill(tc.stop, func() { close(one) }))
				g.AddFuncs("http", func() error { <-two; return nil },
					graceful.ShutdownThenClose(panickyServer{tc.stop, two}))
				g.Start(t.Context())
				start := time.Now()
				err := g.Shutdown(t.Context())
				if d := time.Since(start); err == nil || d != 0 {
					t.Errorf("error %v after %v", err, d)
				}
				for _, e := range g.Report().Entries {
					if e.Outcome != graceful.GroupFailed || len(e.Errors) != 1 {
						t.Errorf("%s %s: %v", e.Name, e.Outcome, e.Errors)
					}
				}
			})
		})
	}
}

type panickyServer struct {
	stop func()
	end  chan struct{}
}

func (s panickyServer) Shutdown(context.Context) error { s.stop(); return nil }
func (s panickyServer) Close() error                   { close(s.end); return nil }

// TestGroupEmpty: Run of a group without servers and workers returns at once,
// as errgroup's Wait and oklog/run's Run do. It used to wait for a signal.
func TestGroupEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupScript()
		g := &graceful.Group{NoSignalHandling: true, ShutdownDelay: time.Hour}
		if err := g.Run(t.Context()); err != nil {
			t.Error(err)
		}
		if r := g.Report(); r.Reason != "there is nothing to run" || r.Took != 0 {
			t.Error(r)
		}

		g = &graceful.Group{NoSignalHandling: true}
		s.cleanup(g, "db", time.Second)
		if err := g.Run(t.Context()); err != nil {
			t.Error(err)
		}
		s.want(t, "0 db begins", "1 db done")

		// After Start there may be something to come.
		g = &graceful.Group{NoSignalHandling: true}
		stopped, _ := g.Start(t.Context())
		time.Sleep(time.Hour)
		g.Go("late", func(context.Context) error { s.note("late runs"); return nil })
		<-stopped
		s.want(t, "0 db begins", "1 db done", "3601 late runs")
	})
}

// TestGroupBudget: a part that overruns is told, left behind and named, at exact
// times.
func TestGroupBudget(t *testing.T) {
	const s10 = 10 * time.Second
	type steps struct{ server, worker, first, second time.Duration } // -1: none
	for _, tc := range []struct {
		name  string
		group *graceful.Group
		steps steps
		kill  time.Duration // after the beginning; 0 is never
		want  []string
		took  time.Duration
	}{
		{"all in time", &graceful.Group{Budget: s10},
			steps{1 * time.Second, 2 * time.Second, 3 * time.Second, -1}, 0,
			[]string{"server web done 1", "worker mail done 2", "cleanup first done 3"}, 6 * time.Second},
		{"servers overrun: reserves are kept", &graceful.Group{Budget: s10},
			steps{groupForever, 500 * time.Millisecond, 500 * time.Millisecond, -1}, 0,
			[]string{"server web cut 7.75", "worker mail done 0.5", "cleanup first done 0.5"}, 8750 * time.Millisecond},
		{"all honour their contexts", &graceful.Group{Budget: s10, CleanupReserve: 2 * time.Second},
			steps{groupForever, groupForever, groupForever, groupForever}, 0,
			// Servers to 7 s, less 0.25; workers to 8 s, less a tenth of what
			// they have; then each its half.
			[]string{"server web cut 6.75", "worker mail cut 1.125", "cleanup second cut 0.95625", "cleanup first cut 1.051875"},
			9883125 * time.Microsecond},
		{"no worker, no cleanup: all is the servers'", &graceful.Group{Budget: s10},
			steps{groupForever, -1, -1, -1}, 0,
			[]string{"server web cut 9.75"}, 9750 * time.Millisecond},
		{"reserves off", &graceful.Group{Budget: s10, WorkerReserve: -1, CleanupReserve: -1},
			steps{groupForever, 0, 0, -1}, 0,
			[]string{"server web cut 9.75", "worker mail done 0", "cleanup first done 0"}, 9750 * time.Millisecond},
		{"the delay is part of it", &graceful.Group{Budget: s10, ShutdownDelay: 4 * time.Second},
			steps{groupForever, -1, -1, -1}, 0,
			[]string{"server web cut 5.75"}, 9750 * time.Millisecond},
		{"reserves are 5 s at most", &graceful.Group{Budget: time.Hour},
			steps{groupForever, groupForever, groupForever, -1}, 0,
			[]string{"server web cut 3589.75", "worker mail cut 5", "cleanup first cut 5"}, 3599750 * time.Millisecond},
		{"kill without a budget", &graceful.Group{},
			steps{groupForever, groupForever, groupForever, groupForever}, time.Minute,
			// Reserves are 5 s; each cleanup has its half from when it begins.
			[]string{"server web cut 60", "worker mail cut 0", "cleanup second cut 2.25", "cleanup first cut 4.75"},
			67 * time.Second},
		{"kill in the delay", &graceful.Group{Budget: time.Minute, ShutdownDelay: 30 * time.Second, WorkerReserve: time.Second},
			steps{groupForever, 500 * time.Millisecond, 500 * time.Millisecond, -1}, 3 * time.Second,
			[]string{"server web cut 0", "worker mail cut 0", "cleanup first done 0.5"}, 3500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := tc.group
				g.NoSignalHandling = true
				s := newGroupScript()
				if tc.steps.server >= 0 {
					s.server(g, "web", tc.steps.server)
				}
				if tc.steps.worker >= 0 {
					s.worker(g, "mail", tc.steps.worker)
				}
				if tc.steps.first >= 0 {
					s.cleanup(g, "first", tc.steps.first)
				}
				if tc.steps.second >= 0 {
					s.cleanup(g, "second", tc.steps.second)
				}
				if _, err := g.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctx := context.Background()
				if tc.kill > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.kill)
					defer cancel()
				}
				start := time.Now()
				err := g.Shutdown(ctx)
				if tc.kill > 0 && (err != context.DeadlineExceeded || time.Since(start) != tc.kill) {
					t.Errorf("Shutdown returned %v after %v", err, time.Since(start))
				}
				g.Wait()
				r := g.Report()
				if diff := cmp.Diff(tc.want, groupOutcomes(r)); diff != "" {
					t.Error(diff)
				}
				for _, e := range r.Entries {
					if (e.Outcome == graceful.GroupCut) != (len(e.Errors) == 1) {
						t.Errorf("%s %s: %v", e.Name, e.Outcome, e.Errors)
					}
				}
				if r.Took != tc.took || time.Since(start) != tc.took || r.Killed != (tc.kill > 0) {
					t.Errorf("took %v, reported %v, want %v; killed %v", time.Since(start), r.Took, tc.took, r.Killed)
				}
			})
		})
	}
}

// TestGroupLeftBehind: parts that ignore their contexts are left behind at exactly
// the end of their time, and Run returns at exactly Timeout.
func TestGroupLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		s := newGroupScript()
		deaf := func(name string) func(context.Context) error {
			return func(ctx context.Context) error {
				<-graceful.Finishing(ctx).Done()
				s.note(name + " told")
				<-free
				return nil
			}
		}
		g := &graceful.Group{Budget: 10 * time.Second, NoSignalHandling: true}
		quit := make(chan struct{})
		g.AddFuncs("web", func() error { <-quit; return nil }, func(ctx context.Context) error {
			<-ctx.Done()
			s.note("web told")
			<-free
			return nil
		})
		g.Go("mail", deaf("mail"))
		pool := &graceful.Pool[int]{N: 3, Queue: queueOf(1, 2), Work: func(context.Context, int) error { <-free; return nil }}
		g.Go("pool", pool.Run)
		for _, name := range []string{"db", "cache"} {
			g.Defer(name, func(ctx context.Context) error {
				<-ctx.Done()
				s.note(name + " told")
				<-free
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var err error
		start := time.Now()
		done := make(chan struct{})
		go func() { err = g.Run(ctx); close(done) }()
		time.Sleep(time.Second)
		cancel()
		<-done
		if d := time.Since(start); d != 11*time.Second {
			t.Errorf("Run returned after %v", d)
		}
		// The shutdown began at 1 s.
		s.want(t, "8.75 web told", "9.9 mail told", "10.45 cache told", "10.95 db told")
		want := "web: graceful: still running when its time was up\n" +
			"mail: graceful: still running when its time was up\n" +
			"pool: graceful: still running when its time was up (2 of 3 busy: A for 10s, B for 10s)\n" +
			"cache: graceful: still running when its time was up\n" +
			"db: graceful: still running when its time was up"
		got := err.Error()
		for _, n := range []string{"1", "2", "3"} { // whichever took them
			got = strings.Replace(got, ": "+n+" for", ": A for", 1)
			got = strings.Replace(got, ", "+n+" for", ", B for", 1)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if !errors.Is(err, graceful.ErrLeftBehind) {
			t.Error("errors.Is finds no ErrLeftBehind")
		}
		list := []string{
			"server web left behind 8", "worker mail left behind 1", "worker pool left behind 1",
			"cleanup cache left behind 0.5", "cleanup db left behind 0.5",
		}
		r := g.Report()
		if diff := cmp.Diff(list, groupOutcomes(r)); diff != "" {
			t.Error(diff)
		}
		// They return after the end of the shutdown: nothing changes.
		close(free)
		close(quit)
		synctest.Wait()
		if diff := cmp.Diff(r, g.Report(), cmp.Comparer(func(a, b error) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	})
}

// budgetTask is one task of TestGroupRandom: it ends by itself after so long,
// or when it is told, or never if it is deaf.
type budgetTask struct {
	takes time.Duration
	deaf  bool
}

// TestGroupRandom plays random groups and compares every time and outcome with
// those of a small model, exactly.
func TestGroupRandom(t *testing.T) {
	for seed := range uint64(800) {
		synctest.Test(t, func(t *testing.T) { playRandomGroup(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func playRandomGroup(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 5))
	// Odd nanoseconds, so that no two things happen at one moment.
	upTo := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) | 1 }
	tasks := func() []budgetTask {
		list := make([]budgetTask, r.IntN(4))
		for i := range list {
			list[i] = budgetTask{upTo(12 * time.Second), r.IntN(4) == 0}
		}
		return list
	}
	servers, workers, cleanups := tasks(), tasks(), tasks()
	if len(servers)+len(workers) == 0 {
		servers = []budgetTask{{time.Second, false}}
	}
	g := &graceful.Group{NoSignalHandling: true}
	var kill time.Duration
	if r.IntN(3) > 0 {
		g.Budget = 10*time.Second + upTo(30*time.Second)
	}
	if r.IntN(2) > 0 {
		g.ShutdownDelay = upTo(2 * time.Second)
	}
	if r.IntN(2) > 0 {
		g.WorkerReserve = upTo(2 * time.Second)
	}
	if r.IntN(2) > 0 {
		g.CleanupReserve = upTo(2 * time.Second)
	}
	if r.IntN(2) > 0 || g.Budget == 0 {
		kill = upTo(20 * time.Second)
	}

	free := make(chan struct{})
	play := func(ctx context.Context, b budgetTask) error {
		if b.deaf {
			select {
			case <-time.After(b.takes):
			case <-free:
			}
			return nil
		}
		select {
		case <-time.After(b.takes):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, b := range servers {
		quit := make(chan struct{})
		g.AddFuncs("s", func() error { <-quit; return nil },
			func(ctx context.Context) error { defer close(quit); return play(ctx, b) })
	}
	for _, b := range workers {
		g.Go("w", func(ctx context.Context) error { <-ctx.Done(); return play(graceful.Finishing(ctx), b) })
	}
	for _, b := range cleanups {
		g.Defer("c", func(ctx context.Context) error { return play(ctx, b) })
	}

	want, took, killed := modelGroup(g, servers, workers, cleanups, kill)
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	ctx := context.Background()
	if kill > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, kill)
		defer cancel()
	}
	g.Shutdown(ctx)
	g.Wait()
	rep := g.Report()
	if diff := cmp.Diff(want, groupOutcomes(rep)); diff != "" {
		t.Error(diff)
	}
	if rep.Took != took || rep.Killed != killed {
		t.Errorf("took %v, killed %v; want %v, %v", rep.Took, rep.Killed, took, killed)
	}
	if g.Budget > 0 && rep.Took > g.Budget {
		t.Errorf("took %v of %v", rep.Took, g.Budget)
	}
	close(free)
}

// modelGroup says what becomes of a group, by Group's documentation. Times
// count from the shutdown's beginning; kill is 0 for never.
func modelGroup(g *graceful.Group, servers, workers, cleanups []budgetTask, kill time.Duration) (list []string, took time.Duration, killed bool) {
	const never = groupForever
	timeout := g.Budget
	if timeout == 0 {
		timeout = never
	}
	if kill == 0 {
		kill = never
	}
	reserve := func(field time.Duration) time.Duration {
		switch {
		case field > 0:
			return field
		case g.Budget > 0:
			return min(g.Budget/10, 5*time.Second)
		}
		return 5 * time.Second
	}
	lead := func(d time.Duration) time.Duration { return min(d/10, 250*time.Millisecond) }
	now := time.Duration(0)
	step := func(kind string, tasks []budgetTask, leave, share time.Duration, atOnce bool) {
		tell := leave - lead(leave-now)
		if k := max(kill, now); kill < never {
			share = max(share, 250*time.Millisecond)
			if k+share < leave {
				leave = k + share
				tell = min(tell, leave-lead(share))
			}
			if atOnce {
				tell = min(tell, k)
			}
		}
		end := now
		for _, b := range tasks {
			over, outcome := now+b.takes, graceful.GroupDone
			switch {
			case b.deaf && over > leave:
				over, outcome = leave, graceful.GroupLeftBehind
			case b.deaf && over > tell: // it comes back after it was told
				outcome = graceful.GroupCut
			case !b.deaf && over > tell:
				over, outcome = tell, graceful.GroupCut
			}
			end = max(end, over)
			list = append(list, fmt.Sprintf("%s %s %s %g", kind, kind[:1], outcome, (over-now).Seconds()))
		}
		now = end
	}
	keepWorkers, keepCleanups := time.Duration(0), time.Duration(0)
	if len(workers) > 0 {
		keepWorkers = reserve(g.WorkerReserve)
	}
	if len(cleanups) > 0 {
		keepCleanups = reserve(g.CleanupReserve)
	}
	if len(servers) > 0 {
		now = min(g.ShutdownDelay, kill)
	}
	step("server", servers, timeout-keepWorkers-keepCleanups, 0, true)
	step("worker", workers, timeout-keepCleanups, keepWorkers, true)
	slices.Reverse(cleanups)
	for i, b := range cleanups {
		left := time.Duration(len(cleanups) - i)
		step("cleanup", []budgetTask{b}, now+(timeout-now)/left, keepCleanups/left, false)
	}
	return list, now, kill <= now
}
