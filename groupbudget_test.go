package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

// TestGroupBudget: who overruns is told, left behind, and named, at exact times.
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
		{"all in time", &graceful.Group{Timeout: s10},
			steps{1 * time.Second, 2 * time.Second, 3 * time.Second, -1}, 0,
			[]string{"server web done 1", "worker mail done 2", "cleanup first done 3"}, 6 * time.Second},
		{"servers overrun: reserves are kept", &graceful.Group{Timeout: s10},
			steps{groupForever, 500 * time.Millisecond, 500 * time.Millisecond, -1}, 0,
			[]string{"server web cut 7.75", "worker mail done 0.5", "cleanup first done 0.5"}, 8750 * time.Millisecond},
		{"all honour their contexts", &graceful.Group{Timeout: s10, CleanupReserve: 2 * time.Second},
			steps{groupForever, groupForever, groupForever, groupForever}, 0,
			// Servers to 7 s, less 0.25; workers to 8 s, less a tenth of what
			// they have; then each its half.
			[]string{"server web cut 6.75", "worker mail cut 1.125", "cleanup second cut 0.95625", "cleanup first cut 1.051875"},
			9883125 * time.Microsecond},
		{"no worker, no cleanup: all is the servers'", &graceful.Group{Timeout: s10},
			steps{groupForever, -1, -1, -1}, 0,
			[]string{"server web cut 9.75"}, 9750 * time.Millisecond},
		{"reserves off", &graceful.Group{Timeout: s10, WorkerReserve: -1, CleanupReserve: -1},
			steps{groupForever, 0, 0, -1}, 0,
			[]string{"server web cut 9.75", "worker mail done 0", "cleanup first done 0"}, 9750 * time.Millisecond},
		{"the delay is part of it", &graceful.Group{Timeout: s10, ShutdownDelay: 4 * time.Second},
			steps{groupForever, -1, -1, -1}, 0,
			[]string{"server web cut 5.75"}, 9750 * time.Millisecond},
		{"reserves are 5 s at most", &graceful.Group{Timeout: time.Hour},
			steps{groupForever, groupForever, groupForever, -1}, 0,
			[]string{"server web cut 3589.75", "worker mail cut 5", "cleanup first cut 5"}, 3599750 * time.Millisecond},
		{"kill without a budget", &graceful.Group{},
			steps{groupForever, groupForever, groupForever, groupForever}, time.Minute,
			// Reserves are 5 s; each cleanup has its half from when it begins.
			[]string{"server web cut 60", "worker mail cut 0", "cleanup second cut 2.25", "cleanup first cut 4.75"},
			67 * time.Second},
		{"kill in the delay", &graceful.Group{Timeout: time.Minute, ShutdownDelay: 30 * time.Second, WorkerReserve: time.Second},
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

// TestGroupLeftBehind: those who honour nothing are left at exactly the end of
// their share, and Run returns at exactly Timeout.
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
		g := &graceful.Group{Timeout: 10 * time.Second, NoSignalHandling: true}
		quit := make(chan struct{})
		g.Server("web", func() error { <-quit; return nil }, func(ctx context.Context) error {
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
		// They come back when nobody waits any more: nothing changes.
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
		g.Timeout = 10*time.Second + upTo(30*time.Second)
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
	if r.IntN(2) > 0 || g.Timeout == 0 {
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
		g.Server("s", func() error { <-quit; return nil },
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
	if g.Timeout > 0 && rep.Took > g.Timeout {
		t.Errorf("took %v of %v", rep.Took, g.Timeout)
	}
	close(free)
}

// modelGroup says what becomes of a group, by Group's documentation. Times
// count from the shutdown's beginning; kill is 0 for never.
func modelGroup(g *graceful.Group, servers, workers, cleanups []budgetTask, kill time.Duration) (list []string, took time.Duration, killed bool) {
	const never = groupForever
	timeout := g.Timeout
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
		case g.Timeout > 0:
			return min(g.Timeout/10, 5*time.Second)
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
