package graceful

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"time"
)

// ErrLeftBehind is the error of a server, worker or cleanup function that had
// not returned when its share of the budget was over. Its goroutine goes on;
// nobody waits for it any more. It is also the cause with which the context of
// Finishing ends.
var ErrLeftBehind = errors.New("graceful: still running when its time was up")

// Group runs the parts of a process as one: servers, workers and what has to
// be cleaned up after them, with one signal handler and one budget of time for
// the whole shutdown. The zero value is ready to use.
//
// The shutdown begins with the first SIGINT or SIGTERM, when the context given
// to Start or Run ends, by Shutdown, when a server ends or a worker returns an
// error by itself, and when all workers have returned and there is no server.
// Then, one after the other:
//
//  1. The group is unready, and so is every server added by Add.
//  2. ShutdownDelay passes, if there is a server left to notice it for.
//  3. All servers drain at once.
//  4. The contexts of the workers are cancelled, and they are waited for.
//  5. The functions given to Defer run, last in first out, one at a time.
//  6. Run returns the errors.
//
// Timeout is the budget for all of it. A step that is done early leaves its
// time to those after it. A step that uses up what it may is told so by its
// context, left behind a little later (a tenth of its time, at most 250 ms),
// named in Report and in the error, and the next step begins.
//
// A second signal, 250 ms or more after the first, kills: the delay and the
// servers' time are over, the work in hand is cancelled (see Finishing), and
// workers and cleanup have no more than their reserves. A third finds the
// runtime's default, which ends the process.
type Group struct {
	// Timeout is the time from the first moment of the shutdown to Run's
	// return. Unlike Server.Timeout it includes ShutdownDelay: set it to a
	// little less than what the supervisor grants (Kubernetes'
	// terminationGracePeriodSeconds, systemd's TimeoutStopSec). 0 means no
	// limit: every step is waited for until a second signal.
	Timeout time.Duration

	// ShutdownDelay is how long the servers serve on, unready, before they
	// drain, so that load balancers notice. 0 means not at all.
	ShutdownDelay time.Duration

	// WorkerReserve is the part of Timeout that the servers can not use up,
	// so that workers have time to finish what they hold. It counts if there
	// are workers. 0 means a tenth of Timeout but at most 5 s, and 5 s without
	// a Timeout (it then counts after a kill). Negative means none.
	WorkerReserve time.Duration

	// CleanupReserve is the part of Timeout that servers and workers can not
	// use up. It counts if there are functions given to Defer; each of them
	// has an equal part of what is left, and leaves to the next what it does
	// not need. 0 and negative mean what they do for WorkerReserve.
	CleanupReserve time.Duration

	// NoSignalHandling leaves SIGINT and SIGTERM to the caller. It has to be
	// set inside a testing/synctest bubble.
	NoSignalHandling bool

	// Logger gets a line at every step of the shutdown and once a second
	// while a step is waited for. nil means no log.
	Logger *log.Logger

	// LogFunc is used instead of Logger where it is not nil.
	LogFunc func(format string, args ...any)

	mu       sync.Mutex // guards what follows, and the fields of every task
	state    groupState
	servers  []*groupTask
	workers  []*groupTask
	cleanups []*groupTask
	reason   string     // why the shutdown began; "" until then
	first    *groupTask // whose failure began it, or nil
	began    time.Time  // when it did
	killTime time.Time  // when it was cut short; zero if it was not
	took     time.Duration
	err      error // for Wait

	// No values are sent on these. Made by initLocked, never replaced.
	begun   chan struct{} // closed at the first moment of the shutdown
	killed  chan struct{} // closed when it is cut short
	stopped chan struct{} // closed when it is over

	// Set by Start, constant afterwards.
	base    context.Context // Start's, without its end
	working context.Context // the workers'
	holding context.Context // Finishing's
	endWork context.CancelFunc
	cutWork context.CancelCauseFunc
	// letOthers lets those who catch signals outside the group drain too.
	letOthers func()
}

// groupState is how far a Group has come.
type groupState int

const (
	groupNew      groupState = iota // → starting
	groupStarting                   // → running
	groupRunning                    // → workless; the shutdown begins in here
	groupWorkless                   // workers are over; → stopped
	groupStopped
)

// Server adds a server of any kind: serve blocks while it serves, shutdown
// makes it end and returns when it has, or with ctx's error after ctx. Both
// run on goroutines of the group. After shutdown was called, serve may return
// http.ErrServerClosed or net.ErrClosed: they are no errors. When serve
// returns before, also with nil, the shutdown of the group begins.
//
// When ctx ends shutdown has to cut what is left: ShutdownThenClose makes such
// a function for *http.Server, StopThenKill for *grpc.Server. For the servers
// of this package Add is the way. Given to Server as functions, or not given to
// the group at all, they catch signals themselves: they wait with that until
// the group's servers drain, but are not unready before.
//
// Server panics when a function is nil or the group has been started.
func (g *Group) Server(name string, serve func() error, shutdown func(context.Context) error) {
	if serve == nil || shutdown == nil {
		panic("graceful: Group.Server: nil function for " + name)
	}
	g.addServer(&groupTask{kind: "server", name: name, serve: []func() error{serve}, shutdown: shutdown})
}

// Add adds a *Server or a *Listener. It belongs to the group from then on:
// the group has the signals, calls the delay and bounds its Timeout by what is
// left of the budget; its readiness is part of the group's, and ends with it.
//
// Without serve functions the group starts m as m.Start does: it binds before
// Start returns, so that "address in use" is Start's error. Otherwise every
// serve function runs on a goroutine of its own, and m is only what makes
// them end:
//
//	g.Add("web", srv,
//		srv.ListenAndServe,
//		func() error { return srv.ListenAndServeTLS("cert.pem", "key.pem") })
//	g.Add("redis", l, func() error { return redis.Serve(l) })
//
// Add panics when m or a function is nil, m serves already or belongs to a
// group, or the group has been started.
func (g *Group) Add(name string, m GroupMember, serve ...func() error) {
	if m == nil || slices.ContainsFunc(serve, func(f func() error) bool { return f == nil }) {
		panic("graceful: Group.Add: nil for " + name)
	}
	m.joinGroup()
	g.addServer(&groupTask{kind: "server", name: name, member: m, serve: serve, shutdown: m.Shutdown})
}

func (g *Group) addServer(t *groupTask) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != groupNew {
		panic("graceful: Group: server " + t.name + " added after Start")
	}
	g.servers = append(g.servers, t.init(g))
}

// Go adds a worker. fn's context is cancelled once all servers have drained,
// not when Start's is: what they hand to the worker has a taker to the end. fn
// then finishes what it holds and returns; context.Canceled is no error from
// there on. Draining(ctx) is closed earlier, at the first moment of the
// shutdown, for workers that take from outside; Finishing(ctx) is a context
// for the work in hand.
//
// A worker may return nil at any time. An error begins the shutdown, and is
// the first that Run returns. A panic is an error too, a *PanicError.
//
// Go may be called before Start and, from any goroutine, after it: fn then
// starts at once. Once the workers have been waited for it is too late: then
// fn does not run and the log says so. Go panics when fn is nil.
func (g *Group) Go(name string, fn func(ctx context.Context) error) {
	if fn == nil {
		panic("graceful: Group.Go: nil function for " + name)
	}
	t := (&groupTask{kind: "worker", name: name, run: fn}).init(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.state < groupRunning:
		g.workers = append(g.workers, t)
	case g.state == groupRunning:
		g.workers = append(g.workers, t)
		if g.working.Err() != nil {
			t.asked = time.Now()
		}
		g.startWorkerLocked(t)
	default:
		go g.logf("worker %s came too late to be started", t.name)
	}
}

// Defer adds a function to run when servers and workers are over, in the
// reverse of the order in which they were added, as defer has it. It runs also
// when Start fails. fn's context ends with fn's part of the time that is left.
//
// Defer may be called before Start and, from any goroutine, after it. Once
// cleanup has begun it is too late: then fn does not run and the log says so.
// Defer panics when fn is nil.
func (g *Group) Defer(name string, fn func(ctx context.Context) error) {
	if fn == nil {
		panic("graceful: Group.Defer: nil function for " + name)
	}
	t := (&groupTask{kind: "cleanup", name: name, run: fn}).init(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state >= groupWorkless {
		go g.logf("cleanup %s came too late to be run", t.name)
		return
	}
	g.cleanups = append(g.cleanups, t)
}

// Start starts the servers in the order in which they were added, then the
// workers, and returns; the shutdown begins when ctx ends, or for any other of
// Group's reasons. stopped is closed when it is over; Wait then has the
// errors. The values of ctx are seen by workers and cleanup functions, its end
// and its deadline are not.
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
func (g *Group) Run(ctx context.Context) error {
	if _, err := g.Start(ctx); err != nil {
		return err
	}
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

func (g *Group) logf(format string, args ...any) {
	switch {
	case g.LogFunc != nil:
		g.LogFunc("graceful: "+format, args...)
	case g.Logger != nil:
		g.Logger.Printf("graceful: "+format, args...)
	}
}
