package graceful

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrLeftBehind is the error of a server, worker or cleanup function that had
// not returned when its share of the budget was over. Its goroutine goes on, but
// the shutdown does not wait for it any more. It is also the cause
// (context.Cause) with which the context of Finishing ends.
var ErrLeftBehind = errors.New("graceful: still running when its time was up")

// PanicError is the error of a function of a Group or Pool that panicked. It
// unwraps to the panic's value if that is an error.
type PanicError struct {
	Value any    // the argument of panic
	Stack []byte // of the goroutine, as debug.Stack has it
}

// Error returns the value and the stack, in several lines.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n\n%s", e.Value, e.Stack) }

// Unwrap returns Value if it is an error, otherwise nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Group runs the servers, workers and cleanup functions of a process together,
// with one signal handler and one time budget for the whole shutdown. The zero
// value is ready to use. Its methods may be called concurrently.
//
// The shutdown begins with the first SIGINT or SIGTERM, when the context given
// to Start or Run ends, by Shutdown or Stop, when a server ends, when a worker
// returns an error, and when all workers have returned and there is no server, or
// only such that stop last.
// Its steps are:
//
//  1. The group is unready, and so is every server added by Add that does not stop
//     last.
//  2. ShutdownDelay passes, if a server still serves.
//  3. All servers drain at the same time, but for those that stop last.
//  4. The contexts of the workers are cancelled, and the workers return.
//  5. The functions given to Defer run, last in first out, one at a time.
//  6. The servers named by StopLast drain.
//  7. Run returns the errors.
//
// The steps share the time that Budget grants. A step that is done early leaves
// its time to the next steps. If a step uses up its time, the contexts of its functions
// end. A function that has not returned a little later (a tenth of the step's
// time, at most 250 ms) is left behind: Report and the error name it, and the
// next step begins.
//
// A second signal, 250 ms or more after the first, kills the group: the delay and
// the servers' time are over, the contexts of Finishing end, and workers and
// cleanup have no more time than their reserves. A third signal has its default
// effect: the process exits. SIGINT that was ignored when the process started
// stays ignored.
type Group struct {
	// Budget is the time from the begin of the shutdown to Run's return. Unlike
	// Server.Timeout it includes ShutdownDelay. It should be a little less than
	// the time that the supervisor grants (Kubernetes'
	// terminationGracePeriodSeconds, systemd's TimeoutStopSec). 0 means no
	// limit: every step takes its time, until a second signal.
	Budget time.Duration

	// ShutdownDelay is how long the servers go on serving, while they are unready,
	// before they drain, so that load balancers notice. 0 means that they drain at
	// once.
	ShutdownDelay time.Duration

	// WorkerReserve is the part of Budget that the servers cannot use up, so
	// that workers have time to finish their work. It is reserved only if workers
	// run. 0 means a tenth of Budget, but at most 5 s. Without a Budget, 0 means
	// 5 s, which is the workers' time after a kill. A negative value means no
	// reserve.
	WorkerReserve time.Duration

	// CleanupReserve is the part of Budget that servers and workers cannot use
	// up. It is reserved only if functions were given to Defer or servers stop
	// last. Each of the functions, and the servers that stop last together, have
	// an equal part of the time that is left, and leave to the next what they do
	// not need. 0 and negative values mean the same as for WorkerReserve.
	CleanupReserve time.Duration

	// NoSignalHandling keeps the group from catching signals. It has to be set inside
	// a testing/synctest bubble.
	NoSignalHandling bool

	// Signals are those that are caught. See Server.Signals.
	Signals []os.Signal

	// Process, if not nil, connects the group to its service manager (systemd), and
	// to the successor that replaces it in place.
	Process *Process

	// OnReport is called, if not nil, with the final report, when everything else is
	// over and before Run returns. It runs on a goroutine of its own; the shutdown
	// waits for it, but for a second at most. A server's own OnReport is called as
	// well.
	OnReport func(GroupReport)

	// Slog gets a record for every step of the shutdown, and once a second while a
	// step lasts. docs/logging.md lists them. What was left behind is a warning.
	Slog *slog.Logger

	// LogFunc is used if Slog is nil.
	LogFunc func(format string, args ...any)

	// Logger is used if Slog and LogFunc are nil. If all three are nil, nothing is
	// logged.
	Logger *log.Logger

	mu         sync.Mutex // guards what follows, and the fields of every task
	state      groupState
	servers    []*groupTask
	workers    []*groupTask
	cleanups   []*groupTask
	reason     string       // why the shutdown began; "" until then
	first      *groupTask   // the task whose end began it, or nil
	began      time.Time    // when the shutdown began
	killTime   time.Time    // when the group was killed; zero if it was not
	link       *processLink // nil without a Process
	handedOver bool         // the shutdown is an upgrade's
	took       time.Duration
	err        error // for Wait

	lines shutdownLog // its write is set by initLocked

	// No values are sent on these. Made by initLocked, never replaced.
	begun    chan struct{} // closed when the shutdown begins
	draining chan struct{} // closed when ShutdownDelay is over
	killed   chan struct{} // closed by kill
	stopped  chan struct{} // closed when the shutdown is over

	// Set by Start, constant afterwards.
	base    context.Context         // Start's context, without its end
	working context.Context         // the workers' context
	holding context.Context         // the context that Finishing's ends with
	endWork context.CancelFunc      // cancels working
	cutWork context.CancelCauseFunc // cancels holding
	// releaseOthers makes servers outside the group, which catch the same signals,
	// drain as well; see delayCatchers.
	releaseOthers func()
}

// AddFuncs adds a server of any kind. serve blocks while it serves. shutdown makes
// serve return, and returns itself when the server has stopped, or ctx's error
// when ctx has ended. Both run on goroutines of the group. If serve returns before
// shutdown was called, the shutdown of the group begins, and Run returns serve's
// error unless it is nil or http.ErrServerClosed. After shutdown was called, an
// error of serve is taken for the end that shutdown asked for: Report has it, and
// Run does not return it. Run returns a panic at any time, as a *PanicError.
//
// The shutdown of the group may begin at any time, so shutdown may be called
// before serve has begun to serve. serve must then return at once, as that of
// net/http and of grpc-go does.
//
// When ctx ends, shutdown must close the connections that are left.
// ShutdownThenClose makes such a function for *http.Server, StopThenKill for
// *grpc.Server. Use Add for the servers of this package. If such a server is
// given to AddFuncs as functions, or is not in the group, it catches signals
// itself: on a signal it begins to drain when the group's servers do, and is not
// unready before.
//
// AddFuncs panics if a function is nil or the group has been started.
func (g *Group) AddFuncs(name string, serve func() error, shutdown func(context.Context) error) {
	if serve == nil || shutdown == nil {
		panic("graceful: Group.AddFuncs: nil function for " + name)
	}
	g.addServer(&groupTask{kind: "server", name: name, serve: []func() error{serve}, shutdown: shutdown})
}

// Add adds a *Server or a *Listener, which then belongs to the group: it does
// not catch signals, its ShutdownDelay is replaced by the group's, and its drain
// ends with its own Timeout or with its share of the group's, whichever is earlier.
// The group is ready only if m is, and m is unready when the group's shutdown
// begins.
//
// Without serve functions the group starts m as m.Start does: the address is
// bound before Start returns, so that "address in use" is Start's error.
// Otherwise every serve function runs on a goroutine of its own, and the group
// calls m.Shutdown to make them return:
//
//	g.Add("web", srv,
//		srv.ListenAndServe,
//		func() error { return srv.ListenAndServeTLS("cert.pem", "key.pem") })
//	g.Add("redis", l, func() error { return redis.Serve(l) })
//
// Add panics if m or a function is nil, m serves already, was stopped or belongs
// to a group, or the group has been started.
func (g *Group) Add(name string, m GroupMember, serve ...func() error) {
	if m == nil || m == (*Server)(nil) || m == (*Listener)(nil) || slices.ContainsFunc(serve, func(f func() error) bool { return f == nil }) {
		panic("graceful: Group.Add: nil for " + name)
	}
	m.joinGroup()
	g.addServer(&groupTask{kind: "server", name: name, member: m, serve: serve, shutdown: m.Shutdown})
}

// StopLast makes the servers with these names, which Add or AddFuncs has added, start
// before all others and stop when workers and cleanup have ended. They serve as usual
// until then: during the shutdown metrics are still scraped, profiles taken and probes
// answered. For probes use the group's ReadyHandler, or that of a server that does
// not stop last, because those that do are ready until they stop. A negative
// IdleGrace spares such a server the wait for its clients' kept connections.
//
//	g.Add("metrics", metrics)
//	g.StopLast("metrics")
//
// Servers that stop last do not keep a group running whose workers have all
// returned. StopLast panics if no server has one of the names, or the group has been
// started.
func (g *Group) StopLast(names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != groupNew {
		panic("graceful: Group.StopLast after Start")
	}
	for _, name := range names {
		found := false
		for _, t := range g.servers {
			if t.name == name {
				t.last, found = true, true
			}
		}
		if !found {
			panic(fmt.Sprintf("graceful: Group.StopLast: no server has the name %q", name))
		}
	}
}

// Go adds a worker. fn's context is cancelled when all servers have drained, so
// that the worker takes what they hand to it until then; the end of Start's
// context does not end it. fn then finishes the work that it holds and returns.
// From then on context.Canceled does not count as an error. ShutdownBegun(ctx) is
// closed earlier, when the shutdown begins, for workers that take work from
// outside the process. Finishing(ctx) is a context for the work in hand.
//
// A worker may return nil at any time. An error begins the shutdown, and is
// the first that Run returns. A panic counts as an error, a *PanicError.
//
// Go may be called before Start and, from any goroutine, after it: fn then
// starts at once. When the group has finished waiting for its workers, a further
// fn does not run, and a log line says so. Go panics if fn is nil.
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
		g.log(event(slog.LevelWarn, "worker added too late", slog.String("name", t.name)).
			sentence("worker %s was added too late and is not started", t.name))
	}
}

// Defer adds a cleanup function, which runs when servers and workers have
// stopped, or were left behind. The functions run one at a time, last in first
// out, as with the defer statement, also when Start fails. fn's context ends with
// fn's part of the time that is left.
//
// Defer may be called before Start and, from any goroutine, after it. Once
// cleanup has begun, a further fn does not run, and a log line says so. Defer
// panics if fn is nil.
func (g *Group) Defer(name string, fn func(ctx context.Context) error) {
	if fn == nil {
		panic("graceful: Group.Defer: nil function for " + name)
	}
	t := (&groupTask{kind: "cleanup", name: name, run: fn}).init(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state >= groupWorkless {
		g.log(event(slog.LevelWarn, "cleanup added too late", slog.String("name", t.name)).
			sentence("cleanup %s was added too late and is not run", t.name))
		return
	}
	g.cleanups = append(g.cleanups, t)
}

// Draining returns a channel that is closed when the group's servers begin to
// drain, which is after ShutdownDelay. It returns the same channel every time.
func (g *Group) Draining() <-chan struct{} { return g.moments().draining }

// ShutdownBegun returns a channel that is closed at the first moment of the
// shutdown, before ShutdownDelay. It returns the same channel every time.
func (g *Group) ShutdownBegun() <-chan struct{} { return g.moments().begun }

// Context returns a copy of parent from which Draining and ShutdownBegun return the
// group's channels. It is for servers that are not of this package, whose handlers
// would not hear of the shutdown otherwise:
//
//	hs := &http.Server{
//		Handler:     handler,
//		BaseContext: func(net.Listener) context.Context { return g.Context(context.Background()) },
//	}
//	g.AddFuncs("web", hs.ListenAndServe, graceful.ShutdownThenClose(hs))
//
// The context ends with parent, and not with the group.
func (g *Group) Context(parent context.Context) context.Context {
	return withMoments(parent, g.moments())
}

func (g *Group) moments() moments {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	return moments{g.begun, g.draining}
}

// Ready reports whether the group has been started, has not begun to shut down,
// and every server added by Add is ready, that is, its ReadyHandler would answer
// 200. Ready runs the checks of Server.Health, of all servers concurrently, and
// blocks until they have returned, at most for Health.CheckTimeout.
func (g *Group) Ready() bool { return g.unready(context.Background()) == "" }

// ReadyHandler returns a handler for readiness probes. It answers 200 if Ready
// reports true, otherwise 503 with a text that names the servers that are not
// ready and the checks that fail. It forbids caching.
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

// GroupMember is the type of the servers that Group.Add accepts: *Server and
// *Listener.
type GroupMember interface {
	// Shutdown drains. If ctx ends first, it closes the connections that are left
	// and returns ctx's error. The group calls it once, with a context that ends
	// a little before the share of the servers does, and at once on a kill.
	// BeforeShutdown is not called. The member's own Timeout may end the drain
	// earlier; it counts from this call.
	Shutdown(ctx context.Context) error

	// joinGroup is called once, by Add, before anything is served. From then
	// on the member behaves as if NoSignalHandling were set and ShutdownDelay
	// were 0. It panics if the member serves already, was stopped, or belongs to
	// a group.
	joinGroup()

	// startInGroup is called at most once, by Group.Start, and only if Add
	// was given no serve functions. It binds the member's address and serves in
	// the background, as Start does; an error means that nothing was started.
	// wait blocks until serving is over and returns the error that Serve would
	// return, nil after a Shutdown. A Listener cannot serve by itself, and returns
	// an error that says that Add needs a serve function.
	startInGroup() (wait func() error, err error)

	// beginDelay is called once, when the group's shutdown begins, and returns at
	// once. The member enters the delaying phase, which lasts until Shutdown is
	// called: it is unready, ShutdownBegun is closed, HTTP/1 responses say
	// Connection: close, and requests are still served. If the member has stopped already,
	// beginDelay does nothing. If a serve function has been called and does not
	// serve yet, the delaying phase begins all the same. A member that the group
	// has not started gets neither this call nor Shutdown.
	beginDelay()

	// unready returns the names of the checks for which the member's ready
	// handler would answer 503 to a probe with the context ctx, or "" if it
	// would answer 200. It blocks as long as those checks do, and may be
	// called at any time and from any goroutine.
	unready(ctx context.Context) string

	// groupSummary returns the member's text for GroupEntry.Detail, one line
	// without a newline ("12 in flight, 40 idle, 1 killed"), or "". It may be
	// called at any time and from any goroutine.
	groupSummary() string
}

// ShutdownThenClose returns a shutdown function for Group.AddFuncs from a server
// like *http.Server, whose Shutdown leaves connections open when ctx ends. The
// function calls Shutdown. If that returns an error because ctx has ended, the
// function calls Close and returns the error, joined with that of Close. It also
// calls Close if Shutdown panics.
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

// StopThenKill returns a shutdown function for Group.AddFuncs from a server
// whose graceful stop takes no context, like *grpc.Server. The function calls
// stop. If ctx ends before stop has returned, it calls kill, which must make stop
// return:
//
//	g.AddFuncs("grpc", func() error { return s.Serve(l) },
//		graceful.StopThenKill(s.GracefulStop, s.Stop))
//
// After a kill the function returns ctx's error. It also calls kill if stop
// panics, as GracefulStop did with ServeHTTP in earlier releases of grpc-go.
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

// Finishing returns a context for the work that a worker of a Group holds when
// ctx, the worker's own context, is cancelled. It has ctx's values and ends later:
// when the worker's time is up, the group is killed, or the group's shutdown is
// over. Its cause (context.Cause) is then ErrLeftBehind.
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
// If ctx does not come from a Group's worker, Finishing returns
// context.WithoutCancel(ctx), which never ends.
func Finishing(ctx context.Context) context.Context {
	end, ok := ctx.Value(finishingKey{}).(context.Context)
	if !ok {
		return context.WithoutCancel(ctx)
	}
	return finishing{end, context.WithoutCancel(ctx)}
}

// spawn calls fn on a goroutine of its own, and then end with fn's error, also
// if fn panics (a *PanicError) or calls runtime.Goexit (errGoexit).
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

// crashed reports whether err is the error of a panic or of runtime.Goexit.
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

// unready returns why the group is not ready, or "".
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

// notRunning returns why the group is not ready, apart from its servers, or "".
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
	// The channels of this server replace those of the server that serves the
	// probe, which may be shutting down while this one is not.
	ctx = withMoments(ctx, s.life.moments())
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

// summary returns the counts of connections, from the drain on those of its
// begin.
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

// finishing is a context that ends with Context and has the values of values.
type finishing struct {
	context.Context
	values context.Context
}

// Value looks in values first. values, a context.WithoutCancel, has nothing for
// the key by which package context finds a cancelable parent, so that Cause and
// WithCancel find the context that this one ends with.
func (f finishing) Value(key any) any {
	if v := f.values.Value(key); v != nil {
		return v
	}
	return f.Context.Value(key)
}
