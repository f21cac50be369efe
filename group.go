package graceful

import (
	"context"
	"errors"
	"log"
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
// runtime's default, which ends the process. SIGINT that was ignored when the
// process started stays ignored.
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
// run on goroutines of the group. When serve returns before shutdown was
// called, also with nil, the shutdown of the group begins, and serve's error is
// one of Run's unless it is http.ErrServerClosed. After shutdown was called any
// error of serve is taken for the end that was asked for: Report has it, Run
// does not. A panic is an error at any time.
//
// The shutdown of the group may begin at any time, so shutdown may be called
// before serve has begun to serve. serve then has to return at once, as that
// of net/http and of grpc-go does.
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
