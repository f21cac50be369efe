package graceful

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestWatchSignals plays signals at exact times and compares what was called
// when, "stop" being the moment at which stop was called.
func TestWatchSignals(t *testing.T) {
	const (
		INT  = syscall.SIGINT
		TERM = syscall.SIGTERM
	)
	type press struct {
		after time.Duration // since the one before
		sig   os.Signal
	}
	const ms = time.Millisecond
	for _, tc := range []struct {
		name    string
		presses []press
		veto    int           // so many times initiate says no
		takes   time.Duration // so long does initiate take
		want    []string
	}{
		{"one", []press{{0, TERM}}, 0, 0, []string{"0s initiate terminated"}},
		{"echo within the window", []press{{0, INT}, {ms, TERM}, {249 * ms, INT}}, 0, 0,
			[]string{"0s initiate interrupt"}},
		{"second after the window", []press{{0, INT}, {251 * ms, TERM}}, 0, 0,
			[]string{"0s initiate interrupt", "251ms kill terminated"}},
		{"third is not ours", []press{{0, INT}, {251 * ms, INT}, {time.Second, INT}}, 0, 0,
			[]string{"0s initiate interrupt", "251ms kill interrupt"}},
		{"the window does not grow with echoes", []press{{0, INT}, {200 * ms, INT}, {51 * ms, INT}}, 0, 0,
			[]string{"0s initiate interrupt", "251ms kill interrupt"}},
		{"veto, and its echo asks nobody", []press{{0, INT}, {10 * ms, INT}, {time.Second, INT}, {time.Second, INT}}, 1, 0,
			[]string{"0s initiate interrupt", "1.01s initiate interrupt", "2.01s kill interrupt"}},
		{"echo while deciding", []press{{0, INT}, {10 * ms, INT}}, 0, time.Second,
			[]string{"0s initiate interrupt"}},
		{"second while deciding", []press{{0, INT}, {300 * ms, TERM}, {ms, INT}}, 0, time.Second,
			[]string{"0s initiate interrupt", "300ms kill terminated"}},
		{"second while deciding on a veto", []press{{0, INT}, {300 * ms, TERM}}, 1, time.Second,
			[]string{"0s initiate interrupt", "300ms kill terminated"}},
		{"first after a veto that took its time", []press{{0, INT}, {1100 * ms, TERM}}, 1, time.Second,
			[]string{"0s initiate interrupt", "1.1s initiate terminated"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					mu    sync.Mutex
					got   []string
					start = time.Now()
					c     = make(chan os.Signal, 8)
					done  = make(chan struct{})
					veto  = tc.veto
				)
				note := func(what string, sig os.Signal) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, fmt.Sprint(time.Since(start), " ", what, " ", sig))
				}
				go watchSignals(c, done, func(sig os.Signal) bool {
					note("initiate", sig)
					time.Sleep(tc.takes)
					veto--
					return veto < 0
				}, func(sig os.Signal) { note("kill", sig) })
				for _, p := range tc.presses {
					time.Sleep(p.after)
					c <- p.sig
				}
				time.Sleep(10 * time.Second)
				close(done)
				synctest.Wait()
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestWatchSignalsDone: a signal that lies in the channel when stop is called
// starts nothing any more, whichever of the two select looks at first.
func TestWatchSignalsDone(t *testing.T) {
	for range 200 {
		c := make(chan os.Signal, 1)
		done := make(chan struct{})
		c <- syscall.SIGTERM
		close(done)
		watchSignals(c, done, func(os.Signal) bool { panic("initiate after stop") }, nil)
	}
}

// TestCatchSignalsStop: stop from many goroutines at once, again, and from
// inside a callback returns; goleak sees to it that nothing is left.
func TestCatchSignalsStop(t *testing.T) {
	for range 50 {
		stop := catchSignals(signalsOf(nil, false), func(os.Signal) bool { return true }, func(os.Signal) {})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(stop)
		}
		wg.Wait()
		stop()
	}
}

// TestConduct: a catcher of the process waits for the delayers, the last of
// them included, and is not held by them when it is stopped.
func TestConduct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		done := make(chan struct{})
		one, two := delayCatchers(), delayCatchers()
		time.AfterFunc(time.Second, one)
		time.AfterFunc(3*time.Second, func() { two(); two() })
		if !awaitDelayers(done) || time.Since(start) != 3*time.Second {
			t.Errorf("awaited for %v", time.Since(start))
		}
		three := delayCatchers()
		time.AfterFunc(time.Second, func() { close(done) })
		if awaitDelayers(done) || time.Since(start) != 4*time.Second {
			t.Errorf("awaited to %v", time.Since(start))
		}
		three()
	})
}
