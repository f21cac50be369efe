package graceful

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Start starts the servers in the order in which they were added, then the
// workers, and returns; the shutdown begins when ctx ends, or for any other of
// Group's reasons. stopped is closed when it is over; Wait then has the
// errors. The values of ctx are seen by workers and cleanup functions, its end
// and its deadline are not. If ctx has ended already, nothing is started but the
// cleanup, as if Shutdown had been called before.
//
// When a member can not be started, the others are shut down, cleanup runs,
// and Start returns the errors after that. A field that makes no sense is an
// error too, and so is a second Start; then nothing has been started or run.
func (g *Group) Start(ctx context.Context) (stopped <-chan struct{}, err error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.initLocked()
	if g.state != groupNew {
		g.mu.Unlock()
		return nil, errors.New("graceful: Group: started twice")
	}
	g.state = groupStarting
	if g.reason != "" {
		g.began = time.Now() // the budget counts from here, not from long ago
	}
	g.base = context.WithoutCancel(ctx)
	values := context.WithValue(g.base, drainingKey{}, (<-chan struct{})(g.begun))
	g.holding, g.cutWork = context.WithCancelCause(values)
	g.working, g.endWork = context.WithCancel(context.WithValue(values, finishingKey{}, g.holding))
	g.mu.Unlock()

	letGo := func() {}
	g.letOthers = func() {}
	if !g.NoSignalHandling {
		g.letOthers = conduct()
		letGo = catchSignalsUntil(make(chan struct{}), g.signalled, g.signalledAgain)
	}
	forget := context.AfterFunc(ctx, func() {
		g.begin(fmt.Sprintf("context ended: %v", context.Cause(ctx)), nil)
	})
	if ctx.Err() != nil {
		// AfterFunc's goroutine may come too late to keep a server from starting.
		g.begin(fmt.Sprintf("context ended: %v", context.Cause(ctx)), nil)
	}
	release := func() {
		forget()
		letGo()
	}

	failed := false
	for _, t := range g.servers {
		if g.isBegun() { // stopped before Start, or while starting
			break
		}
		if err := g.startServer(t); err != nil {
			failed = true
			break
		}
	}
	g.mu.Lock()
	g.state = groupRunning
	if g.reason == "" {
		// Counted before the first of them can end.
		for _, t := range g.workers {
			g.startWorkerLocked(t)
		}
	}
	g.mu.Unlock()
	if failed {
		g.run(release)
		return nil, g.err
	}
	go g.run(release)
	return g.stopped, nil
}

// Run is Start and Wait: it blocks until the shutdown is over. It returns nil
// for one that was asked for, by a signal, ctx or Shutdown, and that ended
// without an error.
//
// A group that has neither servers nor workers ends at once; after Start it
// goes on, so that Go can add workers.
func (g *Group) Run(ctx context.Context) error {
	if _, err := g.Start(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	g.lastLocked()
	g.mu.Unlock()
	return g.Wait()
}

// Wait blocks until the group has been started and its shutdown is over. It
// returns the errors of all, joined, each prefixed with the name of who had
// it: first that of the server or worker that began the shutdown by failing,
// then servers, workers and cleanup. Each of them can be found by errors.Is
// and errors.As.
func (g *Group) Wait() error {
	g.mu.Lock()
	g.initLocked()
	g.mu.Unlock()
	<-g.stopped
	return g.err
}

// Shutdown begins the shutdown and waits until it is over. It returns what
// Wait does. When ctx ends first the rest is killed, as by a second signal,
// and Shutdown returns ctx's error at once; cleanup then still has its
// reserve, and Run, Wait or Start's channel tell its end.
//
// A function of the group must not wait for it: see Stop.
//
// It may be called repeatedly and concurrently. Before Start it returns nil at
// once and is remembered: Start then starts nothing but the cleanup.
func (g *Group) Shutdown(ctx context.Context) error {
	g.begin("Shutdown was called", nil)
	g.mu.Lock()
	isNew := g.state == groupNew
	g.mu.Unlock()
	if isNew {
		return nil
	}
	select {
	case <-g.stopped:
		return g.err
	case <-ctx.Done():
	}
	select {
	case <-g.stopped: // both: the end counts
		return g.err
	default:
	}
	g.kill(fmt.Sprintf("Shutdown's context ended: %v", ctx.Err()))
	return ctx.Err()
}

// Stop begins the shutdown and does not wait for it, so that a worker or a
// handler can do so. reason is for the log and the report. Once the shutdown
// has begun it does nothing; before Start it is remembered, as Shutdown is.
func (g *Group) Stop(reason string) {
	if reason == "" {
		reason = "Stop was called"
	}
	g.begin(reason, nil)
}

// signalled and signalledAgain are catchSignals' callbacks.

func (g *Group) signalled(sig os.Signal) bool {
	g.begin("signal "+sig.String(), nil)
	return true
}

func (g *Group) signalledAgain(sig os.Signal) {
	g.kill("signal " + sig.String())
}

// begin begins the shutdown, unless it has begun. t is whose end it is, or nil.
func (g *Group) begin(reason string, t *groupTask) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	g.beginLocked(reason, t)
}

func (g *Group) beginLocked(reason string, t *groupTask) {
	if g.reason != "" {
		return
	}
	g.reason, g.first, g.began = reason, t, time.Now()
	close(g.begun)
}

func (g *Group) isBegun() bool {
	select {
	case <-g.begun:
		return true
	default:
		return false
	}
}

// kill cuts short the shutdown that has begun, unless it has been already.
func (g *Group) kill(reason string) {
	g.mu.Lock()
	first := g.killTime.IsZero() && g.state != groupStopped
	if first {
		g.killTime = time.Now()
		close(g.killed)
	}
	g.mu.Unlock()
	if first {
		g.logf("killed: %s", reason)
	}
}

func (g *Group) initLocked() {
	if g.begun == nil {
		g.begun = make(chan struct{})
		g.killed = make(chan struct{})
		g.stopped = make(chan struct{})
	}
}
