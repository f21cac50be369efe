package graceful

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A check is one reason to be unwell. It runs once at a time, however many
// probes there are: one that hangs holds one goroutine, not one per probe.
type check struct {
	name   string
	f      func(context.Context) error
	result func() error // instead of f: known at once

	mu  sync.Mutex // guards run
	run *checkRun  // under way, or nil
}

// A checkRun is one run of a check.
type checkRun struct {
	done chan struct{} // closed when err is set
	err  error
}

// start runs the check, or joins the run that is under way. The run does not
// end with the probe that began it, for others may have joined.
func (c *check) start(ctx context.Context, timeout time.Duration) *checkRun {
	run := &checkRun{done: make(chan struct{})}
	if c.result != nil {
		run.err = c.result()
		close(run.done)
		return run
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		return c.run
	}
	c.run = run
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	go func() {
		defer cancel()
		err := errors.New("the check called runtime.Goexit")
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
			c.mu.Lock()
			c.run = nil
			c.mu.Unlock()
			run.err = err
			close(run.done)
		}()
		err = c.f(ctx)
	}()
	return run
}

// wait returns the run's result, or ctx's error if it takes too long.
func (r *checkRun) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	default:
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("not done in time: %w", ctx.Err())
	}
}
