package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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
				g.Server("web", func() error { <-quit; return nil },
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
