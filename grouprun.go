package graceful

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
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

// groupState is how far a Group has come.
type groupState int

const (
	groupNew      groupState = iota // → starting
	groupStarting                   // → running
	groupRunning                    // → workless; the shutdown begins in here
	groupWorkless                   // workers are over; → stopped
	groupStopped
)

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

// run waits for the shutdown's beginning and then conducts it. It alone moves
// the state on.
func (g *Group) run(release func()) {
	<-g.begun
	g.logf("shutdown initiated: %s", g.reason)
	for _, t := range g.servers {
		// Without the lock: a server is started before run, or never. One
		// that was not is not told either, as no Shutdown would follow.
		if t.member != nil && t.started {
			t.member.beginDelay()
		}
	}
	g.delay()
	g.letOthers()
	g.drainServers()
	g.endWorkers()
	g.cleanUp()

	release()
	g.cutWork(ErrLeftBehind)
	g.mu.Lock()
	g.state = groupStopped
	g.took = time.Since(g.began)
	g.err = g.errorsLocked()
	g.mu.Unlock()
	r := g.Report()
	g.logf("stopped after %v: %s", r.Took.Round(time.Millisecond), r.summary())
	close(g.stopped)
}

// delay lets ShutdownDelay pass, unless there is no server that still serves.
func (g *Group) delay() {
	g.mu.Lock()
	serving := slices.ContainsFunc(g.servers, func(t *groupTask) bool { return t.parts > 0 })
	g.mu.Unlock()
	if g.ShutdownDelay <= 0 || !serving {
		return
	}
	g.logf("unready; the servers drain in %v", g.ShutdownDelay)
	timer := time.NewTimer(g.ShutdownDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.killed:
	}
}

func (g *Group) drainServers() {
	s := g.newStep(g.reserveNow("worker")+g.reserveNow("cleanup"), 0, true)
	ctx, tell, cancel := s.context()
	defer cancel()
	g.mu.Lock()
	tasks := slices.DeleteFunc(slices.Clone(g.servers), func(t *groupTask) bool { return !t.started })
	g.mu.Unlock()
	if len(tasks) == 0 {
		return
	}
	g.logf("draining %d servers, %s", len(tasks), s.left())
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
	// Under the lock: whoever finds it cancelled also finds asked set.
	g.endWork()
	for {
		tasks := slices.DeleteFunc(slices.Clone(g.workers), func(t *groupTask) bool {
			return t.left || t.parts == 0
		})
		if len(tasks) == 0 {
			g.state = groupWorkless // none can come after the look that found none
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		g.logf("waiting for %d workers, %s", len(tasks), s.left())
		s.await(tasks, func() { g.cutWork(ErrLeftBehind) })
		g.mu.Lock()
	}
}

func (g *Group) cleanUp() {
	g.mu.Lock()
	tasks := slices.Clone(g.cleanups)
	g.mu.Unlock()
	slices.Reverse(tasks)
	for i, t := range tasks {
		todo := time.Duration(len(tasks) - i)
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

const (
	// lastWords is the most that a function has to return in, once it has
	// been told that its time is up, before it is left behind.
	lastWords = 250 * time.Millisecond
	// mostReserve bounds what is reserved where the caller did not say.
	mostReserve = 5 * time.Second
)

// untilLeft returns how much earlier than the end of d one is told so.
func untilLeft(d time.Duration) time.Duration { return min(d/10, lastWords) }

// check says what is wrong with the group's fields.
func (g *Group) check() error {
	if err := cmp.Or(notNegative("Group.Timeout", g.Timeout), notNegative("Group.ShutdownDelay", g.ShutdownDelay)); err != nil {
		return err
	}
	if spent := g.ShutdownDelay + g.reserve(g.WorkerReserve) + g.reserve(g.CleanupReserve); g.Timeout > 0 && spent >= g.Timeout {
		return fmt.Errorf("graceful: Group.Timeout of %v leaves nothing for the servers: ShutdownDelay %v, WorkerReserve %v, CleanupReserve %v",
			g.Timeout, g.ShutdownDelay, g.reserve(g.WorkerReserve), g.reserve(g.CleanupReserve))
	}
	return nil
}

// reserve returns what a reserve field means.
func (g *Group) reserve(field time.Duration) time.Duration {
	switch {
	case field > 0:
		return field
	case field < 0:
		return 0
	case g.Timeout > 0:
		return min(g.Timeout/10, mostReserve)
	}
	return mostReserve
}

// reserveNow returns what has to be kept for the tasks of a kind that is to
// come: nothing if there are none.
func (g *Group) reserveNow(kind string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case kind == "worker" && slices.ContainsFunc(g.workers, func(t *groupTask) bool { return t.parts > 0 }):
		return g.reserve(g.WorkerReserve)
	case kind == "cleanup" && len(g.cleanups) > 0:
		return g.reserve(g.CleanupReserve)
	}
	return 0
}

// groupStep is the time that a step of the shutdown has. Its fields do not
// change once it is used.
type groupStep struct {
	g     *Group
	start time.Time
	leave time.Time     // who is not back then is left behind; zero: never
	share time.Duration // what it has after a kill
	cut   bool          // a kill tells its tasks at once that time is up
}

// newStep begins a step that has to leave keep of the budget to later ones.
func (g *Group) newStep(keep, share time.Duration, cut bool) groupStep {
	s := groupStep{g: g, start: time.Now(), share: max(share, lastWords), cut: cut}
	if g.Timeout > 0 {
		g.mu.Lock()
		s.leave = g.began.Add(g.Timeout - keep)
		g.mu.Unlock()
		if s.leave.Before(s.start) {
			s.leave = s.start
		}
	}
	return s
}

// times returns when the step's tasks are told that time is up, and when they
// are left behind. A kill changes both.
func (s groupStep) times() (tell, leave time.Time) {
	s.g.mu.Lock()
	killed := s.g.killTime
	s.g.mu.Unlock()
	if leave = s.leave; !leave.IsZero() {
		tell = leave.Add(-untilLeft(leave.Sub(s.start)))
	}
	if killed.IsZero() {
		return tell, leave
	}
	if killed.Before(s.start) {
		killed = s.start
	}
	if end := killed.Add(s.share); leave.IsZero() || end.Before(leave) {
		leave = end
		// Never later than without the kill: the context has its deadline.
		if at := end.Add(-untilLeft(s.share)); tell.IsZero() || at.Before(tell) {
			tell = at
		}
	}
	if s.cut && killed.Before(tell) {
		tell = killed
	}
	return tell, leave
}

// context returns the context for the step's functions, with the deadline that
// it has as things are, and what tells them that a kill has brought it forward.
func (s groupStep) context() (ctx context.Context, tell, cancel func()) {
	at, _ := s.times()
	if at.IsZero() {
		ctx, cancel := context.WithCancel(s.g.base)
		return ctx, cancel, cancel
	}
	ctx, cancel = context.WithDeadlineCause(s.g.base, at, ErrLeftBehind)
	return ctx, func() {
		// At the deadline the context ends by itself, with the error for that.
		if time.Now().Before(at) {
			cancel()
		}
	}, cancel
}

// left says how much time the step has.
func (s groupStep) left() string {
	_, leave := s.times()
	if leave.IsZero() {
		return "without limit"
	}
	return fmt.Sprintf("%v left", max(0, time.Until(leave)).Round(time.Millisecond))
}

// await waits until the tasks are over or their time is, and then leaves
// behind who is not back. In between it calls tell, once, when they are to be
// told that time is up.
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
			s.g.logf("waiting for %s, %s", s.g.names(tasks), s.left())
		}
	}
	s.g.leaveBehind(tasks)
}

// markCut notes that the tasks that are not over have been told.
func (g *Group) markCut(tasks []*groupTask) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range tasks {
		t.cut = t.cut || t.parts > 0
	}
}

// leaveBehind notes that the tasks that are not over are waited for no more.
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
			t.detail = nil // the error has it, as it was
			t.errs = append(t.errs, err)
		}
		g.mu.Unlock()
		if left {
			if detail != "" {
				detail = ": " + detail
			}
			g.logf("left behind: %s %s%s", t.kind, t.name, detail)
		}
	}
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
