package graceful

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A listener accepts connections, wraps them for the manager, and ceases to
// accept without losing anyone: it stops admitting, empties the accept queue,
// and closes then.
//
//	serving ── stop ──▶ emptying ── the queue is empty ──▶ closed
//	   └─────────────── Close, a failing Accept ────────────▲
type listener struct {
	// Immutable once it serves.
	m *manager
	l net.Listener // what Accept is called on

	original net.Listener  // what the caller handed in: l, or what it was taken from
	owned    bool          // the socket may be told to admit nobody
	reuse    bool          // a successor may have bound the same port
	grace    time.Duration // how long handshakes under way are waited for
	limit    *limiter      // nil without limit
	flags    uint32        // for its connections
	wrap     func(nc net.Conn, release func()) (net.Conn, *conn)

	// queued reports whether a connection waits to be accepted, and whether
	// that can be known. Tests replace it.
	queued func(net.Listener) (waits, known bool)

	shut     atomic.Int64 // since when the socket admits nobody, since m.began; 0: it does
	tried    atomic.Int32 // how often again, after nothing was found any more
	stopping chan struct{}
	stopAt   time.Duration // since m.began. Written before stopping is closed.
	closed   chan struct{}

	stopOnce, closeOnce sync.Once
	closeErr            error

	// Owned by the caller of Accept:
	last *conn         // that it returned
	held time.Duration // until when the last was held for a slot, since m.began
}

func newListener(m *manager, l net.Listener, limit *limiter) *listener {
	return &listener{
		m: m, l: l, limit: limit,
		queued:   acceptQueued,
		stopping: make(chan struct{}),
		closed:   make(chan struct{}),
	}
}

// Addr returns the address that the listener is bound to.
func (l *listener) Addr() net.Addr { return l.l.Addr() }

// Accept returns the next connection, wrapped. At the end of accepting it
// returns an error that wraps net.ErrClosed; timeouts of its own making stay
// inside, for net/http would try again.
func (l *listener) Accept() (net.Conn, error) {
	held := l.limit == nil || l.slot() // a slot, if one is needed
	if !held && !l.blind() {
		return nil, l.ended()
	}
	for {
		began := time.Since(l.m.began)
		nc, err := l.l.Accept()
		if err == nil {
			l.accepted(began)
			if !held {
				if !l.limit.acquire(nil, l.closed, nil) {
					nc.Close()
					return nil, l.ended()
				}
				l.held = time.Since(l.m.began)
			}
			wrapped, c := l.wrap(nc, l.limit.releaser())
			if !l.m.added(c) {
				c.cut()
				return nil, l.ended()
			}
			l.last = c
			return wrapped, nil
		}
		if isStopping(l.stopping) && l.again(err) {
			continue
		}
		if l.limit != nil && held {
			l.limit.release()
		}
		if isStopping(l.stopping) || isStopping(l.closed) {
			return nil, l.ended()
		}
		return nil, err
	}
}

// dropLast closes the connection that Accept returned last, which nobody took.
func (l *listener) dropLast() {
	if c := l.last; c != nil {
		c.cut()
		c.gone()
	}
}

// ended closes the listener and returns what Accept says then.
func (l *listener) ended() error {
	l.Close()
	err := &net.OpError{Op: "accept", Addr: l.Addr(), Err: net.ErrClosed}
	if err.Addr != nil { // a listener of the caller's own may have none
		err.Net = err.Addr.Network()
	}
	return err
}

// slot waits for a place in the limit. While the queue is being emptied it
// does so only as long as somebody is waiting for that place.
func (l *listener) slot() bool {
	if l.limit.acquire(l.stopping, l.closed, nil) {
		return true
	}
	for !isStopping(l.closed) {
		waits, known := l.queued(l.l)
		var alarm <-chan time.Time // nil: who waits in the queue, stays there
		if !waits || !known {
			wait := l.coming()
			if wait == 0 {
				return l.limit.tryAcquire()
			}
			t := time.NewTimer(wait)
			defer t.Stop()
			alarm = t.C
		}
		if l.limit.acquire(nil, l.closed, alarm) {
			return true
		}
	}
	return false
}

// blind reports whether, without a slot, the only way to know whether somebody
// waits in the queue is to accept. Who is found then waits here, instead of in
// the queue, for a slot.
func (l *listener) blind() bool {
	if isStopping(l.closed) {
		return false
	}
	_, known := l.queued(l.l)
	return !known
}

// coming returns how long to wait for connections that are about to come into
// the queue of a socket that admits nobody new: those whose handshake was under
// way. It returns 0 if there is nothing to wait for, as for a socket that goes
// on admitting: the sooner that is closed, the fewer are lost.
func (l *listener) coming() time.Duration {
	shut := time.Duration(l.shut.Load())
	if shut == 0 {
		return 0
	}
	left := max(0, shut+l.grace-time.Since(l.m.began))
	switch {
	case left > 0 && handshaking(l.l):
		l.tried.Store(0)
		return min(left, 5*time.Millisecond)
	case l.tried.Load() == 0:
		// A SYN may have been let in at the very moment of shutting.
		l.tried.Store(1)
		return min(left, time.Millisecond)
	}
	return 0
}

// accepted notes that a connection was accepted for which Accept was called at
// began, since m.began.
func (l *listener) accepted(began time.Duration) {
	if !isStopping(l.stopping) {
		return
	}
	now, tried := time.Since(l.m.began), int32(0)
	if now-max(l.stopAt, l.held) > emptying && now-began > time.Millisecond {
		tried = looks // it was empty, and will not be so for longer
	}
	l.tried.Store(tried)
	l.setDeadline(0)
}

// Where the queue can't be looked into, it is empty when Accept has waited in
// vain, looks times: a goroutine that is not scheduled in time finds the
// deadline passed before it has looked. Under clients that never pause for
// that long, it is taken to be empty when, after emptying, somebody had to be
// waited for. The time until the last slot does not count: who waits for slots
// does not empty.
const (
	looks    = 3
	look     = 4 * time.Millisecond
	emptying = 250 * time.Millisecond
)

// more decides, when the deadline of emptying has passed, whether there is
// more to come, and sets the next deadline.
func (l *listener) more() bool {
	waits, known := l.queued(l.l)
	if waits {
		// It is there already. The deadline only has to be in the future,
		// for package net looks at it first.
		return l.setDeadline(time.Second)
	}
	if !known {
		if l.tried.Load() >= looks {
			return false
		}
		l.tried.Add(1)
		return l.setDeadline(look)
	}
	wait := l.coming()
	return wait > 0 && l.setDeadline(wait)
}

// setDeadline makes Accept return after wait, and reports whether it can.
func (l *listener) setDeadline(wait time.Duration) bool {
	d, ok := bareListener(l.l).(interface{ SetDeadline(time.Time) error })
	if !ok {
		return false
	}
	t := aLongTimeAgo
	if wait > 0 {
		t = time.Now().Add(wait)
	}
	return d.SetDeadline(t) == nil
}

// stop begins to end accepting, and doesn't wait for it: a socket that is
// ours alone admits nobody from here on and is closed when no handshake is
// under way and its queue is empty, any other once its queue is empty, and one
// without deadlines at once.
func (l *listener) stop() {
	l.stopOnce.Do(func() {
		if own, ok := l.l.(*ownListener); ok {
			own.removeFile()
		}
		if _, unix := l.l.(*net.UnixListener); l.owned && !unix {
			if stopAdmitting(bareListener(l.l), l.reuse) {
				l.shut.Store(max(1, int64(time.Since(l.m.began))))
			}
		}
		l.stopAt = time.Since(l.m.began)
		close(l.stopping)
		if !l.setDeadline(0) {
			l.closeSoon()
		}
	})
}

// closeSoon closes the listener, and waits for that if it is one of package
// net: the port is free then. A Close that somebody else wrote may wait for
// its Accept, and that for anything.
func (l *listener) closeSoon() {
	switch bareListener(l.l).(type) {
	case *net.TCPListener, *net.UnixListener:
		l.Close()
	default:
		go l.Close()
	}
}

// Close closes the listener. Further calls return what the first returned.
func (l *listener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		l.closeErr = l.l.Close()
	})
	return l.closeErr
}

// isStopping reports whether c, on which nothing is ever sent, is closed.
func isStopping(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// again reports whether to accept again after err, while the queue is being
// emptied. Without a file descriptor, say, there may be somebody in it all the
// same: descriptors come back as connections end.
func (l *listener) again(err error) bool {
	if isTimeout(err) {
		return l.more()
	}
	var t interface{ Temporary() bool } // as net/http asks, which tries again too
	if !errors.As(err, &t) || !t.Temporary() || time.Since(l.m.began)-l.stopAt > halfSpoken {
		return false
	}
	timer := time.NewTimer(retryAccept)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.closed:
		return false
	}
}

// retryAccept is net/http's first delay after a temporary error.
const retryAccept = 5 * time.Millisecond

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
