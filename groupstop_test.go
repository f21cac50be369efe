package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

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
				g.Server("web", func() error { <-quit; return tc.serve() },
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
		g.Server("web", func() error { panic("served") }, func(context.Context) error { panic("shut down") })
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
				g := &graceful.Group{NoSignalHandling: true, Timeout: time.Hour}
				g.Server("grpc", func() error { <-one; return nil },
					graceful.StopThenKill(tc.stop, func() { close(one) }))
				g.Server("http", func() error { <-two; return nil },
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
