package graceful

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// Start starts the servers in the order in which they were added, those that stop
// last before the others, then the workers, and returns. The shutdown begins when ctx ends, or for another of the
// reasons that Group lists. stopped is closed when it is over; Wait then returns
// the errors. The contexts of workers and cleanup functions have the values of
// ctx, but not its end and its deadline. If ctx has ended already, only the
// cleanup runs, as if Shutdown had been called before.
//
// If a server cannot be started, the others are shut down, cleanup runs, and
// then Start returns the errors. Start returns an error at once, and starts
// nothing, if a field has an invalid value or Start was called before.
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
	if err := g.Process.claim(g.stopped); err != nil {
		g.mu.Unlock()
		return nil, err
	}
	g.state = groupStarting
	if g.reason != "" {
		g.began = time.Now() // Stop was called before; the budget counts from Start
	}
	g.base = context.WithoutCancel(ctx)
	values := withMoments(g.base, moments{g.begun, g.draining})
	g.holding, g.cutWork = context.WithCancelCause(values)
	g.working, g.endWork = context.WithCancel(context.WithValue(values, finishingKey{}, g.holding))
	g.mu.Unlock()

	stopSignals := func() {}
	g.releaseOthers = func() {}
	if sigs := signalsOf(g.Signals, g.NoSignalHandling); len(sigs) > 0 {
		g.releaseOthers = delayCatchers()
		stopSignals = catchSignalsUntil(make(chan struct{}), sigs, g.signalled, g.signalledAgain)
	}
	g.connect()
	forget := context.AfterFunc(ctx, func() {
		g.begin("context ended: "+firstLine(context.Cause(ctx)), nil)
	})
	if ctx.Err() != nil {
		// AfterFunc calls it on another goroutine, perhaps after a server was started.
		g.begin("context ended: "+firstLine(context.Cause(ctx)), nil)
	}
	release := func() {
		forget()
		stopSignals()
	}

	failed := false
	ending, last := g.split()
	for _, t := range slices.Concat(last, ending) {
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
		// With the lock held, so that all workers are counted before one can end.
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

// Run calls Start and then Wait: it blocks until the shutdown is over. It returns
// nil if no server, worker or cleanup function had an error.
//
// A group without servers and workers ends at once. After Start alone such a
// group goes on, so that Go can add workers.
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
// returns the errors of all servers, workers and cleanup functions, joined with
// errors.Join, each prefixed with its function's name. The error of the server or
// worker that began the shutdown comes first, then servers, workers and cleanup.
func (g *Group) Wait() error {
	g.mu.Lock()
	g.initLocked()
	g.mu.Unlock()
	<-g.stopped
	return g.err
}

// Shutdown begins the shutdown, waits until it is over, and returns the same
// error as Wait. If ctx ends first, Shutdown kills the group, as a second signal
// does, and returns ctx's error at once. Cleanup then still has its reserve; Run
// and Wait return when that is over.
//
// A function of the group must call Stop instead: Shutdown would wait for it to
// return.
//
// Shutdown may be called repeatedly and concurrently. Before Start it returns nil
// at once, and a later Start runs only the cleanup.
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
	case <-g.stopped: // select picks at random if both are ready
		return g.err
	default:
	}
	g.kill(fmt.Sprintf("Shutdown's context ended: %v", ctx.Err()))
	return ctx.Err()
}

// Stop begins the shutdown and does not wait for it. It may be called by workers
// and handlers. reason is for the log and the report; "" means "Stop was called".
// Once the shutdown has begun, Stop does nothing. After a Stop before Start, Start
// runs only the cleanup.
func (g *Group) Stop(reason string) {
	if reason == "" {
		reason = "Stop was called"
	}
	g.begin(reason, nil)
}

// groupState is the state of a Group. Each goes to the one below it.
type groupState int

const (
	groupNew      groupState = iota // Start was not called
	groupStarting                   // Start starts the servers
	groupRunning                    // servers and workers run; the shutdown may have begun
	groupWorkless                   // all workers have returned or are left behind
	groupStopped                    // the shutdown is over
)

// signalled is called for the first signal.
func (g *Group) signalled(sig os.Signal) bool {
	g.begin("signal "+sig.String(), nil)
	return true
}

// signalledAgain is called for the second signal.
func (g *Group) signalledAgain(sig os.Signal) {
	g.kill("signal " + sig.String())
}

// begin begins the shutdown, unless it has begun. t is the task whose end is the
// reason, or nil.
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

// kill cuts the shutdown short, unless that was done before. It does not begin
// it.
func (g *Group) kill(reason string) {
	g.mu.Lock()
	first := g.killTime.IsZero() && g.state != groupStopped
	if first {
		g.killTime = time.Now()
		close(g.killed)
	}
	g.mu.Unlock()
	if first {
		g.log(event(slog.LevelWarn, "group killed", slog.String("reason", reason)).sentence("killed: %s", reason))
	}
}

func (g *Group) initLocked() {
	if g.begun == nil {
		g.begun = make(chan struct{})
		g.draining = make(chan struct{})
		g.killed = make(chan struct{})
		g.stopped = make(chan struct{})
		g.lines.write = g.write
	}
}

// startServer starts a server. If that fails, it begins the shutdown and returns
// the error.
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

// run waits until the shutdown begins, and runs its steps. From groupRunning on,
// state is changed here only.
func (g *Group) run(release func()) {
	<-g.begun
	level := slog.LevelInfo
	if g.failed() {
		level = slog.LevelError
	}
	g.log(event(level, "group shutdown begun", slog.String("reason", g.reason)).
		sentence("shutdown initiated: %s", g.reason))
	servers, last := g.split()
	for _, t := range servers {
		// t.started is read without the lock, since no server is started after run
		// has begun. A server that was not started does not get a Shutdown either.
		if t.member != nil && t.started {
			t.member.beginDelay()
		}
	}
	g.delay()
	close(g.draining)
	g.releaseOthers()
	g.stopServers(servers, g.newStep(g.reserveNow("worker")+g.reserveNow("cleanup"), 0, true))
	g.endWorkers()
	g.cleanUp()
	g.stopServers(last, g.newStep(0, g.reserve(g.CleanupReserve), false))

	release()
	g.cutWork(ErrLeftBehind)
	g.mu.Lock()
	g.state = groupStopped
	g.took = time.Since(g.began)
	g.err = g.errorsLocked()
	g.mu.Unlock()
	r := g.Report()
	g.log(event(slog.LevelInfo, "group shutdown over", r.LogValue().Group()...).
		sentence("stopped after %v: %s", r.Took.Round(time.Millisecond), r.summary()))
	callReportHook(g.OnReport, r)
	g.mu.Lock()
	link := g.link
	g.mu.Unlock()
	link.settle()
	g.lines.close()
	close(g.stopped)
}

// failed reports whether the shutdown began because a server or worker had an error.
func (g *Group) failed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.first != nil && len(g.first.errs) > 0
}

// delay waits for ShutdownDelay, if a server still serves.
func (g *Group) delay() {
	g.mu.Lock()
	serving := slices.ContainsFunc(g.servers, func(t *groupTask) bool { return t.parts > 0 && !t.last })
	handedOver := g.handedOver
	g.mu.Unlock()
	if g.ShutdownDelay <= 0 || !serving || handedOver {
		return
	}
	g.log(event(slog.LevelInfo, "group delaying", slog.Duration("delay", g.ShutdownDelay)).
		sentence("unready, still serving; draining begins in %v", g.ShutdownDelay))
	timer := time.NewTimer(g.ShutdownDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.killed:
	}
}

// stopServers shuts those of the servers down that were started, in the step s.
func (g *Group) stopServers(servers []*groupTask, s groupStep) {
	g.mu.Lock()
	tasks := slices.DeleteFunc(slices.Clone(servers), func(t *groupTask) bool { return !t.started })
	g.mu.Unlock()
	if len(tasks) == 0 {
		return
	}
	ctx, tell, cancel := s.context()
	defer cancel()
	g.log(event(slog.LevelInfo, "group draining", s.attrs(slog.Int("servers", len(tasks)))...).
		sentence("draining %d servers, %s", len(tasks), s.leftText()))
	g.mu.Lock()
	for _, t := range tasks {
		t.asked = time.Now()
		t.spawnLocked(func() error { return t.shutdown(ctx) },
			func(err error) error { return t.shutDown(ctx, err) })
	}
	g.mu.Unlock()
	s.await(tasks, tell)
}

func (g *Group) endWorkers() {
	s := g.newStep(g.reserveNow("cleanup"), g.reserve(g.WorkerReserve), true)
	g.mu.Lock()
	for _, t := range g.workers {
		t.asked = time.Now()
	}
	// With the lock held, so that asked is set when Go sees that it is cancelled.
	g.endWork()
	for {
		tasks := slices.DeleteFunc(slices.Clone(g.workers), func(t *groupTask) bool {
			return t.left || t.parts == 0
		})
		if len(tasks) == 0 {
			g.state = groupWorkless // under the same lock, so that Go cannot add one in between
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		g.log(event(slog.LevelInfo, "group ending workers", s.attrs(slog.Int("workers", len(tasks)))...).
			sentence("waiting for %d workers, %s", len(tasks), s.leftText()))
		s.await(tasks, func() { g.cutWork(ErrLeftBehind) })
		g.mu.Lock()
	}
}

func (g *Group) cleanUp() {
	g.mu.Lock()
	tasks := slices.Clone(g.cleanups)
	g.mu.Unlock()
	slices.Reverse(tasks)
	parts := len(tasks)
	if _, last := g.split(); len(last) > 0 {
		parts++
	}
	for i, t := range tasks {
		todo := time.Duration(parts - i)
		s := g.newStep(0, g.reserve(g.CleanupReserve)/todo, false)
		if !s.leave.IsZero() {
			s.leave = s.start.Add(s.leave.Sub(s.start) / todo)
		}
		ctx, tell, cancel := s.context()
		g.mu.Lock()
		t.started, t.asked = true, s.start
		t.spawnLocked(func() error { return t.run(ctx) },
			func(err error) error { return t.shutDown(ctx, err) })
		g.mu.Unlock()
		s.await([]*groupTask{t}, tell)
		cancel()
	}
}

// split returns the servers that drain together, and those that stop last. It must
// be called once the group has been started, when both are constant.
func (g *Group) split() (servers, last []*groupTask) {
	for _, t := range g.servers {
		if t.last {
			last = append(last, t)
		} else {
			servers = append(servers, t)
		}
	}
	return servers, last
}

// lastLocked begins the shutdown if the group has no servers, but for those that stop
// last, and all workers have returned. A group of servers that stop last alone goes
// on.
func (g *Group) lastLocked() {
	servers, last := g.split()
	if g.state != groupRunning || len(servers) > 0 || len(g.workers) == 0 && len(last) > 0 {
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

const (
	// maxNotice is the longest time between the end of a function's context and
	// when the function is left behind.
	maxNotice = 250 * time.Millisecond
	// maxReserve is the longest reserve of a field that is 0.
	maxReserve = 5 * time.Second
)

// noticeOf returns how long before the end of a step that lasts d the contexts of
// its functions end.
func noticeOf(d time.Duration) time.Duration { return min(d/10, maxNotice) }

// check returns an error if a field has an invalid value.
func (g *Group) check() error {
	if err := cmp.Or(
		notNegative("Group.Budget", g.Budget),
		notNegative("Group.ShutdownDelay", g.ShutdownDelay),
		catchable("Group.Signals", g.Signals),
		g.Process.check(signalsOf(g.Signals, g.NoSignalHandling)),
	); err != nil {
		return err
	}
	if spent := g.ShutdownDelay + g.reserve(g.WorkerReserve) + g.reserve(g.CleanupReserve); g.Budget > 0 && spent >= g.Budget {
		return fmt.Errorf("graceful: Group.Budget of %v leaves nothing for the servers: ShutdownDelay %v, WorkerReserve %v, CleanupReserve %v",
			g.Budget, g.ShutdownDelay, g.reserve(g.WorkerReserve), g.reserve(g.CleanupReserve))
	}
	return nil
}

// reserve returns the reserve for the value of a reserve field.
func (g *Group) reserve(field time.Duration) time.Duration {
	switch {
	case field > 0:
		return field
	case field < 0:
		return 0
	case g.Budget > 0:
		return min(g.Budget/10, maxReserve)
	}
	return maxReserve
}

// reserveNow returns the reserve for the tasks of a kind, 0 if there are none.
func (g *Group) reserveNow(kind string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case kind == "worker" && slices.ContainsFunc(g.workers, func(t *groupTask) bool { return t.parts > 0 }):
		return g.reserve(g.WorkerReserve)
	case kind == "cleanup" && (len(g.cleanups) > 0 || slices.ContainsFunc(g.servers, func(t *groupTask) bool { return t.last && t.started })):
		return g.reserve(g.CleanupReserve)
	}
	return 0
}

// groupStep is the time that a step of the shutdown has. Its fields are immutable
// once it is used.
type groupStep struct {
	g     *Group
	start time.Time
	leave time.Time     // when its tasks are left behind; zero: never
	share time.Duration // how long it may last after a kill
	cut   bool          // a kill ends its tasks' contexts at once
}

// newStep begins a step that leaves keep of the budget to later steps.
func (g *Group) newStep(keep, share time.Duration, cut bool) groupStep {
	s := groupStep{g: g, start: time.Now(), share: max(share, maxNotice), cut: cut}
	if g.Budget > 0 {
		g.mu.Lock()
		s.leave = g.began.Add(g.Budget - keep)
		g.mu.Unlock()
		if s.leave.Before(s.start) {
			s.leave = s.start
		}
	}
	return s
}

// times returns when the contexts of the step's tasks end (tell), and when the
// tasks are left behind (leave). A kill makes both earlier.
func (s groupStep) times() (tell, leave time.Time) {
	s.g.mu.Lock()
	killed := s.g.killTime
	s.g.mu.Unlock()
	if leave = s.leave; !leave.IsZero() {
		tell = leave.Add(-noticeOf(leave.Sub(s.start)))
	}
	if killed.IsZero() {
		return tell, leave
	}
	if killed.Before(s.start) {
		killed = s.start
	}
	if end := killed.Add(s.share); leave.IsZero() || end.Before(leave) {
		leave = end
		// Never later than without the kill, since the context has that deadline.
		if at := end.Add(-noticeOf(s.share)); tell.IsZero() || at.Before(tell) {
			tell = at
		}
	}
	if s.cut && killed.Before(tell) {
		tell = killed
	}
	return tell, leave
}

// context returns the context for the step's functions, whose deadline is the
// current tell of times, and a function tell that ends it earlier, after a kill.
func (s groupStep) context() (ctx context.Context, tell, cancel func()) {
	at, _ := s.times()
	if at.IsZero() {
		ctx, cancel := context.WithCancel(s.g.base)
		return ctx, cancel, cancel
	}
	ctx, cancel = context.WithDeadlineCause(s.g.base, at, ErrLeftBehind)
	return ctx, func() {
		// At the deadline the context ends by itself, with context.DeadlineExceeded.
		if time.Now().Before(at) {
			cancel()
		}
	}, cancel
}

// left returns how much time the step has, 0 if that is over. bounded is false if the
// step has no limit.
func (s groupStep) left() (left time.Duration, bounded bool) {
	_, leave := s.times()
	if leave.IsZero() {
		return 0, false
	}
	return max(0, time.Until(leave)).Round(time.Millisecond), true
}

func (s groupStep) leftText() string {
	if left, bounded := s.left(); bounded {
		return left.String() + " left"
	}
	return "without limit"
}

// attrs returns a and how much time the step has, for slog.
func (s groupStep) attrs(a slog.Attr) []slog.Attr {
	attrs := []slog.Attr{a}
	if left, bounded := s.left(); bounded {
		attrs = append(attrs, slog.Duration("left", left))
	}
	return attrs
}

// await waits until the tasks have returned. It calls tell, once, when their
// contexts are to end, and leaves behind the tasks that have not returned when
// the step is over.
func (s groupStep) await(tasks []*groupTask, tell func()) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	killed := s.g.killed
	for told := false; len(tasks) > 0; {
		tellAt, leaveAt := s.times()
		now := time.Now()
		if !told && !tellAt.IsZero() && !now.Before(tellAt) {
			told = true
			s.g.markCut(tasks)
			tell()
		}
		if !leaveAt.IsZero() && !now.Before(leaveAt) {
			break
		}
		wake := tellAt
		if told {
			wake = leaveAt
		}
		var wakeup <-chan time.Time
		if !wake.IsZero() {
			wakeup = time.After(wake.Sub(now))
		}
		select {
		case <-tasks[0].over:
			tasks = tasks[1:]
		case <-wakeup:
		case <-killed:
			killed = nil
		case <-tick.C:
			names := s.g.names(tasks)
			s.g.log(event(slog.LevelInfo, "group waiting", s.attrs(slog.Any("names", names))...).
				sentence("waiting for %s, %s", strings.Join(names, ", "), s.leftText()))
		}
	}
	s.g.leaveBehind(tasks)
}

// markCut records that the contexts of the tasks that run end.
func (g *Group) markCut(tasks []*groupTask) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range tasks {
		t.cut = t.cut || t.parts > 0
	}
}

// leaveBehind records that the tasks that run are left behind, with their error.
func (g *Group) leaveBehind(tasks []*groupTask) {
	for _, t := range tasks {
		detail := t.describe() // a Pool's, outside the lock
		g.mu.Lock()
		left := t.parts > 0
		if left {
			t.left = true
			t.ended = time.Now()
			err := error(ErrLeftBehind)
			if detail != "" {
				err = fmt.Errorf("%w (%s)", err, detail)
			}
			t.detail = nil // the error contains it
			t.errs = append(t.errs, err)
		}
		g.mu.Unlock()
		if left {
			attrs := []slog.Attr{slog.String("kind", t.kind), slog.String("name", t.name)}
			if detail != "" {
				attrs = append(attrs, slog.String("detail", detail))
				detail = ": " + detail
			}
			g.log(event(slog.LevelWarn, "left behind", attrs...).sentence("left behind: %s %s%s", t.kind, t.name, detail))
		}
	}
}

// groupTask is a server, a worker or a cleanup function of a Group.
type groupTask struct {
	// Constant once it has been added.
	g        *Group
	kind     string // "server", "worker" or "cleanup"
	name     string
	member   GroupMember                 // or nil
	serve    []func() error              // for servers
	shutdown func(context.Context) error // for servers
	run      func(context.Context) error // for workers and cleanup
	last     bool                        // a server that stops last
	over     chan struct{}               // closed when all functions have returned

	// Guarded by g.mu.
	started bool
	parts   int       // how many of its functions run
	asked   time.Time // when it was told to end; zero before
	cut     bool      // its context ended before it returned
	left    bool      // it was left behind, and later errors are dropped
	ended   time.Time
	errs    []error
	detail  func() string // the summary of a Pool in it
	// stopErrors are the errors of serve functions that returned after shutdown
	// was called, for the report.
	stopErrors []string
}

func (t *groupTask) init(g *Group) *groupTask {
	t.g = g
	if t.name == "" {
		t.name = t.kind
	}
	t.over = make(chan struct{})
	return t
}

// spawnLocked runs fn as one of the task's functions. When fn has returned, end
// is called with g.mu held and fn's error; it returns the error that counts, or
// nil.
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
		// A server whose serve function has returned still gets a Shutdown, since
		// its connections may be open.
		if t.parts == 0 && (t.kind != "server" || !t.asked.IsZero()) {
			t.ended = time.Now()
			close(t.over)
			t.g.lastLocked()
		}
	})
}

// served handles the return of a serve function. Many servers return an error of
// their own after a stop (grpc.ErrServerStopped, cmux.ErrServerClosed). So after
// shutdown was called an error does not count, and is kept for the report.
func (t *groupTask) served(err error) error {
	asked := !t.asked.IsZero()
	switch {
	case errors.Is(err, http.ErrServerClosed):
		err = nil
	case err != nil && asked && !crashed(err):
		if !errors.Is(err, net.ErrClosed) {
			t.stopErrors = append(t.stopErrors, firstLine(err))
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

// shutDown handles the return of a shutdown or cleanup function.
func (t *groupTask) shutDown(ctx context.Context, err error) error {
	t.cut = ctx.Err() != nil
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// worked handles the return of a worker. Its context's error does not count once
// that context has ended, unless the worker's time was up as well.
func (t *groupTask) worked(err error) error {
	if !t.cut && onlyFrom(t.g.working, err) {
		err = nil
	}
	if err != nil {
		t.g.beginLocked(fmt.Sprintf("worker %s failed: %v", t.name, firstLine(err)), t)
	}
	return err
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
	// errors.Is, because package net has an error of its own that is Canceled.
	return errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))
}
