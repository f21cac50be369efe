package graceful

import (
	"container/heap"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A manager owns the set of open connections. One goroutine, run, keeps it in
// local variables and hears of it over channels: while the server is serving, of
// connections that come and go only; from the drain on, of those that begin or
// end being idle as well.
//
// It never blocks: not on a connection, a callback, a lock or a log, and it calls
// no method of a type that is not this package's or package net's.
type manager struct {
	// Immutable after newManager.
	began time.Time
	rules drainRules

	// From connections to run. An event says "look at this connection": a
	// stale or doubled one does no harm. add and remove are buffered. While serving
	// run takes them in when a buffer is full, or when an order depends on them, so
	// that connections that come and go do not wake it; a connection whose remove
	// overtakes its add is found closed.
	add    chan *conn
	active chan *conn // from the drain on: it is in use
	idle   chan *conn // from the drain on: it is not
	remove chan *conn
	full   chan *conn // to add or to remove, while serving: there is no room in a buffer

	// From the shutdown to run.
	start  chan chan<- census  // count the connections, and from now on what becomes of them
	begin  chan struct{}       // the drain begins
	sealed chan struct{}       // no more connections will be added
	census chan chan<- census  // count the connections
	list   chan chan<- []*conn // list the connections
	kill   chan chan<- []*conn // list them, and return

	// From run to a listener that waits for a slot in the limit: there is no
	// connection left that could give one back. No values are sent before the
	// drain.
	vacant chan struct{}

	// done is closed when run returns: the last connection is gone, or what
	// was left has been handed to kill.
	done chan struct{}

	last census // the final one. Written by run before done is closed.

	// shutting is true from the first moment of the shutdown on.
	shutting atomic.Bool

	// timed says that the drain has a timeout, which is all that bounds the
	// wait for a request that is not complete. Set before begin.
	timed atomic.Bool

	// draining is set by run before it reads any state, and read by
	// connections after they have stored theirs: either run sees the new
	// state, or the connection sees draining and sends an event.
	draining atomic.Bool

	goAways atomic.Int64 // how many HTTP/2 connections were sent their first GOAWAY
}

// drainRules is what a drain does with a connection.
type drainRules struct {
	// grace is how long a connection must have been quiet before it is told
	// to end.
	grace time.Duration

	// half bounds the wait for a request that has begun to come and is not
	// complete, from the drain on, unless the drain is timed; 0 does not.
	half time.Duration

	// patience is how long after the drain's begin the quiet window is
	// kept; from then on a connection is told to end at its first idle
	// moment. 0 keeps it to the end.
	patience time.Duration

	// waitHijacked makes the drain wait for hijacked connections.
	waitHijacked bool

	// untold is called with 1 for each HTTP/2 connection, and with -1 when it will
	// not get another stream. It must not block. May be nil.
	untold func(by int)
}

// halfRequest is how long a connection that has begun a request, or its TLS
// handshake, and does not go on is waited for where nothing else bounds the wait.
// net/http gives a connection that has said nothing as long.
const halfRequest = 5 * time.Second

// lastLook is how long the same connection has once more, when bytes had come at
// the end of that time which nobody had read.
const lastLook = time.Second

// A census counts connections.
type census struct {
	open  [connStates]int // by state
	http2 int             // of open, those that speak HTTP/2

	// Since start; zero before.
	late     int // were added after it
	ended    int // were quiet, and told to end
	finished int // were closed after their last answer, or by the peer
	gaveUp   int // had begun to speak, and did not go on
	left     int // were hijacked, and not waited for
}

func newManager(rules drainRules) *manager {
	const buffered = 256
	return &manager{
		began:  time.Now(),
		rules:  rules,
		add:    make(chan *conn, buffered),
		active: make(chan *conn),
		idle:   make(chan *conn),
		remove: make(chan *conn, buffered),
		full:   make(chan *conn),
		start:  make(chan chan<- census),
		begin:  make(chan struct{}),
		sealed: make(chan struct{}),
		census: make(chan chan<- census),
		list:   make(chan chan<- []*conn),
		kill:   make(chan chan<- []*conn),
		vacant: make(chan struct{}),
		done:   make(chan struct{}),
	}
}

// stamp returns the word for a connection that enters the state s now.
func (m *manager) stamp(s connState) connWord {
	return connWord(time.Since(m.began))<<connStateBits | connWord(s)
}

// added tells run of a new connection. It reports false if run has returned.
func (m *manager) added(c *conn) bool {
	if isClosed(m.done) {
		return false // the buffer may have room all the same
	}
	return m.tell(m.add, c)
}

// tell sends c to run by a buffered channel. It reports false if run has returned.
func (m *manager) tell(events chan *conn, c *conn) bool {
	select {
	case events <- c:
		return true
	default:
	}
	select {
	case events <- c: // from the drain on
		return true
	case m.full <- c:
		return true
	case <-m.done:
		return false
	}
}

// changed tells run that c has changed its state, if it wants to know.
func (m *manager) changed(c *conn, to connState) {
	if !m.draining.Load() {
		return
	}
	events := m.active
	if to == connIdle {
		events = m.idle
	}
	select {
	case events <- c:
	case <-m.done:
	}
}

func (m *manager) removed(c *conn) { m.tell(m.remove, c) }

// signal sends one of the shutdown's orders to run, unless it has returned.
func (m *manager) signal(order chan struct{}) {
	select {
	case order <- struct{}{}:
	case <-m.done:
	}
}

// count returns the current census, and false if run has returned.
func (m *manager) count() (census, bool) { return m.askCensus(m.census) }

// countFrom is count, and makes run count from now on what becomes of the
// connections.
func (m *manager) countFrom() census {
	c, _ := m.askCensus(m.start) // run does not return before the drain
	return c
}

func (m *manager) askCensus(order chan chan<- census) (census, bool) {
	reply := make(chan census, 1)
	select {
	case order <- reply:
		return <-reply, true
	case <-m.done:
		return census{}, false
	}
}

// conns returns the open connections, and nil if run has returned.
func (m *manager) conns() []*conn { return m.ask(m.list) }

// abandon makes run return and hands over the connections that were left.
func (m *manager) abandon() []*conn { return m.ask(m.kill) }

func (m *manager) ask(order chan chan<- []*conn) []*conn {
	reply := make(chan []*conn, 1)
	select {
	case order <- reply:
		return <-reply
	case <-m.done:
		return nil
	}
}

// run owns the connections until the drain is over.
func (m *manager) run() {
	var (
		conns  = make(map[*conn]struct{})
		count  census
		counts bool         // start has come
		d      *drain       // nil before the drain
		add    <-chan *conn // m.add from the drain on
		remove <-chan *conn // m.remove from the drain on
		begin  = m.begin
		sealed = m.sealed
		vacant chan<- struct{} // m.vacant while draining without a connection
		alarm  = time.NewTimer(0)
	)
	alarm.Stop()
	defer close(m.done)
	defer alarm.Stop()

	look := func(c *conn) {
		if _, ok := conns[c]; !ok || d == nil {
			return
		}
		if d.look(c); d.leave(c) {
			delete(conns, c)
		}
	}
	take := func(c *conn) {
		if c.load().state() == connClosed {
			return // its remove has been heard of, or follows
		}
		conns[c] = struct{}{}
		if counts {
			count.late++
		}
		look(c)
	}
	forget := func(c *conn) {
		if _, ok := conns[c]; !ok {
			return
		}
		delete(conns, c)
		if d != nil {
			d.forget(c)
		} else if counts {
			count.finished++
		}
	}
	// catchUp takes in what was said before an order that depends on it.
	catchUp := func() {
		for {
			select {
			case c := <-m.add:
				take(c)
			case c := <-m.remove:
				forget(c)
			default:
				return
			}
		}
	}

	for d == nil || sealed != nil || len(conns) > 0 {
		vacant = nil
		if d != nil {
			catchUp() // more cheaply than by the select below
			if sealed == nil && len(conns) == 0 {
				break
			}
			d.expireForeign()
			d.setAlarm(alarm)
			if len(conns) == 0 {
				vacant = m.vacant
			}
		}
		select {
		case c := <-add:
			take(c)
		case c := <-m.active:
			look(c)
		case c := <-m.idle:
			look(c)
		case c := <-remove:
			forget(c)
		case c := <-m.full:
			catchUp()
			if c.load().state() == connClosed {
				forget(c)
			} else {
				take(c)
			}
		case vacant <- struct{}{}:

		case reply := <-m.start:
			catchUp()
			counts = true
			reply <- countConns(conns, count)
		case <-begin:
			begin = nil
			catchUp()
			add, remove, counts = m.add, m.remove, true
			m.draining.Store(true) // before any state is read: see draining
			d = newDrain(m, &count)
			for c := range conns {
				look(c)
			}
		case <-sealed:
			sealed = nil
			catchUp()
		case <-alarm.C:
			d.alarmAt = never
			d.due()
			d.cutOverdue(conns)

		case reply := <-m.census:
			catchUp()
			reply <- countConns(conns, count)
		case reply := <-m.list:
			catchUp()
			reply <- slices.Collect(maps.Keys(conns))
		case reply := <-m.kill:
			catchUp()
			for c := range conns { // one that was just hijacked may not have said so yet
				if c.wait.seen = c.load().state(); d != nil && d.leave(c) {
					delete(conns, c)
				}
			}
			left := slices.Collect(maps.Keys(conns))
			m.last = countConns(conns, count) // before its reader is let go
			reply <- left
			return
		}
	}
	m.last = count
}

// countConns fills in what the states say now.
func countConns(conns map[*conn]struct{}, count census) census {
	for c := range conns {
		count.open[c.load().state()]++
		if c.multiplexes() {
			count.http2++
		}
	}
	return count
}

// A drain is run's view of the connections once the drain has begun.
type drain struct {
	m     *manager
	count *census
	begin time.Duration // since m.began

	halfWait time.Duration // the wait for receiving ones; 0 is without end
	hurry    bool          // patience is over

	waiting waitHeap

	// overdue is when those that were told to end, and have not, are cut; 0 while
	// none was told.
	overdue time.Duration
	alarmAt time.Duration // what the timer is set to; never if it is not

	// foreign are connections of callers' types that are about to be told to end.
	foreign []*conn
}

const never = time.Duration(1<<63 - 1)

// A waitEntry is what a drain keeps about a connection.
type waitEntry struct {
	due   time.Duration // when it is looked at again, since manager.began
	at    int32         // its index in the waitHeap, plus 1; 0 while it is not there
	seen  connState     // the state in which it was looked at last
	again bool          // it is given up for the second time
}

func newDrain(m *manager, count *census) *drain {
	d := &drain{m: m, count: count, begin: time.Since(m.began), alarmAt: never}
	if !m.timed.Load() {
		d.halfWait = m.rules.half
	}
	return d
}

// look takes a connection's state in: it decides until when the connection is
// waited for, and tells it to end if that is now.
func (d *drain) look(c *conn) {
	w := c.load()
	before := c.wait.seen
	switch c.wait.seen = w.state(); c.wait.seen {
	case connActive:
		if c.wait.again = false; before == connActive && c.wait.at > 0 {
			return // its time runs
		}
	case connIdle:
		c.wait.again = false
	}
	if h2 := c.h2.Load(); h2 != nil && c.wait.seen != connHijacked {
		h2.leave() // it ends by itself, and on time
		d.waiting.remove(c)
		return
	}
	due, bounded := d.until(c, w)
	switch {
	case !bounded:
		d.waiting.remove(c)
	case due > time.Since(d.m.began):
		d.waiting.set(c, due)
	default:
		d.waiting.remove(c)
		d.end(c, w)
	}
}

// until returns until when a connection in the state w is waited for, and false if
// that is not bounded.
func (d *drain) until(c *conn, w connWord) (due time.Duration, bounded bool) {
	if c.has(flagHandshake) && (w.state() == connNew || w.state() == connReceiving) {
		return w.since() + halfRequest, true
	}
	switch w.state() {
	case connNew, connIdle:
		switch {
		case w.state() == connIdle && d.hurry:
			return 0, true
		case c.has(flagForeign):
			return max(w.since(), d.begin) + d.m.rules.grace, true
		}
		return w.since() + d.m.rules.grace, true
	case connActive:
		// A response without an end of its request's body: the handler has left it,
		// and net/http waits for it. At any other moment the flag is about to be set.
		if c.turns == nil && !c.multiplexes() && !c.has(flagInHandler) {
			return time.Since(d.m.began) + halfRequest, true
		}
	case connReceiving:
		if d.halfWait > 0 {
			if c.wait.again {
				return w.since() + lastLook, true
			}
			return max(w.since(), d.begin) + d.halfWait, true
		}
	}
	return 0, false
}

// end tells c, whose time has come in the state w, to end.
func (d *drain) end(c *conn, w connWord) {
	half := w.state() == connReceiving
	switch {
	case half && c.wait.again:
		c.cutSoon()
		return
	case c.has(flagHandshake) && !c.wait.again && c.ours() && sock.Pending(c.raw):
		// The handshake's end, and perhaps a request, wait to be read.
		c.wait.again = true
		d.waiting.set(c, time.Since(d.m.began)+lastLook)
		return
	case half:
		c.wait.again = true
		c.set(flagGaveUp)
	}
	if !c.end(w) {
		return // it has changed, and says so
	}
	c.wait.seen = connEnding
	if c.ours() {
		c.expire()
	} else {
		d.foreign = append(d.foreign, c)
	}
	if d.overdue == 0 {
		d.overdue = time.Since(d.m.began) + halfRequest
	}
}

// expireForeign sets the read deadlines of callers' connections, which may block:
// a few together, since a goroutine for each would cost more than the rest of the
// drain.
func (d *drain) expireForeign() {
	const together = 32
	for batch := range slices.Chunk(d.foreign, together) {
		go func() {
			for _, c := range batch {
				c.expire()
			}
		}()
	}
	d.foreign = nil
}

// cutOverdue cuts the connections that were told to end long ago. Their Reads
// return at once, unless a lock of a caller's connection is in the way, or the
// goroutine that should read is somewhere else.
func (d *drain) cutOverdue(conns map[*conn]struct{}) {
	now := time.Since(d.m.began)
	if d.overdue == 0 || now < d.overdue {
		return
	}
	d.overdue = 0
	for c := range conns {
		w := c.load()
		if w.state() != connEnding {
			continue
		}
		if at := w.since() + halfRequest; at > now {
			if d.overdue == 0 || at < d.overdue {
				d.overdue = at
			}
		} else {
			c.cutSoon()
		}
	}
}

// leave reports whether c is not waited for.
func (d *drain) leave(c *conn) bool {
	if c.wait.seen != connHijacked || d.m.rules.waitHijacked {
		return false
	}
	d.waiting.remove(c)
	d.count.left++
	return true
}

func (d *drain) forget(c *conn) {
	d.waiting.remove(c)
	switch {
	case c.wait.again, c.wait.seen == connReceiving: // or its peer gave up
		d.count.gaveUp++
	case c.wait.seen == connEnding:
		d.count.ended++
	default:
		d.count.finished++
	}
}

// due tells those to end whose time has come.
func (d *drain) due() {
	now := time.Since(d.m.began)
	if p := d.m.rules.patience; p > 0 && !d.hurry && now >= d.begin+p {
		d.hurry = true
		for _, c := range slices.Clone(d.waiting) {
			if c.wait.seen == connIdle {
				d.look(c)
			}
		}
	}
	for len(d.waiting) > 0 && d.waiting[0].wait.due <= now {
		c := d.waiting[0]
		d.waiting.remove(c)
		if w := c.load(); w.state() == connActive && c.wait.seen == connActive {
			if !c.has(flagInHandler) {
				c.expireSoon()
			}
			continue // or its handler has begun
		}
		d.look(c)
	}
}

// setAlarm sets the timer to the earliest time at which something is due.
func (d *drain) setAlarm(alarm *time.Timer) {
	next := never
	if len(d.waiting) > 0 {
		next = d.waiting[0].wait.due
	}
	if p := d.m.rules.patience; p > 0 && !d.hurry {
		next = min(next, d.begin+p)
	}
	if d.overdue > 0 {
		next = min(next, d.overdue)
	}
	if next == d.alarmAt {
		return
	}
	if d.alarmAt = next; next == never {
		alarm.Stop()
		return
	}
	alarm.Reset(max(0, next-time.Since(d.m.began)))
}

// A waitHeap holds connections that wait for a time, the earliest first.
type waitHeap []*conn

// set makes c wait until due.
func (h *waitHeap) set(c *conn, due time.Duration) {
	c.wait.due = due
	if c.wait.at > 0 {
		heap.Fix(h, int(c.wait.at)-1)
	} else {
		heap.Push(h, c)
	}
}

func (h *waitHeap) remove(c *conn) {
	if c.wait.at > 0 {
		heap.Remove(h, int(c.wait.at)-1)
	}
}

func (h waitHeap) Len() int           { return len(h) }
func (h waitHeap) Less(i, j int) bool { return h[i].wait.due < h[j].wait.due }

func (h waitHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].wait.at, h[j].wait.at = int32(i)+1, int32(j)+1
}

// Push is heap.Interface's.
func (h *waitHeap) Push(x any) {
	c := x.(*conn)
	*h = append(*h, c)
	c.wait.at = int32(len(*h))
}

// Pop is heap.Interface's.
func (h *waitHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.wait.at = 0
	return c
}
