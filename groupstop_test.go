package graceful_test

import (
	"context"
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
