package graceful

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

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
