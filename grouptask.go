package graceful

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"time"
)

// PanicError is the error of a function of a Group or Pool that panicked. It
// unwraps to the panic's value if that is an error.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the goroutine, as debug.Stack has it
}

// Error has the value and the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n\n%s", e.Value, e.Stack) }

// Unwrap returns Value if it is an error, otherwise nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// errGoexit is the error of a function that left by runtime.Goexit, as
// t.FailNow does.
var errGoexit = errors.New("graceful: the function called runtime.Goexit")

// crashed reports whether err is that of a function which did not return.
func crashed(err error) bool {
	_, panicked := err.(*PanicError)
	return panicked || err == errGoexit
}

// spawn calls fn on a goroutine of its own, and then end with fn's error, in
// every way in which fn can end.
func spawn(fn func() error, end func(error)) {
	go func() {
		err := errGoexit
		defer func() {
			if v := recover(); v != nil {
				err = &PanicError{v, debug.Stack()}
			}
			end(err)
		}()
		err = fn()
	}()
}

// groupTask is a server, a worker or a cleanup function of a Group.
type groupTask struct {
	// Constant once it has been added.
	g        *Group
	kind     string // as the report has it: "server", "worker", "cleanup"
	name     string
	member   GroupMember                 // or nil
	serve    []func() error              // a server's
	shutdown func(context.Context) error // a server's
	run      func(context.Context) error // a worker's or cleanup's
	over     chan struct{}               // closed when all parts have returned

	// Guarded by g.mu.
	started bool
	parts   int       // functions of it that run
	asked   time.Time // when it was told to end; zero before
	cut     bool      // told that its time is up
	left    bool      // left behind: what comes later does not count
	ended   time.Time
	errs    []error
	detail  func() string // what a Pool in it says of itself
	// farewells are the errors of serve functions that ended as they were asked to.
	farewells []string
}

func (t *groupTask) init(g *Group) *groupTask {
	t.g = g
	if t.name == "" {
		t.name = t.kind
	}
	t.over = make(chan struct{})
	return t
}

// startServer starts a server. Its failure has begun the shutdown when
// startServer returns the error.
func (g *Group) startServer(t *groupTask) error {
	serve := t.serve
	if len(serve) == 0 {
		wait, err := t.member.startInGroup()
		if err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			t.errs = append(t.errs, err)
			g.beginLocked("server "+t.name+" did not start", t)
			return err
		}
		serve = []func() error{wait}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t.started = true
	for _, fn := range serve {
		t.spawnLocked(fn, t.served)
	}
	return nil
}

func (g *Group) startWorkerLocked(t *groupTask) {
	t.started = true
	ctx := context.WithValue(g.working, taskKey{}, t)
	t.spawnLocked(func() error { return t.run(ctx) }, t.worked)
}

// spawnLocked runs fn as a part of the task. end is called with g.mu held,
// and returns the error without what is none.
func (t *groupTask) spawnLocked(fn func() error, end func(error) error) {
	t.parts++
	spawn(fn, func(err error) {
		t.g.mu.Lock()
		defer t.g.mu.Unlock()
		t.parts--
		if t.left {
			return
		}
		if err = end(err); err != nil {
			t.errs = append(t.errs, err)
		}
		// A server whose serve function returned still has to be shut down:
		// connections that it accepted may live.
		if t.parts == 0 && (t.kind != "server" || !t.asked.IsZero()) {
			t.ended = time.Now()
			close(t.over)
			t.g.lastLocked()
		}
	})
}

// served is the end of a serve function. Many servers have an error of their own
// for a stop that was asked for (grpc.ErrServerStopped, cmux.ErrServerClosed):
// after shutdown was called any error is taken for that, and the report keeps
// what it says.
func (t *groupTask) served(err error) error {
	asked := !t.asked.IsZero()
	switch {
	case errors.Is(err, http.ErrServerClosed):
		err = nil
	case err != nil && asked && !crashed(err):
		if !errors.Is(err, net.ErrClosed) {
			t.farewells = append(t.farewells, firstLine(err))
		}
		err = nil
	}
	if err != nil {
		t.g.beginLocked(fmt.Sprintf("server %s failed: %v", t.name, firstLine(err)), t)
	} else {
		t.g.beginLocked("server "+t.name+" ended", t)
	}
	return err
}

// shutDown is the end of a shutdown function.
func (t *groupTask) shutDown(ctx context.Context, err error) error {
	t.cut = ctx.Err() != nil
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// worked is the end of a worker. That its context was cancelled is an error
// only before that is so, or if the work that it held was cut.
func (t *groupTask) worked(err error) error {
	if !t.cut && onlyFrom(t.g.working, err) {
		err = nil
	}
	if err != nil {
		t.g.beginLocked(fmt.Sprintf("worker %s failed: %v", t.name, firstLine(err)), t)
	}
	return err
}

// lastLocked begins the shutdown when there is nobody left to wait for.
func (g *Group) lastLocked() {
	if g.state != groupRunning || len(g.servers) > 0 {
		return
	}
	for _, t := range g.workers {
		if t.parts > 0 {
			return
		}
	}
	reason := "all workers have returned"
	if len(g.workers) == 0 {
		reason = "there is nothing to run"
	}
	g.beginLocked(reason, nil)
}

// onlyFrom reports whether err is ctx's error, wrapped or not, and nothing else
// is joined to it.
func onlyFrom(ctx context.Context, err error) bool {
	if ctx.Err() == nil || err == nil {
		return false
	}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if !onlyFrom(ctx, err) {
				return false
			}
		}
		return true
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return onlyFrom(ctx, inner)
		}
	}
	// Is, because package net has an error of its own that is Canceled.
	return errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))
}

// firstLine is err's text without what follows its first line, such as a stack.
func firstLine(err error) string {
	s := err.Error()
	for i, c := range s {
		if c == '\n' {
			return s[:i]
		}
	}
	return s
}

// taskKey and finishingKey are the context keys of a worker's task and of the
// context that Finishing returns.
type (
	taskKey      struct{}
	finishingKey struct{}
)

// Finishing returns a context for the work that a worker holds when ctx, its
// own, is cancelled: one with ctx's values that goes on until the worker's
// time is up, the group is killed, or the group's shutdown is over. Its cause
// is ErrLeftBehind then.
//
//	func consume(ctx context.Context) error {
//		for {
//			m, err := queue.Receive(ctx) // ends with ctx
//			if err != nil {
//				return err
//			}
//			m.Handle(graceful.Finishing(ctx)) // does not
//		}
//	}
//
// For a context that comes from no Group's worker it is
// context.WithoutCancel(ctx): it never ends.
func Finishing(ctx context.Context) context.Context {
	end, ok := ctx.Value(finishingKey{}).(context.Context)
	if !ok {
		return context.WithoutCancel(ctx)
	}
	return finishing{end, context.WithoutCancel(ctx)}
}

// finishing ends with its Context and has the values of the other, which never
// ends.
type finishing struct {
	context.Context
	values context.Context
}

// Value asks values first. For the key by which package context finds a
// cancelable parent values has nothing, so that Cause and WithCancel see the
// one that this context ends with.
func (f finishing) Value(key any) any {
	if v := f.values.Value(key); v != nil {
		return v
	}
	return f.Context.Value(key)
}
