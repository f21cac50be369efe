package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// TestPoolQueue: what ends a pool over a channel, and what it has done by then.
// Every item takes a second; two workers; ctx ends at 1.5 s.
func TestPoolQueue(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name  string
		items int
		close bool
		leave bool
		fail  int // this item fails; 0 is none
		done  []int
		took  time.Duration
		err   string
	}{
		{"closed and empty", 2, true, false, 0, []int{1, 2}, time.Second, ""},
		{"closed first, then ctx", 6, true, false, 0, []int{1, 2, 3, 4, 5, 6}, 3 * time.Second, ""},
		{"ctx, the queue is emptied", 6, false, false, 0, []int{1, 2, 3, 4, 5, 6}, 3 * time.Second, ""},
		{"ctx, the queue is left", 6, false, true, 0, []int{1, 2, 3, 4}, 2 * time.Second, ""},
		{"ctx, nothing in hand", 2, false, false, 0, []int{1, 2}, 1500 * time.Millisecond, ""},
		{"failure: the other finishes its item", 6, false, false, 1, []int{2}, time.Second, "boom"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				queue := make(chan int, 10)
				for i := range tc.items {
					queue <- i + 1
				}
				if tc.close {
					close(queue)
				}
				var mu sync.Mutex
				var done []int
				p := &graceful.Pool[int]{N: 2, Queue: queue, LeaveQueued: tc.leave,
					Work: func(ctx context.Context, i int) error {
						if i == tc.fail {
							time.Sleep(time.Second / 2)
							return boom
						}
						time.Sleep(time.Second)
						mu.Lock()
						defer mu.Unlock()
						done = append(done, i)
						return ctx.Err()
					}}
				ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
				defer cancel()
				start := time.Now()
				if tc.items == 2 && !tc.close { // done with both, and waiting
					time.AfterFunc(1200*time.Millisecond, func() {
						if b := p.Busy(); b != nil {
							t.Errorf("busy while waiting: %v", b)
						}
					})
				}
				err := p.Run(ctx)
				if d := time.Since(start); d != tc.took {
					t.Errorf("took %v, want %v", d, tc.took)
				}
				slices.Sort(done)
				if diff := cmp.Diff(tc.done, done); diff != "" {
					t.Error(diff)
				}
				if fmt.Sprint(err) != "<nil>" && !(errors.Is(err, boom) && tc.err == "boom") || err == nil && tc.err != "" {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				if b := p.Busy(); b != nil {
					t.Errorf("busy after the end: %v", b)
				}
			})
		})
	}
}

func TestPoolFetch(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		last error // what Fetch returns after five items; nil: it waits for ctx
		took time.Duration
		want string
	}{
		{"end", io.EOF, 3 * time.Second, "<nil>"},
		{"ctx", nil, 10 * time.Second, "<nil>"},
		{"wrapped ctx", fmt.Errorf("receive: %w", context.DeadlineExceeded), 10 * time.Second, "<nil>"},
		{"failure", boom, 3 * time.Second, "worker N: boom"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n, done atomic.Int32
				p := &graceful.Pool[int32]{N: 2,
					Fetch: func(ctx context.Context) (int32, error) {
						if i := n.Add(1); i <= 5 {
							return i, nil
						}
						if tc.last == nil || errors.Is(tc.last, context.DeadlineExceeded) {
							<-ctx.Done()
							if tc.last == nil {
								return 0, ctx.Err()
							}
						}
						return 0, tc.last
					},
					Work: func(context.Context, int32) error { time.Sleep(time.Second); done.Add(1); return nil },
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				err := fmt.Sprint(p.Run(ctx))
				err = strings.NewReplacer("worker 1", "worker N", "worker 2", "worker N").Replace(err)
				if err != tc.want || time.Since(start) != tc.took || done.Load() != 5 {
					t.Errorf("%s after %v, %d done; want %s after %v, 5 done", err, time.Since(start), done.Load(), tc.want, tc.took)
				}
			})
		})
	}
}

// TestPoolTimeout: Work is told a little before Run returns, and Run names who
// has not come back.
func TestPoolTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var told time.Duration
		start := time.Now()
		p := &graceful.Pool[int]{N: 3, Queue: queueOf(1, 2), Timeout: 10 * time.Second,
			Work: func(ctx context.Context, i int) error {
				if i == 1 {
					<-ctx.Done()
					told = time.Since(start)
					return context.Cause(ctx)
				}
				<-free
				return nil
			}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, cancel)
		looked := make(chan []graceful.PoolWorker, 1)
		time.AfterFunc(14*time.Second, func() { looked <- p.Busy() })
		err := p.Run(ctx)
		if d := time.Since(start); d != 15*time.Second || told != 14750*time.Millisecond {
			t.Errorf("Run took %v, Work was told at %v", d, told)
		}
		if !errors.Is(err, graceful.ErrLeftBehind) || !strings.Contains(err.Error(), "(1 of 3 busy: ") || !strings.HasSuffix(err.Error(), " for 15s)") {
			t.Errorf("error %v", err)
		}
		if busy := <-looked; len(busy) != 2 || !busy[0].Since.Equal(start) {
			t.Errorf("busy at 14 s: %v", busy)
		}
		close(free)
	})
}

func TestPoolPanic(t *testing.T) {
	p := &graceful.Pool[int]{Queue: queueOf(1, 2, 3), Work: func(context.Context, int) error { panic("bad item") }}
	var pe *graceful.PanicError
	if err := p.Run(t.Context()); !errors.As(err, &pe) || pe.Value != "bad item" || !strings.HasPrefix(err.Error(), "worker 1: panic: bad item") {
		t.Errorf("error %v", err)
	}
}

func TestPoolBadFields(t *testing.T) {
	work := func(context.Context, int) error { return nil }
	fetch := func(context.Context) (int, error) { return 0, io.EOF }
	for _, tc := range []struct {
		pool *graceful.Pool[int]
		want string
	}{
		{&graceful.Pool[int]{N: -1}, "graceful: Pool.N is negative: -1"},
		{&graceful.Pool[int]{Timeout: -1}, "graceful: Pool.Timeout is negative: -1ns"},
		{&graceful.Pool[int]{Fetch: fetch}, "graceful: Pool.Work is nil"},
		{&graceful.Pool[int]{Work: work}, "graceful: a Pool needs either Queue or Fetch"},
		{&graceful.Pool[int]{Work: work, Fetch: fetch, Queue: queueOf()}, "graceful: a Pool needs either Queue or Fetch"},
	} {
		if err := tc.pool.Run(t.Context()); err == nil || err.Error() != tc.want {
			t.Errorf("error %v, want %s", err, tc.want)
		}
	}
}

// TestPoolInGroup: servers feed the queue until they have drained; what is in
// it then is still worked on, and nothing is lost.
func TestPoolInGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue := make(chan int, 100)
		var done atomic.Int32
		p := &graceful.Pool[int]{N: 3, Queue: queue, Work: func(ctx context.Context, i int) error {
			time.Sleep(100 * time.Millisecond)
			done.Add(1)
			return ctx.Err()
		}}
		g := &graceful.Group{Budget: time.Minute, NoSignalHandling: true}
		quit, drained := make(chan struct{}), make(chan struct{})
		sent := int32(0)
		g.AddFuncs("feed", func() error {
			defer close(drained)
			for {
				select {
				case <-quit:
					return nil
				default:
				}
				queue <- 0
				sent++
				time.Sleep(10 * time.Millisecond)
			}
		}, func(context.Context) error { close(quit); <-drained; return nil })
		g.Go("pool", p.Run)
		g.Start(t.Context())
		time.Sleep(time.Second)
		if err := g.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if sent != done.Load() || sent < 50 {
			t.Errorf("%d sent, %d done", sent, done.Load())
		}
	})
}
