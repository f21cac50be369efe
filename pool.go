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

// Pool consumes a queue: N goroutines take items from a channel or a function and
// work on them. When the pool is to end, they finish the items that they hold.
// Run is a worker for Group.Go:
//
//	pool := &graceful.Pool[Mail]{N: 4, Queue: mails, Work: send}
//	g.Go("mail", pool.Run)
//
// GroupReport then lists the goroutines of the pool that are busy. The fields must
// not be changed once Run was called.
type Pool[T any] struct {
	// N is the number of goroutines. 0 means 1.
	N int

	// Queue is the channel from which items are taken. When it is closed and
	// empty, the pool ends. When Run's context ends, the pool works on the items
	// that are in the channel's buffer, or that a sender is waiting to send, and
	// then ends. Either Queue or Fetch has to be set.
	Queue <-chan T

	// LeaveQueued makes the pool take no more items from Queue once Run's context
	// has ended. It is for queues whose source delivers unacknowledged items
	// again.
	LeaveQueued bool

	// Fetch is the function from which items are taken. It waits for an item, or
	// until ctx ends, which is when Run's context does. It is called by N
	// goroutines concurrently. If it returns io.EOF, or ctx's error after ctx has
	// ended, the goroutine ends. Another error ends the pool. An item that Fetch
	// returns without an error is worked on, also if ctx has ended.
	Fetch func(ctx context.Context) (T, error)

	// Work is called for each item, by N goroutines concurrently. ctx goes on when
	// Run's context ends; it ends when the pool's time is up (see Finishing and
	// Timeout). An error or a panic ends the pool, so Work has to handle the errors
	// of single items itself. It has to be set.
	Work func(ctx context.Context, item T) error

	// Timeout is how long Run waits for the items in hand, from when its context
	// ends or a goroutine fails. Work's context ends a little earlier (a tenth of
	// Timeout, at most 250 ms). 0 means no limit other than that of a Group in
	// which the pool runs.
	Timeout time.Duration

	mu   sync.Mutex        // guards busy
	busy map[int]time.Time // since when goroutine n, from 1, has had its item
}

// PoolWorker is a goroutine of a Pool that has an item in hand.
type PoolWorker struct {
	N     int       // its number, from 1
	Since time.Time // when it got the item
}

// errPoolFailed is the cause with which Fetch's context ends when a goroutine has
// failed.
var errPoolFailed = errors.New("graceful: a worker of the pool failed")

// Run starts the pool's goroutines and blocks until all of them have returned.
// They return when there are no more items, when ctx has ended, and when one of
// them has failed; in each case they finish the items that they hold. Run returns
// their errors, joined with errors.Join, each with the goroutine's number. If
// Timeout passes first, Run returns an error that wraps ErrLeftBehind and lists
// the busy goroutines, which go on.
//
// A Pool may be run again when Run has returned, but not concurrently.
func (p *Pool[T]) Run(ctx context.Context) error {
	if err := p.start(); err != nil {
		return err
	}
	n := max(1, p.N)
	if t, ok := ctx.Value(taskKey{}).(*groupTask); ok {
		t.g.mu.Lock()
		t.detail = func() string { return p.busySummary(n) }
		t.g.mu.Unlock()
	}
	taking, stopTaking := context.WithCancelCause(ctx)
	defer stopTaking(nil)
	working, cut := context.WithCancelCause(Finishing(ctx))
	defer cut(nil)
	ends := make(chan error, n) // buffered for goroutines that are left behind
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
			errs = append(errs, fmt.Errorf("%w (%s)", ErrLeftBehind, p.busySummary(n)))
			left = 0
		}
	}
	return errors.Join(errs...)
}

// Busy returns the goroutines that have an item in hand, those that have had it
// longest first. It may be called at any time and from any goroutine.
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

// start returns an error if a field has an invalid value, and resets busy.
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

// take returns the next item, or false and nil or an error if there is none.
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

// mark records whether goroutine n has an item in hand.
func (p *Pool[T]) mark(n int, busy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if busy {
		p.busy[n] = time.Now()
	} else {
		delete(p.busy, n)
	}
}

// busySummary returns Busy as text: "2 of 4 busy: 1 for 12.3s, 3 for 200ms".
func (p *Pool[T]) busySummary(n int) string {
	busy := p.Busy()
	if len(busy) == 0 {
		return ""
	}
	list := make([]string, len(busy))
	for i, w := range busy {
		list[i] = fmt.Sprintf("%d for %v", w.N, time.Since(w.Since).Round(time.Millisecond))
	}
	return fmt.Sprintf("%d of %d busy: %s", len(busy), n, strings.Join(list, ", "))
}
