package graceful

import (
	"slices"
	"time"
)

// A reference says what the manager has to do, in the plainest way that is
// known: it looks at every connection whenever anything happens, and knows no
// events, no queues and no words. Times are since the beginning.
type reference struct {
	rules    drainRules
	now      time.Duration
	draining bool
	began    time.Duration // the drain
	sealed   bool
	conns    []*refConn
	count    census
	doneAt   time.Duration // -1 until then
}

type refConn struct {
	state connState
	since time.Duration

	streams  bool
	ahead    bool // bytes have come that are not this request's
	peerGone bool // and nobody has noticed yet

	// Of a protocol that reports no states.
	turns   bool
	reading bool
	asked   bool
	unread  int
	writing int
	busy    int

	over   string // how it ended; "left" if it is open, and nobody waits for it
	overAt time.Duration
	slot   bool // has one of the limit
}

func (r *refConn) open() bool { return r.over == "" }

func newReference(rules drainRules) *reference { return &reference{rules: rules, doneAt: -1} }

// due returns when something happens to c by itself, and what: it is ended or
// cut off.
func (f *reference) due(c *refConn) (at time.Duration, what string) {
	switch c.state {
	case connNew:
		// It has been quiet for the quiet window.
		return max(f.began, c.since+f.rules.grace), "ended"
	case connIdle:
		at = c.since + f.rules.grace
		if c.streams {
			// It has to hear the farewell first, which was said when the
			// drain began.
			at = max(at, f.began+f.rules.grace)
		}
		if p := f.rules.patience; p > 0 {
			at = min(at, max(c.since, f.began+p))
		}
		return max(at, f.began), "ended"
	case connReceiving:
		if f.rules.half > 0 {
			return max(c.since, f.began) + f.rules.half, "gave up"
		}
	}
	return -1, ""
}

// advance lets time pass until to, and all happen that is due by then.
func (f *reference) advance(to time.Duration) {
	for f.draining && f.doneAt < 0 {
		next := to + 1
		for _, c := range f.conns {
			if at, what := f.due(c); c.open() && what != "" && at > f.now {
				next = min(next, at)
			}
		}
		if next > to {
			break
		}
		f.now = next
		f.settle()
	}
	f.now = to
}

// settle ends whoever has to end now, and sees whether that was all.
func (f *reference) settle() {
	if !f.draining || f.doneAt >= 0 {
		return
	}
	for _, c := range f.conns {
		if at, what := f.due(c); c.open() && at <= f.now {
			switch what {
			case "ended":
				f.count.ended++
				f.over(c, what)
			case "gave up":
				f.count.gaveUp++
				f.over(c, what)
			}
		}
		if c.open() && c.state == connHijacked && !f.rules.waitHijacked {
			f.count.left++
			c.over = "left"
		}
	}
	open := func(c *refConn) bool { return c.open() }
	if f.sealed && !slices.ContainsFunc(f.conns, open) {
		f.doneAt = f.now
	}
}

func (f *reference) over(c *refConn, how string) {
	c.over, c.overAt, c.slot = how, f.now, false
}

func (f *reference) add(turns bool) *refConn {
	c := &refConn{since: f.now, turns: turns, reading: turns, overAt: -1, slot: true}
	f.conns = append(f.conns, c)
	if f.draining {
		f.count.late++
	}
	return c
}

func (f *reference) slots() int {
	n := 0
	for _, c := range f.conns {
		if c.slot {
			n++
		}
	}
	return n
}

func (f *reference) drain() {
	f.draining, f.began = true, f.now
	f.settle()
}

// kill closes what is left.
func (f *reference) kill() {
	f.doneAt = f.now
	for _, c := range f.conns {
		if c.open() {
			f.count.open[c.state]++
			if c.streams {
				f.count.http2++
			}
			f.over(c, "killed")
		}
	}
}

// close ends c for another reason than the drain.
func (f *reference) close(c *refConn) {
	if f.draining {
		if c.state == connReceiving {
			f.count.gaveUp++
		} else {
			f.count.finished++
		}
	}
	f.over(c, "closed")
	f.settle()
}

func (f *reference) enter(c *refConn, s connState) {
	c.state, c.since = s, f.now
	f.settle()
}

// bytes come from the peer.
func (f *reference) bytes(c *refConn) {
	switch {
	case c.streams:
	case c.state == connActive:
		c.ahead = true
	case c.state != connReceiving:
		f.enter(c, connReceiving)
	}
}

func (f *reference) activate(c *refConn, streams bool) {
	c.streams, c.ahead = streams, false
	f.enter(c, connActive)
}

func (f *reference) idle(c *refConn) {
	if c.ahead {
		f.enter(c, connReceiving)
	} else {
		f.enter(c, connIdle)
	}
	if c.peerGone && c.open() {
		f.close(c)
	}
}

func (f *reference) hijack(c *refConn) { f.enter(c, connHijacked) }

// turn finds out where c stands, of a protocol that reports no states: it is
// idle while it waits in Read and nothing was read since the last Write began.
func (f *reference) turn(c *refConn) {
	for {
		switch inUse := c.asked || c.writing > 0 || c.busy > 0; {
		case inUse && c.state != connActive:
			f.enter(c, connActive)
		case !inUse && c.reading && c.state == connActive && c.unread == 0:
			f.enter(c, connIdle)
		case !inUse && c.reading && c.state == connActive:
			c.since = f.now // idle for no time at all
		}
		if !c.reading || c.unread == 0 || !c.open() {
			return
		}
		c.reading, c.asked, c.unread = false, true, 0
	}
}

// census is what the manager's has to be.
func (f *reference) census() census {
	n := f.count
	if f.doneAt >= 0 {
		return n
	}
	for _, c := range slices.DeleteFunc(slices.Clone(f.conns), func(c *refConn) bool { return !c.open() }) {
		n.open[c.state]++
		if c.streams {
			n.http2++
		}
	}
	return n
}
