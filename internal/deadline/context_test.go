package deadline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errTimedOut = fmt.Errorf("timed out: %w", context.DeadlineExceeded)

type key struct{}
type otherKey struct{}

// A seen is all that can be seen of a context and of one derived from it.
type seen struct {
	Err, Cause, ChildErr, ChildCause string
	Done, ChildDone                  bool
	Deadline                         time.Duration // from the start; 0 for none
	Value                            any
}

func look(ctx, child context.Context, start time.Time) seen {
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	s := seen{
		Err: fmt.Sprint(ctx.Err()), Cause: fmt.Sprint(context.Cause(ctx)),
		ChildErr: fmt.Sprint(child.Err()), ChildCause: fmt.Sprint(context.Cause(child)),
		Done: closed(ctx.Done()), ChildDone: closed(child.Done()),
		Value: child.Value(key{}),
	}
	if d, ok := ctx.Deadline(); ok {
		s.Deadline = d.Sub(start)
	}
	return s
}

// A requestContext looks like the standard library's at every moment, whatever
// ends it, whenever it is asked, and whoever watches the clock.
func TestContextLikeStandard(t *testing.T) {
	custom := errors.New("custom")
	parents := map[string]func() (context.Context, context.CancelFunc){
		"none": func() (context.Context, context.CancelFunc) {
			return context.WithValue(context.Background(), key{}, 1), func() {}
		},
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(context.Background())
			time.AfterFunc(2*time.Second, func() { cancel(custom) })
			return ctx, func() { cancel(nil) }
		},
		"cancelled late": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, 2))
			time.AfterFunc(6*time.Second, cancel)
			return ctx, cancel
		},
		"cancelled before": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(custom)
			return ctx, func() {}
		},
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeoutCause(context.Background(), 2*time.Second, custom)
		},
		"late deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeoutCause(context.Background(), 6*time.Second, custom)
		},
		"one of ours": func() (context.Context, context.CancelFunc) {
			c := &requestContext{parent: context.Background(), deadline: time.Now().Add(2 * time.Second), timedOut: canceledWith(custom), selfDriven: true}
			return c, func() { c.finish(contextOver) }
		},
	}
	for name, parent := range parents {
		for _, asked := range []time.Duration{0, 3 * time.Second, 5 * time.Second, 8 * time.Second} {
			for _, over := range []time.Duration{time.Second, 5 * time.Second, 9 * time.Second} {
				if strings.Contains(name, "late") && asked > 6*time.Second && over > 6*time.Second {
					continue // it cannot tell which came first: the parent's end counts
				}
				t.Run(fmt.Sprint(name, ", asked after ", asked, ", over after ", over), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						start := time.Now()
						pctx, pcancel := parent()
						defer pcancel()
						std, cancel := context.WithDeadlineCause(pctx, start.Add(4*time.Second), errTimedOut)
						ours := &requestContext{parent: pctx, deadline: start.Add(4 * time.Second), timedOut: canceledWith(errTimedOut), selfDriven: true}
						time.AfterFunc(over, func() { cancel(); ours.requestOver() })
						time.Sleep(asked)
						synctest.Wait()
						stdChild, cancel1 := context.WithCancel(std)
						defer cancel1()
						ourChild, cancel2 := context.WithCancel(context.WithValue(ours, otherKey{}, 1))
						defer cancel2()
						for range 10 {
							synctest.Wait()
							if diff := cmp.Diff(look(std, stdChild, start), look(ours, ourChild, start)); diff != "" {
								t.Errorf("after %v: %s", time.Since(start), diff)
							}
							time.Sleep(time.Second)
						}
					})
				})
			}
		}
	}
}

// A lifted deadline is gone from the context and from those derived from it;
// the parent's end and the request's still count.
func TestContextLift(t *testing.T) {
	for _, asked := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			parent, cancel := context.WithCancelCause(context.WithValue(context.Background(), key{}, 1))
			start := time.Now()
			c := &requestContext{parent: parent, deadline: start.Add(time.Second), timedOut: canceledWith(errTimedOut), selfDriven: true}
			var child context.Context
			if asked {
				var cancelChild context.CancelFunc
				child, cancelChild = context.WithCancel(c)
				defer cancelChild()
			}
			for range 2 {
				if !c.lift() {
					t.Error("not lifted")
				}
			}
			time.Sleep(time.Minute)
			if !asked {
				var cancelChild context.CancelFunc
				child, cancelChild = context.WithCancel(c)
				defer cancelChild()
			}
			if diff := cmp.Diff(seen{"<nil>", "<nil>", "<nil>", "<nil>", false, false, 0, 1}, look(c, child, start)); diff != "" {
				t.Error(diff)
			}
			if c.finish(contextTimedOut) {
				t.Error("ended by a deadline that was lifted")
			}
			cancel(errors.New("gone"))
			synctest.Wait()
			if diff := cmp.Diff(seen{"context canceled", "gone", "context canceled", "gone", true, true, 1e9, 1}, look(c, child, start)); diff != "" {
				t.Error(diff)
			}
			if c.lift() {
				t.Error("lifted what has ended")
			}
		})
	}
}

func TestContextAfterFunc(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &requestContext{parent: context.Background(), deadline: time.Now().Add(time.Second), timedOut: canceledWith(errTimedOut), selfDriven: true}
		ran := make(chan string, 3)
		stop := c.AfterFunc(func() { ran <- "stopped" })
		context.AfterFunc(c, func() { ran <- "at the end" })
		last := c.AfterFunc(func() { <-time.After(time.Hour); ran <- "blocked" }) // holds up no other
		if !stop() || stop() {
			t.Error("stop")
		}
		if got := <-ran; got != "at the end" || c.Err() != context.DeadlineExceeded {
			t.Error(got, c.Err())
		}
		if last() {
			t.Error("stopped what has run")
		}
		c.AfterFunc(func() { ran <- "at once" })
		if got := <-ran; got != "at once" {
			t.Error(got)
		}
		<-ran
	})
}

// All at once, for the race detector: everyone sees one end.
func TestContextConcurrently(t *testing.T) {
	for range 200 {
		parent, cancel := context.WithCancel(context.Background())
		c := &requestContext{parent: parent, deadline: time.Now().Add(50 * time.Microsecond), timedOut: canceledWith(errTimedOut), selfDriven: true}
		var all sync.WaitGroup
		causes := make([]error, 8)
		for i := range causes {
			all.Go(func() {
				child, cancel := context.WithTimeout(c, time.Hour)
				defer cancel()
				c.Err()
				c.Deadline()
				c.Value(i)
				<-child.Done()
				<-c.Done()
				causes[i] = context.Cause(child)
			})
		}
		all.Go(func() { c.finish(contextOver) })
		all.Go(cancel)
		all.Go(func() { c.lift() })
		all.Wait()
		for _, err := range causes {
			if err != context.Cause(c) {
				t.Fatalf("%v, %v", err, context.Cause(c))
			}
		}
		cancel()
	}
}
