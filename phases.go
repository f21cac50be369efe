package graceful

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"
)

// shutDown is the shutdown, from its first moment to its last.
func (lc *lifecycle) shutDown(reason string) {
	lc.p.logf("shutdown initiated: %s", reason)

	lc.mu.Lock()
	delay, hold := lc.cfg.delay, lc.hold
	if lc.joined {
		delay = 0
	}
	lc.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-lc.killing:
		}
	}
	if delay > 0 {
		lc.p.logf("still serving for %s, so that load balancers notice", round(delay))
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-lc.killing:
			t.Stop()
		}
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseDraining)
	m := lc.m
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()
	if m != nil {
		lc.drain(m, listeners)
	} else {
		lc.p.beginDrain() // net/http calls the functions that wait for it, too
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseStopped)
	letGo := lc.letGo
	left := lc.report.Left
	lc.mu.Unlock()
	if letGo != nil {
		letGo()
	}
	farewell := lc.p.finish(left)
	lc.mu.Lock()
	if m != nil {
		lc.report.HTTP2 = farewell
	}
	report := lc.report
	lc.mu.Unlock()
	lc.p.logf("%s", report)
	close(lc.stopped)
}

// drain waits until m has nothing left, and kills what is left when the time
// is over.
func (lc *lifecycle) drain(m *manager, listeners []*listener) {
	if c, ok := m.count(); ok { // always: nobody has said sealed yet
		lc.mu.Lock()
		lc.report.Start = statsOf(c, PhaseDraining, lc.p.streams())
		lc.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answering := lc.p.finishRequests(ctx)
	if answering == nil {
		lc.endAccepting(m, listeners)
	}
	lc.p.beginDrain()

	timeout := drainTimer{began: time.Now()}
	defer timeout.stop()
	timeout.shorten(lc.currentTimeout())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-answering:
			answering = nil
			lc.endAccepting(m, listeners)
		case <-m.done:
			lc.note(m.last)
			return
		case <-lc.newTimeout:
			// A drain that is under way can be told to hurry, not to
			// take longer.
			timeout.shorten(lc.currentTimeout())
		case <-timeout.c:
			lc.kill(fmt.Sprintf("timeout, %s after draining began", round(time.Since(timeout.began))))
		case <-lc.killing:
			if answering != nil {
				lc.endAccepting(m, listeners)
			}
			lc.killLeft(m)
			return
		case now := <-tick.C:
			if c, ok := m.count(); ok {
				lc.p.logf("%s; %s", statsOf(c, PhaseDraining, lc.p.streams()), timeout.left(now))
				lc.note(c)
			}
		}
	}
}

// endAccepting makes the manager drain and the listeners stop. What was there
// before is counted before the drain changes it.
func (lc *lifecycle) endAccepting(m *manager, listeners []*listener) {
	lc.mu.Lock()
	m.timed.Store(lc.timeout > 0)
	lc.mu.Unlock()
	m.signal(m.begin)
	for _, l := range listeners {
		l.stop()
	}
	close(lc.drained)
	if len(listeners) == 0 {
		m.signal(m.sealed)
	}
}

// currentTimeout returns what the drain's timeout is by now; 0 for none.
func (lc *lifecycle) currentTimeout() time.Duration {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	select {
	case <-lc.newTimeout:
	default:
	}
	return lc.timeout
}

// A drainTimer goes off when the drain has taken too long.
type drainTimer struct {
	began time.Time
	end   time.Time // zero: never
	t     *time.Timer
	c     <-chan time.Time // nil: never
}

// shorten makes the timer go off in d, if that is earlier; d 0 is never.
func (t *drainTimer) shorten(d time.Duration) {
	end := time.Now().Add(d)
	if d <= 0 || !t.end.IsZero() && !end.Before(t.end) {
		return
	}
	t.end = end
	if t.t == nil {
		t.t = time.NewTimer(d)
		t.c = t.t.C
		return
	}
	t.t.Reset(d)
}

func (t *drainTimer) left(now time.Time) string {
	if t.end.IsZero() {
		return "no timeout"
	}
	return round(t.end.Sub(now)).String() + " left"
}

func (t *drainTimer) stop() {
	if t.t != nil {
		t.t.Stop()
	}
}

// note puts the manager's counts into the report.
func (lc *lifecycle) note(c census) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	r := &lc.report
	r.Late, r.Finished, r.Idle, r.GaveUp, r.Left = c.late, c.finished, c.ended, c.gaveUp, c.left
}

// killLeft closes what is left.
func (lc *lifecycle) killLeft(m *manager) {
	lc.enter(PhaseKilling)
	lc.mu.Lock()
	why := lc.killed
	lc.report.KillReason = why
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()

	left := m.abandon()
	lc.note(m.last)
	// What they are doing is looked at before they are told to leave it: a
	// handshake gives up at once when its context ends.
	now := time.Since(m.began)
	killed := make([]KilledConn, 0, len(left))
	unfinished := left[:0]
	for _, c := range left {
		w := c.load()
		if w.state() == connClosed {
			continue
		}
		unfinished = append(unfinished, c)
		killed = append(killed, KilledConn{
			RemoteAddr: addrString(c.raw.RemoteAddr()),
			State:      w.state().String(),
			Age:        now - w.since(),
			Requests:   lc.p.requests(c.info.Load()),
		})
	}
	lc.p.beginKill()
	for _, k := range killed {
		lc.p.logf("killing %s", k)
	}
	for _, l := range listeners {
		l.closeSoon()
	}
	cutAll(unfinished)
	lc.mu.Lock()
	lc.report.Killed = killed
	lc.mu.Unlock()
}

// addrString is for addresses of connections that somebody else wrote, which
// may have none.
func addrString(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	return a.String()
}

// cutAll closes connections. Those of package net close at once; a Close that
// somebody else wrote is not waited for.
func cutAll(conns []*conn) {
	for _, c := range conns {
		switch socketOf(c.raw).(type) {
		case *net.TCPConn, *net.UnixConn:
			c.cut()
		default:
			go c.cut()
		}
	}
}
