package graceful

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Pool is the usual consumer of a queue: N goroutines that take items from a
// channel or from a function and work on them, and that finish what they hold
// when they are to end. Its Run is a worker for Group.Go:
//
//	pool := &graceful.Pool[Mail]{N: 4, Queue: mails, Work: send}
//	g.Go("mail", pool.Run)
//
// The report then names who of the pool has not come back.
type Pool[T any] struct {
	// N is the number of goroutines. 0 means 1.
	N int

	// Queue is where items come from. When it is closed and empty the pool
	// ends. When Run's context ends the pool goes on as long as an item can be
	// had without waiting, for who put it there counts on it, and then ends.
	// Either Queue or Fetch has to be set.
	Queue <-chan T

	// LeaveQueued leaves what is in Queue there when Run's context ends. It is
	// for queues whose other side delivers again what was not acknowledged.
	LeaveQueued bool

	// Fetch is where items come from: it waits for one, until ctx, which ends
	// with Run's, ends. It is called by N goroutines at once. io.EOF ends the
	// goroutine that gets it; ctx's error is none once ctx has ended; any
	// other ends the pool. An item that Fetch returns without an error is
	// worked on, whatever ctx says.
	Fetch func(ctx context.Context) (T, error)

	// Work is called for each item, by N goroutines at once. ctx does not end
	// with Run's: it ends when the pool's time is up (see Finishing and
	// Timeout). An error or a panic ends the pool: what may fail has to be
	// dealt with in Work. It has to be set.
	Work func(ctx context.Context, item T) error

	// Timeout is how long after its context's end Run waits for the items in
	// hand. Work's context ends a little earlier (a tenth, at most 250 ms).
	// 0 means no limit but that of a Group in which the pool runs.
	Timeout time.Duration

	mu   sync.Mutex // guards what follows
	busy map[int]time.Time
}

// PoolWorker is a goroutine of a Pool that has an item in hand.
type PoolWorker struct {
	N     int       // its number, from 1
	Since time.Time // when it got the item
}

// errPoolFailed is the cause with which a failure ends the taking of items.
var errPoolFailed = errors.New("graceful: a worker of the pool failed")

// Run starts the pool's goroutines and blocks until all of them have come
// back, because items came to an end, ctx ended or one failed (then the others
// finish what they hold). It returns their errors, joined, each with the
// worker's number; nil if there are none. When Timeout is over first it
// returns an error that wraps ErrLeftBehind and says who has not come back.
//
// A Pool can run again, but not twice at once.
func (p *Pool[T]) Run(ctx context.Context) error {
	if err := p.start(); err != nil {
		return err
	}
	n := max(1, p.N)
	if t, ok := ctx.Value(taskKey{}).(*groupTask); ok {
		t.g.mu.Lock()
		t.detail = func() string { return p.whoIsBusy(n) }
		t.g.mu.Unlock()
	}
	taking, stopTaking := context.WithCancelCause(ctx)
	defer stopTaking(nil)
	working, cut := context.WithCancelCause(Finishing(ctx))
	defer cut(nil)
	ends := make(chan error, n) // its buffer lets those end who were left behind
	for i := range n {
		spawn(func() error { return p.consume(taking, working, i+1) }, func(err error) {
			if err != nil {
				err = fmt.Errorf("worker %d: %w", i+1, err)
				stopTaking(errPoolFailed)
			}
			p.mark(i+1, false)
			ends <- err
		})
	}

	var (
		errs         []error
		tell, leave  <-chan time.Time
		noMoreTaking = taking.Done()
	)
	if p.Timeout <= 0 {
		noMoreTaking = nil
	}
	for left := n; left > 0; {
		select {
		case err := <-ends:
			errs = append(errs, err)
			left--
		case <-noMoreTaking:
			noMoreTaking = nil
			tell = time.After(p.Timeout - noticeOf(p.Timeout))
			leave = time.After(p.Timeout)
		case <-tell:
			cut(ErrLeftBehind)
		case <-leave:
			errs = append(errs, fmt.Errorf("%w (%s)", ErrLeftBehind, p.whoIsBusy(n)))
			left = 0
		}
	}
	return errors.Join(errs...)
}

// Busy returns the goroutines that have an item in hand, the longest first.
func (p *Pool[T]) Busy() []PoolWorker {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []PoolWorker
	for n, since := range p.busy {
		list = append(list, PoolWorker{n, since})
	}
	slices.SortFunc(list, func(a, b PoolWorker) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.N, b.N))
	})
	return list
}

// start says what is wrong with the pool's fields, or makes it ready.
func (p *Pool[T]) start() error {
	if err := cmp.Or(notNegative("Pool.N", p.N), notNegative("Pool.Timeout", p.Timeout)); err != nil {
		return err
	}
	switch {
	case p.Work == nil:
		return errors.New("graceful: Pool.Work is nil")
	case (p.Queue == nil) == (p.Fetch == nil):
		return errors.New("graceful: a Pool needs either Queue or Fetch")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = make(map[int]time.Time)
	return nil
}

func (p *Pool[T]) consume(taking, working context.Context, n int) error {
	for {
		item, ok, err := p.take(taking)
		if !ok {
			return err
		}
		p.mark(n, true)
		if err := p.Work(working, item); err != nil {
			return err
		}
		p.mark(n, false)
	}
}

// take returns the next item, or false and perhaps why there is none.
func (p *Pool[T]) take(ctx context.Context) (item T, ok bool, err error) {
	if p.Fetch != nil {
		if ctx.Err() != nil {
			return item, false, nil
		}
		item, err = p.Fetch(ctx)
		if err == io.EOF || onlyFrom(ctx, err) {
			return item, false, nil
		}
		return item, err == nil, err
	}
	select {
	case <-ctx.Done():
	default:
		select {
		case item, ok = <-p.Queue:
			return item, ok, nil
		case <-ctx.Done():
		}
	}
	if p.LeaveQueued || context.Cause(ctx) == errPoolFailed {
		return item, false, nil
	}
	select {
	case item, ok = <-p.Queue:
		return item, ok, nil
	default:
		return item, false, nil
	}
}

// mark notes that worker n has an item in hand, or has not.
func (p *Pool[T]) mark(n int, busy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if busy {
		p.busy[n] = time.Now()
	} else {
		delete(p.busy, n)
	}
}

// whoIsBusy is Busy in words: "2 of 4 busy: 1 for 12.3s, 3 for 200ms".
func (p *Pool[T]) whoIsBusy(n int) string {
	busy := p.Busy()
	if len(busy) == 0 {
		return ""
	}
	who := make([]string, len(busy))
	for i, w := range busy {
		who[i] = fmt.Sprintf("%d for %v", w.N, time.Since(w.Since).Round(time.Millisecond))
	}
	return fmt.Sprintf("%d of %d busy: %s", len(busy), n, strings.Join(who, ", "))
}
