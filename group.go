package graceful

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrLeftBehind is the error of a server, worker or cleanup function that had
// not returned when its share of the budget was over. Its goroutine goes on;
// nobody waits for it any more. It is also the cause with which the context of
// Finishing ends.
var ErrLeftBehind = errors.New("graceful: still running when its time was up")

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

// Ready reports whether the group has been started, has not begun to shut down,
// and every server added by Add is ready, which is when its ReadyHandler would
// answer 200. The checks of Server.Health run for that, of all servers at once:
// Ready blocks until they have returned, at most for Health.CheckTimeout.
func (g *Group) Ready() bool { return g.unready(context.Background()) == "" }

// ReadyHandler answers readiness probes: 200 while Ready says true, otherwise
// 503 and, as text, which servers are not ready and the names of the checks
// that fail. Responses are not to be cached.
func (g *Group) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		body := "ready"
		if why := g.unready(r.Context()); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			body = why
		}
		io.WriteString(w, body+"\n")
	})
}

// GroupMember is what Group.Add takes: *Server and *Listener.
type GroupMember interface {
	// Shutdown drains; when ctx ends first it closes what is left and returns
	// ctx's error. The group calls it once, with a context that ends a little
	// before the share of the servers does (and at once on a kill). Whatever
	// BeforeShutdown says does not count: the group has decided. The member's
	// own Timeout may end it earlier, counted from this call.
	Shutdown(ctx context.Context) error

	// joinGroup is called once, by Add, before anything is served. From then
	// on the member behaves as if NoSignalHandling were set and ShutdownDelay
	// 0, whatever its fields say. It panics if the member serves already, has
	// been stopped, or belongs to a group.
	joinGroup()

	// startInGroup is called at most once, by Group.Start, and only if Add
	// was given no serve functions. It binds what the member's fields say and
	// serves in the background, as Start does; an error means that nothing
	// has been started. wait blocks until serving is over and returns what
	// Serve would have: nil for a stop that was asked for. A member that can
	// not serve by itself (a Listener whose Accept is another's to call)
	// returns an error that says that Add needs a serve function.
	startInGroup() (wait func() error, err error)

	// beginDelay is called once, at the first moment of the group's shutdown,
	// and returns at once. The member enters the delaying phase with no end of
	// its own: unready, Draining closed, Connection: close on HTTP/1
	// responses, everything still served until Shutdown is called, which
	// always follows. It also comes when the member has stopped by itself
	// (then it does nothing), and when a serve function has been called but
	// has not got to serving (then it is remembered). A member that the group
	// has not started gets neither this call nor Shutdown.
	beginDelay()

	// unready returns the names of the checks for which the member's ready
	// handler would answer 503 to a probe with the context ctx, or "" if it
	// would answer 200. It blocks as long as those checks do, and may be
	// called at any time and from any goroutine.
	unready(ctx context.Context) string

	// groupSummary is what GroupReport says beside the member's name, one
	// line without its end ("12 in flight, 40 idle, 1 killed"), or "". It may
	// be called at any time and from any goroutine.
	groupSummary() string
}

// ShutdownThenClose returns a shutdown function for Group.Server from a server
// like *http.Server, whose Shutdown leaves the connections that it has waited
// for in vain open when ctx ends: then it calls Close, and returns ctx's error.
// It also calls Close when Shutdown panics.
func ShutdownThenClose(srv interface {
	Shutdown(context.Context) error
	io.Closer
}) func(context.Context) error {
	return func(ctx context.Context) error {
		returned := false
		defer func() {
			if !returned {
				srv.Close()
			}
		}()
		err := srv.Shutdown(ctx)
		returned = true
		if ctx.Err() != nil && err != nil {
			if cerr := srv.Close(); cerr != nil && !errors.Is(cerr, http.ErrServerClosed) {
				err = errors.Join(err, cerr)
			}
		}
		return err
	}
}

// StopThenKill returns a shutdown function for Group.Server from a server
// whose graceful stop knows no context, like *grpc.Server: it calls stop, and
// when ctx ends before stop has returned, kill, which has to make it return:
//
//	g.Server("grpc", func() error { return s.Serve(l) },
//		graceful.StopThenKill(s.GracefulStop, s.Stop))
//
// It then returns ctx's error. It also calls kill when stop panics, as
// GracefulStop did beside ServeHTTP in earlier releases of grpc-go.
func StopThenKill(stop, kill func()) func(context.Context) error {
	return func(ctx context.Context) error {
		end := make(chan error, 1)
		spawn(func() error { stop(); return nil }, func(err error) { end <- err })
		select {
		case err := <-end:
			if err != nil {
				kill()
			}
			return err
		case <-ctx.Done():
		}
		kill()
		return errors.Join(ctx.Err(), <-end)
	}
}

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

// errGoexit is the error of a function that left by runtime.Goexit, as
// t.FailNow does.
var errGoexit = errors.New("graceful: the function called runtime.Goexit")

// crashed reports whether err is that of a function which did not return.
func crashed(err error) bool {
	_, panicked := err.(*PanicError)
	return panicked || err == errGoexit
}

func (g *Group) addServer(t *groupTask) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != groupNew {
		panic("graceful: Group: server " + t.name + " added after Start")
	}
	g.servers = append(g.servers, t.init(g))
}

// unready says why the group is not ready, or "".
func (g *Group) unready(ctx context.Context) string {
	if why := g.notRunning(); why != "" {
		return why
	}
	// No server is added once the group has been started.
	failing := make([]string, len(g.servers))
	var wg sync.WaitGroup
	for i, t := range g.servers {
		if t.member != nil {
			wg.Go(func() { failing[i] = t.member.unready(ctx) })
		}
	}
	wg.Wait()
	// A shutdown may have begun while a check ran.
	if why := g.notRunning(); why != "" {
		return why
	}
	var not []string
	for i, t := range g.servers {
		if failing[i] != "" {
			not = append(not, fmt.Sprintf("%s (%s)", t.name, failing[i]))
		}
	}
	if not != nil {
		return "not ready: " + strings.Join(not, ", ")
	}
	return ""
}

// notRunning says why the group itself is not ready, or "".
func (g *Group) notRunning() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.reason != "":
		return "shutting down"
	case g.state < groupRunning:
		return "starting"
	}
	return ""
}

func (s *Server) joinGroup() {
	s.init()
	s.life.join()
}

func (s *Server) startInGroup() (wait func() error, err error) {
	tl, err := s.bind(context.Background())
	if err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go func() { end <- s.run(tl) }()
	return func() error { return <-end }, nil
}

func (s *Server) beginDelay() {
	s.init()
	s.life.beginHeld("Group")
}

func (s *Server) unready(ctx context.Context) string {
	s.init()
	// As if the probe had come by this server: a probe that comes by another
	// one, which is shutting down, says nothing of this one's Health.
	ctx = context.WithValue(ctx, drainingKey{}, (<-chan struct{})(s.life.draining))
	return strings.Join(s.health().failing(ctx), ", ")
}

func (s *Server) groupSummary() string { return s.life.summary() }

func (l *Listener) joinGroup() {
	l.init()
	l.life.join()
}

func (l *Listener) startInGroup() (wait func() error, err error) {
	return nil, errors.New("graceful: a Listener can't serve by itself: give Group.Add the function that serves on it")
}

func (l *Listener) beginDelay() {
	l.init()
	l.life.beginHeld("Group")
}

func (l *Listener) unready(context.Context) string {
	if l.Phase() != PhaseServing {
		return "shutdown"
	}
	return ""
}

func (l *Listener) groupSummary() string { return l.life.summary() }

// summary says in a few words what there is, or what became of it.
func (lc *lifecycle) summary() string {
	if lc.Phase() < PhaseDraining {
		s := lc.stats()
		return fmt.Sprintf("%d in flight, %d idle", s.Active+s.Receiving, s.Idle+s.New)
	}
	r := lc.currentReport()
	line := fmt.Sprintf("%d in flight, %d idle at the start", r.Start.Active+r.Start.Receiving, r.Start.Idle+r.Start.New)
	if len(r.Killed) > 0 {
		line += fmt.Sprintf(", %d killed", len(r.Killed))
	}
	return line
}

// taskKey and finishingKey are the context keys of a worker's task and of the
// context that Finishing returns.
type (
	taskKey      struct{}
	finishingKey struct{}
)

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
