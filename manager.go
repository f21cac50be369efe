package graceful

import (
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

	// timed says that the drain has a timeout, which is all that bounds the
	// wait for a request that is not complete. Set before begin.
	timed atomic.Bool

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
	// complete, from the drain on, unless the drain is timed; 0 does not.
	half time.Duration

	// patience is how long after the drain's begin the quiet window is
	// kept; from then on a connection is told to end at its first idle
	// moment. 0 keeps it to the end.
	patience time.Duration

	// waitHijacked makes the drain wait for hijacked connections.
	waitHijacked bool

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
