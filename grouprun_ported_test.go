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
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// addActor adds what github.com/oklog/run calls an actor.
func addActor(g *graceful.Group, name string, execute func() error, interrupt func()) {
	g.AddFuncs(name, execute, func(context.Context) error { interrupt(); return nil })
}

// TestGroupAsOklogRun plays scenarios of github.com/oklog/run v1.2.0: those of
// its tests and examples under their names, and what its documentation
// promises. Where the outcome differs, docs/group.md says so. Its SignalHandler
// is TestGroupSignals.
func TestGroupAsOklogRun(t *testing.T) {
	boom := errors.New("immediate teardown")
	fails := func() error { return boom }
	nothing := func() {}
	// untilInterrupted is an actor that ends, with err, when it is interrupted.
	untilInterrupted := func(s *groupScript, g *graceful.Group, name string, err error) {
		cancel := make(chan struct{})
		addActor(g, name, func() error { <-cancel; s.note(name + " returns"); return err },
			func() { s.note(name + " interrupted"); close(cancel) })
	}
	for _, tc := range []struct {
		name   string
		add    func(s *groupScript, g *graceful.Group, stop func())
		err    string // of Run; "" for nil
		reason string
		script []string // sorted, as what happens at one time has no order
	}{
		{"TestZero", func(*groupScript, *graceful.Group, func()) {}, "", "there is nothing to run", nil},
		{"TestOne", func(_ *groupScript, g *graceful.Group, _ func()) {
			addActor(g, "a", fails, nothing)
		}, "a: immediate teardown", "server a failed: immediate teardown", nil},
		{"TestMany", func(s *groupScript, g *graceful.Group, _ func()) {
			addActor(g, "a", fails, nothing)
			untilInterrupted(s, g, "b", nil)
		}, "a: immediate teardown", "server a failed: immediate teardown", []string{"0 b interrupted", "0 b returns"}},
		// It returns the context's error there.
		{"TestContextHandler", func(s *groupScript, g *graceful.Group, stop func()) {
			untilInterrupted(s, g, "a", nil)
			time.AfterFunc(time.Second, stop)
		}, "", "context ended: context canceled", []string{"1 a interrupted", "1 a returns"}},
		{"ExampleGroup_Add_basic", func(s *groupScript, g *graceful.Group, _ func()) {
			cancel := make(chan struct{})
			addActor(g, "first", func() error {
				select {
				case <-time.After(time.Second):
					s.note("first had its time")
				case <-cancel:
					s.note("first cancelled")
				}
				return nil
			}, func() { close(cancel) })
			// It is interrupted, although it has returned.
			addActor(g, "second", fails, func() { s.note("second interrupted") })
		}, "second: immediate teardown", "server second failed: immediate teardown",
			[]string{"0 first cancelled", "0 second interrupted"}},
		{"ExampleGroup_Add_context", func(s *groupScript, g *graceful.Group, stop func()) {
			time.AfterFunc(time.Second, stop)
			g.Go("a", func(ctx context.Context) error { <-ctx.Done(); s.note("a cancelled"); return ctx.Err() })
		}, "", "context ended: context canceled", []string{"1 a cancelled"}},
		{"an actor that returns nil ends all", func(s *groupScript, g *graceful.Group, _ func()) {
			addActor(g, "a", func() error { time.Sleep(time.Second); return nil }, nothing)
			untilInterrupted(s, g, "b", nil)
		}, "", "server a ended", []string{"1 b interrupted", "1 b returns"}},
		{"only the first error is returned", func(s *groupScript, g *graceful.Group, _ func()) {
			addActor(g, "a", fails, nothing)
			untilInterrupted(s, g, "b", errors.New("as it was asked to"))
		}, "a: immediate teardown", "server a failed: immediate teardown", []string{"0 b interrupted", "0 b returns"}},
		{"Run waits for all actors", func(s *groupScript, g *graceful.Group, _ func()) {
			addActor(g, "a", fails, nothing)
			cancel := make(chan struct{})
			addActor(g, "b", func() error { <-cancel; time.Sleep(time.Hour); s.note("b returns"); return nil },
				func() { close(cancel) })
		}, "a: immediate teardown", "server a failed: immediate teardown", []string{"3600 b returns"}},
		{"an interrupted actor may already be interrupted by itself", func(s *groupScript, g *graceful.Group, _ func()) {
			cancel := sync.OnceFunc(func() { s.note("cancelled") })
			addActor(g, "a", func() error { cancel(); return boom }, cancel)
		}, "a: immediate teardown", "server a failed: immediate teardown", []string{"0 cancelled"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newGroupScript()
				g := &graceful.Group{NoSignalHandling: true}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				tc.add(s, g, cancel)
				err := g.Run(ctx)
				if (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				if r := g.Report(); r.Reason != tc.reason {
					t.Errorf("reason %q, want %q", r.Reason, tc.reason)
				}
				slices.Sort(s.lines)
				s.want(t, tc.script...)
			})
		})
	}
	t.Run("ExampleGroup_Add_listener", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := &graceful.Group{NoSignalHandling: true}
		addActor(g, "http", func() error { return http.Serve(l, nil) }, func() { l.Close() })
		addActor(g, "other", fails, nothing)
		if err := g.Run(t.Context()); err == nil || err.Error() != "other: immediate teardown" {
			t.Errorf("error %v", err)
		}
	})
}

// TestGroupAsErrgroup plays scenarios of golang.org/x/sync/errgroup v0.22: those
// of its tests and examples under their names, and what its documentation
// promises. Where the outcome differs, docs/group.md says so. TryGo has no
// counterpart.
func TestGroupAsErrgroup(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	// goAll returns the last context that a worker was given, or nil.
	goAll := func(ctx context.Context, errs []error) (context.Context, error) {
		g := &graceful.Group{NoSignalHandling: true}
		var worker atomic.Pointer[context.Context]
		for _, err := range errs {
			g.Go("worker", func(ctx context.Context) error { worker.Store(&ctx); return err })
		}
		err := g.Run(ctx)
		if c := worker.Load(); c != nil {
			return *c, err
		}
		return nil, err
	}
	t.Run("TestZeroGroup, TestWithContext and TestCancelCause", func(t *testing.T) {
		for _, errs := range [][]error{{}, {nil}, {one}, {one, nil}, {one, nil, two}} {
			worker, err := goAll(t.Context(), errs)
			if (err == nil) != (errors.Join(errs...) == nil) {
				t.Errorf("of %v Run returns %v", errs, err)
			}
			for _, e := range errs {
				if e != nil && !errors.Is(err, e) {
					t.Errorf("of %v Run returns %v", errs, err)
				}
			}
			// errgroup's cause is the first error.
			if worker != nil && (worker.Err() != context.Canceled || context.Cause(worker) != context.Canceled) {
				t.Errorf("of %v the worker's context is left with %v, %v", errs, worker.Err(), context.Cause(worker))
			}
		}
	})
	t.Run("TestGoLimit", func(t *testing.T) {
		const limit, items = 10, 1 << 10
		var active, most, done atomic.Int32
		queue := make(chan int, items)
		for i := range items {
			queue <- i
		}
		close(queue)
		p := &graceful.Pool[int]{N: limit, Queue: queue, Work: func(context.Context, int) error {
			n := active.Add(1)
			defer active.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			runtime.Gosched()
			done.Add(1)
			return nil
		}}
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("items", p.Run)
		if err := g.Run(t.Context()); err != nil || most.Load() > limit || done.Load() != items {
			t.Errorf("%v, %d at once, %d done", err, most.Load(), done.Load())
		}
	})
	t.Run("ExampleGroup_justErrors", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := &graceful.Group{NoSignalHandling: true}
			start := time.Now()
			for i := range 3 {
				g.Go("fetch", func(context.Context) error { time.Sleep(time.Duration(i) * time.Second); return nil })
			}
			if err := g.Run(t.Context()); err != nil || time.Since(start) != 2*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("ExampleGroup_parallel", func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		results := make([]string, 3)
		for i, kind := range []string{"web", "image", "video"} {
			g.Go(kind, func(context.Context) error { results[i] = kind + " result"; return nil })
		}
		err := g.Run(t.Context())
		if diff := cmp.Diff([]string{"web result", "image result", "video result"}, results); diff != "" || err != nil {
			t.Error(err, diff)
		}
	})
	// A walk hands paths to digesters, whose sums a loop outside collects. With
	// a failure in the middle all stages end.
	t.Run("ExampleGroup_pipeline", func(t *testing.T) {
		for _, fail := range []int{-1, 3} {
			g := &graceful.Group{NoSignalHandling: true}
			paths, sums := make(chan int), make(chan int)
			g.Go("walk", func(ctx context.Context) error {
				defer close(paths)
				for i := range 100 {
					select {
					case paths <- i:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				return nil
			})
			var digesters sync.WaitGroup
			digesters.Add(4)
			for range 4 {
				g.Go("digest", func(ctx context.Context) error {
					defer digesters.Done()
					for i := range paths {
						if i == fail {
							return one
						}
						select {
						case sums <- i:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					return nil
				})
			}
			go func() { digesters.Wait(); close(sums) }()
			g.Start(t.Context())
			n := 0
			for range sums {
				n++
			}
			err := g.Wait()
			if fail < 0 && (err != nil || n != 100) || fail >= 0 && (!errors.Is(err, one) || n >= 100) {
				t.Errorf("with failure at %d: %v, %d sums", fail, err, n)
			}
		}
	})
	t.Run("the first error cancels the others", func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("one", func(context.Context) error { return one })
		for range 3 {
			g.Go("other", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}
		if err := g.Run(t.Context()); err == nil || err.Error() != "one: one" {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a function adds another", func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("outer", func(context.Context) error {
			g.Go("inner", func(context.Context) error { return two })
			return nil
		})
		if err := g.Run(t.Context()); !errors.Is(err, two) {
			t.Errorf("error %v", err)
		}
	})
	// errgroup ends the process.
	t.Run("a function panics", func(t *testing.T) {
		g := &graceful.Group{NoSignalHandling: true}
		g.Go("panics", func(context.Context) error { panic(io.ErrUnexpectedEOF) })
		err := g.Run(t.Context())
		var p *graceful.PanicError
		if !errors.As(err, &p) || !strings.HasPrefix(err.Error(), "panics: panic: unexpected EOF") {
			t.Errorf("error %v", err)
		}
	})
	// errgroup's Wait returns the error that the functions return, and its
	// context has the deadline.
	t.Run("the parent's deadline passes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			g := &graceful.Group{NoSignalHandling: true}
			var got string
			g.Go("worker", func(ctx context.Context) error {
				_, has := ctx.Deadline()
				<-ctx.Done()
				got = fmt.Sprint(has, " ", ctx.Err(), " ", context.Cause(ctx))
				return ctx.Err()
			})
			start := time.Now()
			err := g.Run(ctx)
			if err != nil || time.Since(start) != time.Second || ctx.Err() != context.DeadlineExceeded {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if want := "false context canceled context canceled"; got != want {
				t.Errorf("the worker's context: %s, want %s", got, want)
			}
			if r := g.Report().Reason; r != "context ended: context deadline exceeded" {
				t.Errorf("reason %q", r)
			}
		})
	})
	// errgroup calls the functions all the same.
	t.Run("the parent has ended before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if worker, err := goAll(ctx, []error{one}); worker != nil || err != nil {
			t.Errorf("%v, and the worker ran: %v", err, worker != nil)
		}
	})
}
