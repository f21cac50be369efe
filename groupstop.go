package graceful

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

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
	switch {
	case g.Timeout < 0:
		return fmt.Errorf("graceful: Group.Timeout is negative: %v", g.Timeout)
	case g.ShutdownDelay < 0:
		return fmt.Errorf("graceful: Group.ShutdownDelay is negative: %v", g.ShutdownDelay)
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

// run waits for the shutdown's beginning and then conducts it. It alone moves
// the state on.
func (g *Group) run(release func()) {
	<-g.begun
	g.logf("shutdown initiated: %s", g.reason)
	for _, t := range g.servers {
		if t.member != nil {
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
		tell = end.Add(-untilLeft(s.share))
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

// errorsLocked joins what went wrong, each with its name, in Wait's order.
func (g *Group) errorsLocked() error {
	var errs []error
	add := func(t *groupTask) {
		for _, err := range t.errs {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if g.first != nil {
		add(g.first)
	}
	for _, t := range g.tasksLocked() {
		if t != g.first {
			add(t)
		}
	}
	return errors.Join(errs...)
}

// tasksLocked returns all tasks in the order in which they are shut down.
func (g *Group) tasksLocked() []*groupTask {
	cleanups := slices.Clone(g.cleanups)
	slices.Reverse(cleanups)
	return slices.Concat(g.servers, g.workers, cleanups)
}
