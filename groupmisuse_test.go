package graceful_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
