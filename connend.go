package graceful

import (
	"crypto/tls"
	"time"
)

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// end tells a connection that was found in state w, new or idle, to end. It
// reports whether it did: not if bytes are waiting to be read, and not if the
// state has changed since, in which case the manager hears of it.
//
// The connection ends itself: its Read comes back because of a deadline, and
// the goroutine that reads it closes it. So no close races with a read.
func (c *conn) end(w connWord) bool {
	if pending(c.raw) > 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.word.CompareAndSwap(uint64(w), c.m.stamp(connEnding)) {
		return false
	}
	if c.raw.SetReadDeadline(aLongTimeAgo) != nil {
		go c.cut() // a connection without deadlines, or closed already
	}
	return true
}

// goOn takes back what end did, because the connection turned out to be in
// use. A read deadline that was set before is lost; net/http sets one for
// every request.
func (c *conn) goOn(to connState) {
	c.mu.Lock()
	// Under mu, end has set its deadline or has not begun.
	if c.load().state() == connEnding {
		c.raw.SetReadDeadline(time.Time{})
		c.takenBack.Add(1) // after the deadline, and before the state: see Read
	}
	c.word.Store(c.m.stamp(to))
	c.mu.Unlock()
	c.m.changed(c, to)
}

// SetDeadline is net.Conn's; while the connection is ending, the part of it
// that concerns reading waits.
func (c *conn) SetDeadline(t time.Time) error {
	err := c.raw.SetDeadline(t)
	c.keepEnding()
	return err
}

// SetReadDeadline is net.Conn's; it has no effect while the connection is
// ending.
func (c *conn) SetReadDeadline(t time.Time) error {
	err := c.raw.SetReadDeadline(t)
	c.keepEnding()
	return err
}

// keepEnding sets the deadline of end again after somebody else set one. end
// changes the state first and sets its deadline then, so whoever comes in
// between is either overwritten or finds the state here.
func (c *conn) keepEnding() {
	if c.load().state() != connEnding {
		return
	}
	c.mu.Lock()
	if c.load().state() == connEnding {
		c.raw.SetReadDeadline(aLongTimeAgo)
	}
	c.mu.Unlock()
}

// Close closes the connection and gives its slot in the limit back. A
// hijacked connection, or one of a protocol that reports no states, is gone
// by it.
//
// While the manager is sweeping it waits: nobody can tell whether the
// connection's own goroutine is at its end, which is reported next, or net/http
// sweeps up a connection that is going to be served on (see serveOn).
func (c *conn) Close() error {
	if c.m.sweeping.Load() && c.turns == nil && c.load().state() != connHijacked {
		c.flags.Or(flagUnclosed)
		return nil
	}
	if c.has(flagDisowned) && c.flags.And(^uint32(flagDisowned))&flagDisowned != 0 {
		// Should the new owner have been quicker, net/http's comes next.
		return nil
	}
	err := c.raw.Close()
	c.freeSlot()
	if c.turns != nil || c.load().state() == connHijacked {
		c.gone()
	}
	return err
}

// freeSlot gives the slot in the limit back, once.
func (c *conn) freeSlot() {
	if c.release == nil {
		return
	}
	if old := c.flags.Or(flagReleased); old&flagReleased == 0 {
		c.release()
	}
}

// gone marks the connection closed and tells the manager, once.
func (c *conn) gone() {
	if c.has(flagUnclosed) {
		c.raw.Close()
	}
	c.freeSlot()
	if connWord(c.word.Swap(c.m.stamp(connClosed))).state() != connClosed {
		c.m.removed(c)
	}
}

// cut closes the connection without any farewell. Below a *tls.Conn: its own
// Close writes an alert, for which it waits up to five seconds.
func (c *conn) cut() {
	nc := c.raw
	for {
		t, ok := nc.(*tls.Conn)
		if !ok {
			break
		}
		nc = t.NetConn()
	}
	nc.Close()
	c.freeSlot()
}
