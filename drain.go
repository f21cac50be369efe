package graceful

import "time"

// A drain is run's view of the connections once the drain has begun.
type drain struct {
	m     *manager
	count *census
	begin time.Duration // since m.began

	quiet waitList // new and idle ones, by when their quiet window ends
	half  waitList // receiving ones, by when they are given up

	halfWait time.Duration // the wait for receiving ones; 0 is without end

	hurry bool // patience is over

	// unsettled counts those that keep rules.settled from being called.
	unsettled map[*conn]struct{}
}

func newDrain(m *manager, count *census) *drain {
	d := &drain{
		m:         m,
		count:     count,
		begin:     time.Since(m.began),
		unsettled: make(map[*conn]struct{}),
	}
	if !m.timed.Load() {
		d.halfWait = m.rules.half
	}
	return d
}

// lookAll sorts all connections in. From here on they are looked at one by
// one, in the order in which they change, so that the lists stay in order
// almost by themselves.
func (d *drain) lookAll(conns map[*conn]struct{}) {
	for c := range conns {
		d.look(c)
		if d.leave(c) {
			delete(conns, c)
		}
	}
	d.quiet.sort()
	d.half.sort()
	d.due()
}

// look takes a connection's state in.
func (d *drain) look(c *conn) {
	w := c.load()
	c.seen = w.state()
	settled := false
	switch c.seen {
	case connNew:
		if c.has(flagTLS) && d.handshaking(c) {
			d.half.push(waiting{c, w, w.since() + halfSpoken})
		} else {
			d.quiet.push(waiting{c, w, w.since() + d.m.rules.grace})
		}
	case connIdle:
		if c.has(flagLayered) {
			settled = true
			break
		}
		due := w.since() + d.m.rules.grace
		if c.has(flagStreams) {
			// It has been told to leave, when the drain began.
			due = max(due, d.begin+d.m.rules.grace)
		}
		if d.hurry {
			due = 0
		}
		d.quiet.push(waiting{c, w, due})
		settled = c.has(flagStreams)
	case connReceiving:
		wait := d.halfWait
		if c.has(flagTLS) && !c.has(flagSpoken) && !d.handshaking(c) || c.has(flagGuess) {
			// It may be the end of the handshake that came, or the
			// beginning of a request.
			wait = halfSpoken
		}
		if wait > 0 {
			d.half.push(waiting{c, w, max(w.since(), d.begin) + wait})
		}
	case connActive:
		settled = d.lastAnswer(c)
	case connHijacked, connClosed:
		settled = true
	}
	if settled {
		delete(d.unsettled, c)
	} else {
		d.unsettled[c] = struct{}{}
	}
}

// lastAnswer reports whether the answer in progress on c is sure to be its
// last: the peer has been told so, or has not been sent anything that says
// otherwise yet. It must have come to the handler, for net/http drops a request
// that it has only just read when it is shut down. Of TLS nothing is sure, nor
// of a request that does not say where it ends: should it turn out to be wrong,
// such a connection can't be served on (see serveOn).
func (d *drain) lastAnswer(c *conn) bool {
	return c.has(flagFarewell|flagStreams) ||
		c.flags.Load()&(flagInHandler|flagWrote|flagBeside|flagTLS|flagVague) == flagInHandler
}

// handshaking reports whether c's TLS handshake may still be under way, and
// sees to it that run hears of its end.
func (d *drain) handshaking(c *conn) bool {
	if c.has(flagShaken) {
		// Of a connection whose bytes are not seen nobody knows whether it
		// has said something after its handshake.
		return c.has(flagBeside)
	}
	if tc := c.tls.Load(); tc != nil && c.flags.Or(flagProbed)&flagProbed == 0 {
		go func() {
			// Waits for the handshake that is in progress, or makes it,
			// whereupon its server finds it made.
			if tc.Handshake() == nil {
				c.flags.Or(flagShaken)
				d.m.changed(c, connNew)
			}
		}()
	}
	return true
}

// leave reports whether c is not waited for.
func (d *drain) leave(c *conn) bool {
	if c.seen != connHijacked || d.m.rules.waitHijacked {
		return false
	}
	delete(d.unsettled, c)
	d.count.left++
	return true
}

func (d *drain) forget(c *conn) {
	delete(d.unsettled, c)
	switch {
	case c.seen == connEnding:
		d.count.ended++
	case c.seen == connReceiving, c.gaveUp: // or its peer did
		d.count.gaveUp++
	default:
		d.count.finished++
	}
}

// settle calls rules.settled, once, when it is time. A connection that was
// seen before it had written may have written since.
func (d *drain) settle(conns map[*conn]struct{}) {
	if len(d.unsettled) > 0 || d.m.rules.settled == nil {
		return
	}
	for c := range conns {
		if c.seen == connActive && !d.lastAnswer(c) {
			d.unsettled[c] = struct{}{}
		}
	}
	if len(d.unsettled) == 0 {
		d.m.settled.Store(true)
		go d.m.rules.settled()
		d.m.rules.settled = nil
	}
}

// due tells those to end whose time has come.
func (d *drain) due() {
	now := time.Since(d.m.began)
	if p := d.m.rules.patience; p > 0 && !d.hurry && now >= d.begin+p {
		d.hurry = true
		d.quiet.advance(func(e *waiting) {
			if e.w.state() == connIdle {
				e.due = 0
			}
		})
	}
	for _, list := range []*waitList{&d.quiet, &d.half} {
		for {
			e, ok := list.popUntil(now)
			if !ok {
				break
			}
			if e.c.load() != e.w {
				continue // stale: its new state stands further back
			}
			if e.w.state() == connReceiving {
				e.c.gaveUp = true
				go e.c.cut()
			} else if e.c.end(e.w) {
				e.c.seen = connEnding // unsettled still: it may go on
			} else if e.c.load() == e.w {
				// Bytes wait to be read. Where they are not seen, reading
				// them says nothing: look again.
				e.due = now + max(d.m.rules.grace, time.Millisecond)
				list.push(e)
			}
		}
	}
}

// setAlarm sets the timer to the earliest time at which something is due.
func (d *drain) setAlarm(alarm *time.Timer) {
	next, ok := d.quiet.next()
	if due, has := d.half.next(); has && (!ok || due < next) {
		next, ok = due, true
	}
	if p := d.m.rules.patience; p > 0 && !d.hurry && (!ok || d.begin+p < next) {
		next, ok = d.begin+p, true
	}
	if !ok {
		alarm.Stop()
		return
	}
	alarm.Reset(max(0, next-time.Since(d.m.began)))
}
