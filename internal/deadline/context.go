package deadline

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A requestContext is like context.WithDeadlineCause(parent, deadline, cause), with
// two differences. The deadline can be lifted. The timer and the channel are made
// only when they are needed; so if the context is used for the first time when
// both its deadline has passed and its parent has ended, it has the parent's
// error.
//
//	running ──▶ lifted          the deadline was lifted
//	   └──────────┴──▶ timedOut (from running only), parentEnded, over
type requestContext struct {
	parent   context.Context
	deadline time.Time

	// timedOut is a context that was cancelled with the cause that this context
	// has once its deadline has passed.
	timedOut context.Context

	// selfDriven makes the context watch the clock and its parent. If it is false,
	// the exchange calls finish.
	selfDriven bool

	state atomic.Uint32 // changes under mu

	mu    sync.Mutex // guards what follows
	done  chan struct{}
	after map[*func()]struct{}
	timer *time.Timer // nil unless watchLocked was called
	stop  func() bool // stops watching the parent; nil unless watchLocked was called
}

const (
	contextRunning     = iota
	contextLifted      // running, without a deadline
	contextTimedOut    // the deadline has passed
	contextParentEnded // the parent has ended
	contextOver        // the request is over
)

func ended(state uint32) bool { return state > contextLifted }

// canceledWith returns a context that was cancelled with the cause.
func canceledWith(cause error) context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	return ctx
}

// canceled has the cause for the contexts of requests that are over.
var canceled = canceledWith(context.Canceled)

func (c *requestContext) Deadline() (time.Time, bool) {
	d, ok := c.parent.Deadline()
	if c.state.Load() == contextLifted || ok && d.Before(c.deadline) {
		return d, ok
	}
	return c.deadline, true
}

func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil {
		return c.done
	}
	c.mu.Unlock()
	c.Err() // ends the context if it is due
	c.mu.Lock()
	if c.done == nil {
		c.done = make(chan struct{})
		if ended(c.state.Load()) {
			close(c.done)
		} else if c.selfDriven {
			c.watchLocked()
		}
	}
	return c.done
}

func (c *requestContext) watchLocked() {
	if c.state.Load() != contextLifted {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.finish(contextTimedOut) })
	}
	if c.parent.Done() != nil {
		c.stop = context.AfterFunc(c.parent, func() { c.finish(contextParentEnded) })
	}
}

func (c *requestContext) Err() error {
	if c.selfDriven && !ended(c.state.Load()) {
		// Before a call of Done there is no timer.
		if c.parent.Err() != nil {
			c.finish(contextParentEnded)
		} else if !time.Now().Before(c.deadline) {
			c.finish(contextTimedOut)
		}
	}
	switch c.state.Load() {
	case contextTimedOut:
		return context.DeadlineExceeded
	case contextParentEnded:
		return c.parent.Err()
	case contextOver:
		return context.Canceled
	}
	return nil
}

// Value returns the parent's values. context.Cause asks for the cause by a key of
// package context, which is answered by timedOut or canceled.
func (c *requestContext) Value(key any) any {
	var cause any
	switch c.state.Load() {
	case contextTimedOut:
		cause = c.timedOut.Value(key)
	case contextOver:
		cause = canceled.Value(key)
	}
	if cause != nil {
		return cause
	}
	return c.parent.Value(key)
}

// AfterFunc calls f on a goroutine of its own when the context has ended. Package
// context uses it to end the contexts that are derived from this one: see
// context.AfterFunc.
func (c *requestContext) AfterFunc(f func()) (stop func() bool) {
	c.Done() // starts the timer
	c.mu.Lock()
	defer c.mu.Unlock()
	if ended(c.state.Load()) {
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = make(map[*func()]struct{})
	}
	c.after[&f] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, ok := c.after[&f]
		delete(c.after, &f)
		return ok
	}
}

// lift removes the deadline. It reports false if the context has ended already.
func (c *requestContext) lift() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ended(c.state.Load()) {
		return false
	}
	c.state.Store(contextLifted)
	if c.timer != nil {
		c.timer.Stop()
	}
	return true
}

// requestOver ends the context because the request is over, unless it has ended
// or its end is due.
func (c *requestContext) requestOver() {
	c.Err()
	c.finish(contextOver)
}

// finish ends the context with the state, unless it has ended before, or the state
// is contextTimedOut and the deadline was lifted. It reports whether the context
// has ended.
func (c *requestContext) finish(state uint32) bool {
	c.mu.Lock()
	was := c.state.Load()
	if ended(was) || was == contextLifted && state == contextTimedOut {
		c.mu.Unlock()
		return ended(was)
	}
	c.state.Store(state)
	if c.done != nil {
		close(c.done)
	}
	after := slices.Collect(maps.Keys(c.after))
	c.after = nil
	timer, stop := c.timer, c.stop
	c.mu.Unlock()
	if timer != nil {
		timer.Stop()
	}
	if stop != nil {
		stop()
	}
	for _, f := range after {
		go (*f)()
	}
	return true
}
