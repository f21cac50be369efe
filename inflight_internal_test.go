package graceful

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// These tests are inside the package to play the Server: they put a Draining
// channel into the requests' contexts.

// watchers runs n long-running requests, which end as soon as they are told,
// and returns a function that lists when each was released, and the time when
// the n-th of them was.
func watchers(f *InFlight, n int, ctx context.Context) (released func() []time.Duration) {
	start := time.Now()
	var mu sync.Mutex
	var at []time.Duration
	h := f.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-Draining(r.Context())
	}))
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.Header.Set("Accept", "text/event-stream")
			h.ServeHTTP(httptest.NewRecorder(), r)
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(start))
		})
	}
	synctest.Wait()
	return func() []time.Duration { all.Wait(); return at }
}

func every(d time.Duration, n int) (at []time.Duration) {
	for i := range n {
		at = append(at, time.Duration(i)*d)
	}
	return at
}

func TestLongRunningPace(t *testing.T) {
	for name, tt := range map[string]struct {
		f    *InFlight
		n    int
		want []time.Duration
	}{
		"window":    {&InFlight{ReleaseWindow: time.Second, ReleaseRate: 1}, 5, every(200*time.Millisecond, 5)},
		"rate":      {&InFlight{ReleaseWindow: time.Minute, ReleaseRate: 10}, 5, every(100*time.Millisecond, 5)},
		"default":   {&InFlight{}, 4, every(5*time.Millisecond, 4)},
		"many":      {&InFlight{}, 2000, every(2500*time.Microsecond, 2000)},
		"immediate": {&InFlight{ReleaseWindow: -1}, 3, every(0, 3)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := tt.f
				released := watchers(f, tt.n, t.Context())
				if n := f.LongRunningCount(); n != tt.n || f.Count() != 0 {
					t.Errorf("counts %d, %d", n, f.Count())
				}
				start := time.Now()
				if err := f.WaitLongRunning(t.Context()); err != nil {
					t.Error(err)
				}
				if got, want := time.Since(start), tt.want[tt.n-1]; got != want {
					t.Errorf("waited %v, want %v", got, want)
				}
				if diff := cmp.Diff(tt.want, released()); diff != "" {
					t.Error(diff)
				}
				if f.Add(1) != ErrDraining {
					t.Error("not draining")
				}
			})
		})
	}
}

// Turns that no handler took are lost: handlers that return late are not all
// released at once.
func TestLongRunningLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := InFlight{ReleaseWindow: time.Second, ReleaseRate: 1}
		h := f.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(3 * time.Second) }))
		start := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		var at []time.Duration
		for range 4 {
			all.Go(func() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/debug/pprof/x", nil))
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(start)-3*time.Second)
			})
		}
		synctest.Wait()
		f.WaitLongRunning(t.Context())
		all.Wait()
		if diff := cmp.Diff(every(250*time.Millisecond, 4), at); diff != "" {
			t.Error(diff)
		}
	})
}

// A context bounds the pace: when it ends, what is left goes at once.
func TestLongRunningBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &InFlight{ReleaseWindow: time.Minute, ReleaseRate: 1}
		released := watchers(f, 5, t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		if err := f.WaitLongRunning(ctx); err != context.DeadlineExceeded {
			t.Error(err)
		}
		const s = time.Second
		if diff := cmp.Diff([]time.Duration{0, 1 * s, 2 * s, 2500 * time.Millisecond, 2500 * time.Millisecond}, released()); diff != "" {
			t.Error(diff)
		}
	})
}

// Under a Server the application calls nothing: InFlight follows its Draining, and
// a kill, which ends the requests' contexts, releases all.
func TestLongRunningUnderServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &InFlight{ReleaseWindow: time.Minute, ReleaseRate: 1}
		draining := make(chan struct{})
		ctx, kill := context.WithCancel(withMoments(t.Context(), moments{draining, draining}))
		released := watchers(f, 4, ctx)
		time.AfterFunc(time.Second, func() { close(draining) })
		time.AfterFunc(2500*time.Millisecond, kill)
		const s = time.Second
		if diff := cmp.Diff([]time.Duration{1 * s, 2 * s, 2500 * time.Millisecond, 2500 * time.Millisecond}, released()); diff != "" {
			t.Error(diff)
		}
		if f.Add(1) != nil {
			t.Error("refused though nobody waits: under a Server what arrives is served")
		}
	})
}

// A client that has gone needs no turn.
func TestLongRunningClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &InFlight{ReleaseWindow: time.Minute, ReleaseRate: 1}
		gone, leave := context.WithCancel(t.Context())
		first := watchers(f, 3, gone)
		leave()
		then := watchers(f, 3, t.Context())
		f.WaitLongRunning(t.Context())
		if diff := cmp.Diff([][]time.Duration{every(0, 3), every(time.Second, 3)}, [][]time.Duration{first(), then()}); diff != "" {
			t.Error(diff)
		}
	})
}

// In ordinary times nothing is held back, and later ones are refused.
func TestLongRunningServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &InFlight{ReleaseWindow: time.Minute, ReleaseRate: 1}
		start := time.Now()
		h := f.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "served") }))
		get := func() int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/debug/pprof/x", nil))
			return w.Code
		}
		for range 3 {
			if got := get(); got != 200 || time.Since(start) != 0 {
				t.Errorf("%d after %v", got, time.Since(start))
			}
		}
		f.Wait()
		if got := get(); got != 503 {
			t.Error(got)
		}
		if err := f.WaitLongRunning(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A server that is shutting down says so by the context of the probe, and
// then other servers' probes see it, too.
func TestHealthUnderServer(t *testing.T) {
	var h Health
	draining := make(chan struct{})
	ctx := withMoments(t.Context(), moments{draining, draining})
	code := func(h http.Handler, ctx context.Context) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		return w.Code
	}
	if got := code(h.ReadyHandler(), ctx); got != 200 {
		t.Error(got)
	}
	close(draining)
	for _, ctx := range []context.Context{ctx, t.Context()} {
		if ready, live := code(h.ReadyHandler(), ctx), code(h.LiveHandler(), ctx); ready != 503 || live != 200 {
			t.Errorf("ready %d, live %d", ready, live)
		}
	}
}
