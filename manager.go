package graceful

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// halfSpoken is how long a connection that has begun a request, and does not
// end it, is waited for where nothing else bounds the wait. net/http gives a
// connection that has said nothing as long.
const halfSpoken = 5 * time.Second

// A manager owns the set of open connections. One goroutine, run, keeps it in
// local variables and hears of it over channels; while the server is serving,
// of connections that come and go only.
//
// It never blocks on a connection, a callback, a lock or a log.
type manager struct {
	// Immutable after newManager.
	began time.Time
	rules drainRules

	// From connections to run. An event says "look at this connection": a
	// stale or doubled one does no harm.
	add    chan *conn
	active chan *conn // from the drain on: it is in use
	idle   chan *conn // from the drain on: it is not
	remove chan *conn

	// From the shutdown to run.
	begin  chan struct{}       // the drain begins
	sealed chan struct{}       // no more connections will be added
	census chan chan<- census  // count the connections
	list   chan chan<- []*conn // list the connections
	kill   chan chan<- []*conn // list them, and return

	// done is closed when run returns: the last connection is gone, or what
	// was left has been handed to kill.
	done chan struct{}

	last census // the final one. Written by run before done is closed.

	// sweeping is set while a protocol's server is told to close what it
	// takes for idle: see conn.Close.
	sweeping atomic.Bool

	// settled is set by run before it calls rules.settled, while no
	// connection is known to be idle: who finds it unset after run has heard
	// that he is idle, can be sure that rules.settled waits for him.
	settled atomic.Bool

	// draining is set by run before it reads any state, and read by
	// connections after they have stored theirs: either run sees the new
	// state, or the connection sees draining and sends an event.
	draining atomic.Bool
}

// drainRules is what a drain does with a connection.
type drainRules struct {
	// grace is how long a connection must have been quiet before it is told
	// to end.
	grace time.Duration

	// half bounds the wait for a request that has begun to come and is not
	// complete, from the drain on; 0 does not.
	half time.Duration

	// patience is how long after the drain's begin the quiet window is
	// kept; from then on a connection is told to end at its first idle
	// moment. 0 keeps it to the end.
	patience time.Duration

	// waitHijacked makes the drain wait for hijacked connections.
	waitHijacked bool

	// entered reports whether the request on an active connection has come
	// to its handler. It must not block. May be nil.
	entered func(*conn) bool

	// settled is called, on a goroutine of its own, once all connections
	// left are in use and none of them could be used again unless the
	// protocol above lets it: HTTP's last word can be said. May be nil.
	settled func()
}

// A census counts connections.
type census struct {
	open    [connStates]int // by state
	streams int             // of open, those with flagStreams

	// Since the drain began; zero before.
	late     int // were added after it began
	ended    int // were quiet, and told to end
	finished int // were closed after their last answer, or by the peer
	gaveUp   int // had begun to speak, and did not go on
	left     int // were hijacked, and not waited for
}

func newManager(rules drainRules) *manager {
	return &manager{
		began:  time.Now(),
		rules:  rules,
		add:    make(chan *conn),
		active: make(chan *conn),
		idle:   make(chan *conn),
		remove: make(chan *conn),
		begin:  make(chan struct{}),
		sealed: make(chan struct{}),
		census: make(chan chan<- census),
		list:   make(chan chan<- []*conn),
		kill:   make(chan chan<- []*conn),
		done:   make(chan struct{}),
	}
}

// stamp returns the word for a connection that enters the state s now.
func (m *manager) stamp(s connState) uint64 {
	return uint64(time.Since(m.began))<<connStateBits | uint64(s)
}

// added tells run of a new connection. It reports false if run has returned.
func (m *manager) added(c *conn) bool {
	select {
	case m.add <- c:
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

func (m *manager) removed(c *conn) {
	select {
	case m.remove <- c:
	case <-m.done:
	}
}

// signal sends one of the shutdown's orders to run, unless it has returned.
func (m *manager) signal(order chan struct{}) {
	select {
	case order <- struct{}{}:
	case <-m.done:
	}
}

// count returns the current census, and false if run has returned.
func (m *manager) count() (census, bool) {
	reply := make(chan census, 1)
	select {
	case m.census <- reply:
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

// A drain is run's view of the connections once the drain has begun.
type drain struct {
	m     *manager
	count *census
	begin time.Duration // since m.began

	quiet waitList // new and idle ones, by when their quiet window ends
	half  waitList // receiving ones, by when they are given up

	hurry bool // patience is over

	// unsettled counts those that keep rules.settled from being called.
	unsettled map[*conn]struct{}
}

// run owns the connections until the drain is over.
func (m *manager) run() {
	var (
		conns  = make(map[*conn]struct{})
		count  census
		d      *drain // nil before the drain
		begin  = m.begin
		sealed = m.sealed
		alarm  = time.NewTimer(0)
	)
	alarm.Stop()
	defer close(m.done)
	defer alarm.Stop()

	// over reports whether nothing is left to wait for.
	over := func() bool {
		return d != nil && sealed == nil && len(conns) == 0
	}
	forget := func(c *conn) {
		if _, ok := conns[c]; !ok {
			return
		}
		delete(conns, c)
		if d != nil {
			d.forget(c)
		}
	}
	look := func(c *conn) {
		if _, ok := conns[c]; !ok || d == nil {
			return
		}
		if d.look(c); d.leave(c) {
			delete(conns, c)
		}
	}

	for !over() {
		if d != nil {
			if sealed == nil {
				d.settle(conns)
			}
			d.setAlarm(alarm)
		}
		select {
		case c := <-m.add:
			conns[c] = struct{}{}
			if d != nil {
				count.late++
				look(c)
			}
		case c := <-m.active:
			look(c)
		case c := <-m.idle:
			look(c)
		case c := <-m.remove:
			forget(c)

		case <-begin:
			begin = nil
			m.draining.Store(true) // before any state is read: see draining
			d = newDrain(m, &count)
			d.lookAll(conns)
		case <-sealed:
			sealed = nil
		case <-alarm.C:
			d.due()

		case reply := <-m.census:
			reply <- countConns(conns, count)
		case reply := <-m.list:
			reply <- slices.Collect(maps.Keys(conns))
		case reply := <-m.kill:
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
		if c.has(flagStreams) {
			count.streams++
		}
	}
	return count
}

func newDrain(m *manager, count *census) *drain {
	return &drain{
		m:         m,
		count:     count,
		begin:     time.Since(m.began),
		unsettled: make(map[*conn]struct{}),
	}
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
		wait := d.m.rules.half
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
// that it has only just read when it is shut down. Of TLS nothing is sure: should it turn out to be wrong, what
// was read ahead can't be given back as without TLS.
func (d *drain) lastAnswer(c *conn) bool {
	return c.has(flagFarewell|flagStreams) ||
		!c.has(flagWrote|flagBeside|flagTLS) && d.m.rules.entered != nil && d.m.rules.entered(c)
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
	switch c.seen {
	case connEnding:
		d.count.ended++
	case connReceiving:
		d.count.gaveUp++ // or its peer did
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
				go e.c.cut()
			} else if e.c.end(e.w) {
				e.c.seen = connEnding // unsettled still: it may go on
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

// A waitList holds connections that wait for a time, in the order of these
// times. Most of a list wait equally long, so whoever begins to wait later
// waits until later, and its place is at the end.
type waitList struct {
	list   []waiting
	head   int
	sorted bool // false before the first sort: until then push appends
}

type waiting struct {
	c   *conn
	w   connWord      // as it was when the wait began
	due time.Duration // since manager.began
}

// push adds an entry in its place, which is the end but for a connection whose
// wait is shorter than the others', or began before it was seen.
func (l *waitList) push(e waiting) {
	at := len(l.list)
	for l.sorted && at > l.head && l.list[at-1].due > e.due {
		at--
	}
	if at == l.head && l.head > 0 {
		l.head--
		l.list[l.head] = e
		return
	}
	l.list = slices.Insert(l.list, at, e)
}

func (l *waitList) sort() {
	l.sorted = true
	slices.SortFunc(l.list[l.head:], func(a, b waiting) int { return cmp.Compare(a.due, b.due) })
}

// popUntil returns the first entry if it is due.
func (l *waitList) popUntil(now time.Duration) (waiting, bool) {
	if l.head == len(l.list) || l.list[l.head].due > now {
		return waiting{}, false
	}
	e := l.list[l.head]
	l.list[l.head] = waiting{}
	l.head++
	if l.head == len(l.list) {
		l.list, l.head = l.list[:0], 0
	}
	return e, true
}

// next returns when the first entry is due, and false if there is none.
func (l *waitList) next() (time.Duration, bool) {
	if l.head == len(l.list) {
		return 0, false
	}
	return l.list[l.head].due, true
}

// advance changes all entries and sorts them again.
func (l *waitList) advance(f func(*waiting)) {
	for i := l.head; i < len(l.list); i++ {
		f(&l.list[i])
	}
	l.sort()
}
