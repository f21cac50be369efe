package graceful

import (
	"cmp"
	"context"
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
