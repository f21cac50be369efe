package graceful

import (
	"container/heap"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A manager owns the set of open connections. Its goroutine, run, keeps the set
// in local variables and receives events over channels. While the server is
// serving, there are events for new and for closed connections only; from the
// drain on, also for connections that become active or idle.
//
// run never blocks on a connection, a callback, a lock or a log. It calls methods
// of this package's and package net's types only.
type manager struct {
	// Immutable after newManager.
	began time.Time
	rules drainRules

	// From connections to run. An event makes run look at the connection, so a
	// stale or repeated event is harmless. add and remove are buffered. While
	// serving, run reads them only when a buffer is full or when an order depends
	// on them, so that connections that come and go do not wake run. If a
	// connection's remove overtakes its add, run finds the connection closed.
	add    chan *conn
	active chan *conn // from the drain on: the connection is in use
	idle   chan *conn // from the drain on: the connection is idle
	remove chan *conn
	full   chan *conn // while serving: the buffer of add or remove is full

	// From the shutdown to run.
	start  chan chan<- census  // count the connections, and count how they end from now on
	begin  chan struct{}       // begin the drain
	sealed chan struct{}       // no more connections will be added
	census chan chan<- census  // count the connections
	list   chan chan<- []*conn // list the connections
	kill   chan chan<- []*conn // list the connections, and return

	// From run to a listener that waits for a slot in the limit: no connection is
	// left that could give one back. Values are sent during the drain only.
	vacant chan struct{}

	// done is closed when run returns: the last connection is closed, or kill
	// was answered.
	done chan struct{}

	last census // the final census. Written by run before done is closed.

	// shutting is true once the shutdown has begun.
	shutting atomic.Bool

	// timed says that the drain has a timeout. The timeout then bounds the wait
	// for incomplete requests, instead of drainRules.receiving. Set before begin.
	timed atomic.Bool

	// draining is set by run before it reads any state, and read by
	// connections after they have stored theirs: either run sees the new
	// state, or the connection sees draining and sends an event.
	draining atomic.Bool

	goAways atomic.Int64 // how many HTTP/2 connections were sent their first GOAWAY
}

// drainRules say how long a drain waits for connections.
type drainRules struct {
	// grace is the quiet period: how long a connection must have been quiet
	// before it is told to end.
	grace time.Duration

	// receiving is how long the drain waits for the rest of an incomplete request,
	// unless the drain is timed; 0 waits without limit.
	receiving time.Duration

	// patience is how long after the begin of the drain grace applies. From then
	// on a connection is told to end as soon as it is idle. 0 applies grace
	// without limit.
	patience time.Duration

	// waitHijacked makes the drain wait for hijacked connections.
	waitHijacked bool

	// openToStreams is called with 1 for each new HTTP/2 connection, and with -1
	// when the connection will not get another stream. It must not block. May be
	// nil.
	openToStreams func(by int)
}

// receivingLimit is how long the drain waits for a connection that is stuck
// within a request's header or its TLS handshake, where nothing else bounds the
// wait. It is as long as net/http's Shutdown waits for a connection that has sent
// nothing.
const receivingLimit = 5 * time.Second

// finalWait is how much longer such a connection is waited for, if at the end of
// that time it had bytes that were not read yet.
const finalWait = time.Second

// A census counts connections.
type census struct {
	open  [connStates]int // by state
	http2 int             // of open, those that speak HTTP/2

	// Since start; zero before.
	late     int // were added
	ended    int // were told to end when they had been quiet
	finished int // were closed after their last response, or by the peer
	gaveUp   int // were told to end within a request that did not go on
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

// added tells run about a new connection. It reports false if run has returned.
func (m *manager) added(c *conn) bool {
	if isClosed(m.done) {
		return false // otherwise select may pick add, whose buffer may have room
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

// changed tells run that c is in the state to, if the drain has begun.
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

// removed tells run that c is closed.
func (m *manager) removed(c *conn) { m.tell(m.remove, c) }

// signal sends on begin or sealed to run, unless run has returned.
func (m *manager) signal(order chan struct{}) {
	select {
	case order <- struct{}{}:
	case <-m.done:
	}
}

// count returns the current census, and false if run has returned.
func (m *manager) count() (census, bool) { return m.askCensus(m.census) }

// countFrom is count, and makes run count from now on how connections end.
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

// abandon makes run return, and returns the connections that were left.
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
			// Its remove was received already, or follows: it finds nothing.
			if counts {
				count.late++
				count.finished++
			}
			return
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
	// catchUp receives the buffered events, so that an answer or a decision takes
	// into account what was sent before it was asked for.
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
			d.expireBlocking()
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
			// The event of a connection that was just hijacked may not have come yet.
			for c := range conns {
				if c.wait.seen = c.load().state(); d != nil && d.leave(c) {
					delete(conns, c)
				}
			}
			left := slices.Collect(maps.Keys(conns))
			m.last = countConns(conns, count) // before reply, whose receiver reads it
			reply <- left
			return
		}
	}
	m.last = count
}

// countConns returns count with the open connections added.
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

	receivingWait time.Duration // the wait for incomplete requests; 0 is without limit
	hurry         bool          // rules.patience has passed

	waiting waitHeap

	// overdue is when the next connection that was told to end, and has not ended,
	// is cut; 0 if no connection was told.
	overdue time.Duration
	alarmAt time.Duration // when the timer fires; never if it is stopped

	// toExpire are connections of callers' types whose read deadlines are to be set.
	toExpire []*conn
}

const never = time.Duration(1<<63 - 1)

// A waitEntry is what a drain keeps about a connection.
type waitEntry struct {
	due   time.Duration // since manager.began: when drain looks at it again
	at    int32         // its index in the waitHeap, plus 1; 0 while it is not there
	seen  connState     // its state when drain last looked at it
	again bool          // it was told to end once, and is in finalWait
}

func newDrain(m *manager, count *census) *drain {
	d := &drain{m: m, count: count, begin: time.Since(m.began), alarmAt: never}
	if !m.timed.Load() {
		d.receivingWait = m.rules.receiving
	}
	return d
}

// look reads a connection's state, decides until when to wait for the
// connection, and tells it to end if that time has come.
func (d *drain) look(c *conn) {
	w := c.load()
	before := c.wait.seen
	switch c.wait.seen = w.state(); c.wait.seen {
	case connActive:
		if c.wait.again = false; before == connActive && c.wait.at > 0 {
			return // its due time stays as it is
		}
	case connIdle:
		c.wait.again = false
	}
	if h2 := c.h2.Load(); h2 != nil && c.wait.seen != connHijacked {
		h2.leave() // its own goroutine ends it, and has its own time limits
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

// until returns until when the drain waits for a connection in the state w, and
// false if it waits without limit.
func (d *drain) until(c *conn, w connWord) (due time.Duration, bounded bool) {
	if c.has(flagHandshake) && (w.state() == connNew || w.state() == connReceiving) {
		return w.since() + receivingLimit, true
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
		// The handler has returned without reading the request's body to its end, and
		// net/http waits for the rest. Otherwise the handler is about to be called,
		// which sets the flag.
		if c.ioState == nil && !c.multiplexes() && !c.has(flagInHandler) {
			return time.Since(d.m.began) + receivingLimit, true
		}
	case connReceiving:
		if d.receivingWait > 0 {
			if c.wait.again {
				return w.since() + finalWait, true
			}
			return max(w.since(), d.begin) + d.receivingWait, true
		}
	}
	return 0, false
}

// end tells c, which is due in the state w, to end.
func (d *drain) end(c *conn, w connWord) {
	incomplete := w.state() == connReceiving
	switch {
	case incomplete && c.wait.again:
		c.cutSoon()
		return
	case c.has(flagHandshake) && !c.wait.again && c.nonBlocking() && sock.Pending(c.raw):
		// The rest of the handshake, and perhaps a request, wait to be read.
		c.wait.again = true
		d.waiting.set(c, time.Since(d.m.began)+finalWait)
		return
	case incomplete:
		c.wait.again = true
		c.set(flagGaveUp)
	}
	if !c.end(w) {
		return // the state has changed, so an event follows
	}
	c.wait.seen = connEnding
	if c.nonBlocking() {
		c.expire()
	} else {
		d.toExpire = append(d.toExpire, c)
	}
	if d.overdue == 0 {
		d.overdue = time.Since(d.m.began) + receivingLimit
	}
}

// expireBlocking sets the read deadlines of callers' connections, on other
// goroutines since that may block. Each goroutine sets several, since one for
// each connection would cost more than the rest of the drain.
func (d *drain) expireBlocking() {
	const together = 32
	for batch := range slices.Chunk(d.toExpire, together) {
		go func() {
			for _, c := range batch {
				c.expire()
			}
		}()
	}
	d.toExpire = nil
}

// cutOverdue cuts the connections that were told to end receivingLimit ago.
// Usually their Reads return at once. They do not if a lock of a caller's
// connection is held, or if the goroutine that should read does something else.
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
		if at := w.since() + receivingLimit; at > now {
			if d.overdue == 0 || at < d.overdue {
				d.overdue = at
			}
		} else {
			c.cutSoon()
		}
	}
}

// leave reports whether c is a hijacked connection that the drain does not wait
// for, and counts it.
func (d *drain) leave(c *conn) bool {
	if c.wait.seen != connHijacked || d.m.rules.waitHijacked {
		return false
	}
	d.waiting.remove(c)
	d.count.left++
	return true
}

// forget counts how c, which is closed, has ended.
func (d *drain) forget(c *conn) {
	d.waiting.remove(c)
	switch {
	case c.wait.again, c.wait.seen == connReceiving: // given up here, or closed by the client
		d.count.gaveUp++
	case c.wait.seen == connEnding:
		d.count.ended++
	default:
		d.count.finished++
	}
}

// due looks at the connections whose due time has come.
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
			continue // its handler runs, or its Read fails and it ends
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

// A waitHeap holds connections ordered by their due time, the earliest first.
type waitHeap []*conn

// set sets c's due time, and adds c if it is not in the heap.
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

// Push implements heap.Interface.
func (h *waitHeap) Push(x any) {
	c := x.(*conn)
	*h = append(*h, c)
	c.wait.at = int32(len(*h))
}

// Pop implements heap.Interface.
func (h *waitHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.wait.at = 0
	return c
}
