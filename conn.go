package graceful

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sendfile"
	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A connState is what a tracked connection is doing.
//
//	        first byte            request             response
//	new ───────────────▶ receiving ───────▶ active ─────────────▶ idle
//	 │                    ▲     │              │                   │ │
//	 │                    └─────┼──────────────┼──── first byte ───┘ │
//	 └──▶ ending ◀──────────────┘◀─────────────┼─────────────────────┘
//	         │  (bytes turned up: receiving)   └──▶ hijacked
//	         ▼
//	      closed   (from every state)
type connState uint8

const (
	// connNew: the connection was accepted and has sent nothing. It goes to
	// receiving, ending and closed.
	connNew connState = iota

	// connReceiving: part of a request has come. It goes to active, ending and
	// closed.
	connReceiving

	// connActive: a request is in progress. It goes to idle, hijacked and closed.
	connActive

	// connIdle: the last response is out and nothing has come since. It goes to
	// receiving, active, ending and closed.
	connIdle

	// connEnding: the connection was told to end. Its Read returns, looks for
	// bytes once more, and goes to receiving or closed.
	connEnding

	// connHijacked: a handler has taken the connection over. It goes to closed.
	connHijacked

	// connClosed is final.
	connClosed

	connStates = iota
)

var connStateNames = [connStates]string{
	"new", "receiving", "active", "idle", "ending", "hijacked", "closed",
}

func (s connState) String() string { return connStateNames[s] }

// A connWord is a connection's state (the low three bits) and since when it
// is in it (nanoseconds since the manager's start, in the rest), in one word,
// so that both change together. A connection that was receiving is active since
// its request began to come, which saves one look at the clock.
type connWord uint64

const connStateBits = 3

func (w connWord) state() connState { return connState(w & (1<<connStateBits - 1)) }

// as returns the word for the state s since the same time.
func (w connWord) as(s connState) connWord {
	return w&^(1<<connStateBits-1) | connWord(s)
}

func (w connWord) since() time.Duration { return time.Duration(w >> connStateBits) }

// connFlags say what else is known about a connection.
type connFlags uint32

const (
	// flagAhead: while the request was in progress, a byte of what comes after
	// it was read.
	flagAhead connFlags = 1 << iota

	// flagHandshake: the TLS handshake is not over.
	flagHandshake

	// flagForeign: it speaks HTTP/2 by an implementation that the connection
	// can't follow (see (*Server).serveALPN).
	flagForeign

	// flagGaveUp: it was told to end in the middle of a request's header.
	flagGaveUp

	// flagOver: it has ended in the middle of a request's header. Its close alone
	// follows.
	flagOver

	// flagInHandler: the request in progress, of HTTP/1, has come to its handler,
	// which has not returned.
	flagInHandler

	// flagReported: that request is being read for a report.
	flagReported

	// flagReleased: the slot in the limit was given back.
	flagReleased
)

// A conn is one tracked connection. Its wrappers (tcpConn, unixConn, anyConn,
// tlsConn) embed it above the connection that the listener produced, so that
// its methods win and all others are the connection's own.
//
// The goroutines that read and write the connection change its state with atomic
// operations alone. From the drain on they tell the manager.
type conn struct {
	// Immutable after track.
	m     *manager
	raw   net.Conn // what the listener produced, or TLS over it
	limit *limiter // in which it holds a slot; nil without limit
	turns *turns   // states from Read and Write alone; nil for HTTP

	word  atomic.Uint64 // a connWord
	flags atomic.Uint32 // connFlags

	// revoked counts how often the end was revoked: a Read that waits then finds
	// the deadline passed, and no reason for it.
	revoked atomic.Uint32

	h2   atomic.Pointer[http2Conn] // nil unless it speaks HTTP/2
	http atomic.Pointer[httpConn]  // what HTTP keeps about it; nil before its first request

	// mu orders telling the connection to end, which sets a read deadline,
	// against revoking that, which takes the deadline back.
	mu sync.Mutex

	// Owned by the goroutine that serves HTTP/1; see http1.go.
	h1 http1Conn

	wait waitEntry // owned by manager.run
}

func (c *conn) load() connWord { return connWord(c.word.Load()) }

func (c *conn) has(f connFlags) bool { return connFlags(c.flags.Load())&f != 0 }

// set sets flags and returns those that there were before.
func (c *conn) set(f connFlags) connFlags { return connFlags(c.flags.Or(uint32(f))) }

// unset clears flags and returns those that there were before.
func (c *conn) unset(f connFlags) connFlags { return connFlags(c.flags.And(^uint32(f))) }

// multiplexes reports whether the connection carries several requests at once,
// by a protocol with a farewell of its own.
func (c *conn) multiplexes() bool { return c.h2.Load() != nil || c.has(flagForeign) }

// Read reads from the connection. It is where the connection learns that it is
// to end.
func (c *conn) Read(p []byte) (int, error) {
	if c.turns != nil {
		c.turns.enterRead(c)
	} else {
		c.h1.enterRead(c, len(p))
	}
	for {
		revoked := c.revoked.Load()
		n, err := c.raw.Read(p)
		if n > 0 {
			h2 := c.h2.Load()
			switch {
			case h2 != nil:
				if n = h2.received(p[:n]); n == 0 && err == nil {
					continue
				}
			case c.turns != nil:
				c.turns.received(c)
			default:
				c.h1.received(c, p[:n], len(p))
			}
			return n, err
		}
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		ending := c.load().state() == connEnding
		switch wasRevoked := c.revoked.Load() != revoked; {
		case !ending && !wasRevoked:
			return n, err // a deadline of the server's own
		case !ending:
			continue
		}
		// Bytes may have come before the deadline was set, or since.
		if sock.Pending(c.raw) {
			c.goOn(connReceiving)
			continue
		}
		if c.has(flagGaveUp) {
			c.set(flagOver) // net/http says StateActive even so
			c.cut()         // or net/http would answer half a request with 400
		}
		return 0, io.EOF
	}
}

// begun notes that something has come that may begin a request. It returns the
// state that the connection was in.
func (c *conn) begun() connState {
	for {
		w := c.load()
		switch w.state() {
		case connNew, connIdle:
			if !c.word.CompareAndSwap(uint64(w), uint64(c.m.stamp(connReceiving))) {
				continue // told to end at this very moment
			}
			c.m.changed(c, connReceiving)
		case connEnding:
			c.goOn(connReceiving)
		}
		return w.state()
	}
}

// Write writes to the connection, and what HTTP adds as a farewell.
func (c *conn) Write(p []byte) (int, error) {
	if h2 := c.h2.Load(); h2 != nil {
		return h2.write(p)
	}
	if c.turns != nil {
		c.turns.beginWrite(c)
		defer c.turns.endWrite(c)
	} else if c.h1.lastResponse(c, p) {
		return c.h1.writeFarewell(c, p)
	}
	return c.raw.Write(p)
}

// readFrom is io.ReaderFrom for the wrappers whose connection has it.
func (c *conn) readFrom(rf io.ReaderFrom, r io.Reader) (int64, error) {
	if c.h2.Load() != nil {
		return io.Copy(writerOnly{c}, r)
	}
	if c.turns != nil {
		if !sendfile.IsFile(r) {
			// While it waits for r, as in a proxy, nothing is written.
			return io.Copy(writerOnly{c}, r)
		}
		c.turns.beginWrite(c)
		defer c.turns.endWrite(c)
	} else {
		c.h1.lastResponse(c, nil)
	}
	return rf.ReadFrom(r)
}

// setState moves the connection to a state that the protocol above reports:
// active, idle, hijacked or closed.
func (c *conn) setState(to connState) {
	if to == connIdle && c.has(flagAhead) && !c.multiplexes() {
		to = connReceiving
	}
	for {
		w := c.load()
		if w.state() == connEnding && to != connClosed {
			if c.has(flagOver) {
				return
			}
			c.goOn(to)
			return
		}
		next := w.as(to)
		if to != connActive || w.state() != connReceiving {
			next = c.m.stamp(to)
		}
		if c.word.CompareAndSwap(uint64(w), uint64(next)) {
			break
		}
	}
	c.m.changed(c, to)
}

// end tells a connection that was found in state w to end, and reports whether
// it did: not if the state has changed since, in which case the manager hears
// of it. expire has to follow.
//
// The connection ends itself: its Read returns because of expire's deadline, looks
// for bytes that nobody has read, and reports the end if there are none. So no
// close races with a read.
func (c *conn) end(w connWord) bool {
	return c.word.CompareAndSwap(uint64(w), uint64(c.m.stamp(connEnding)))
}

// expire sets the read deadline of a connection that is ending. It blocks if the
// connection's SetReadDeadline does.
func (c *conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.load().state() == connEnding && c.raw.SetReadDeadline(aLongTimeAgo) != nil {
		c.cutSoon() // a connection without deadlines, or closed already
	}
}

// expireSoon lets the Read of a connection in use fail: of a request's body that
// does not come.
func (c *conn) expireSoon() {
	expire := func() { c.raw.SetReadDeadline(aLongTimeAgo) }
	if c.ours() {
		expire()
	} else {
		go expire()
	}
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// goOn takes back what end did, because the connection turned out to be in
// use. A read deadline that was set before is lost; net/http sets one for
// every request.
func (c *conn) goOn(to connState) {
	c.mu.Lock()
	// Under mu, expire has set its deadline or has not begun.
	if c.load().state() == connEnding {
		c.raw.SetReadDeadline(time.Time{})
		c.revoked.Add(1) // after the deadline, and before the state: see Read
	}
	c.word.Store(uint64(c.m.stamp(to)))
	c.mu.Unlock()
	c.m.changed(c, to)
}

// SetDeadline is net.Conn's. While the connection is ending, the part of it
// that concerns reading has no effect.
func (c *conn) SetDeadline(t time.Time) error {
	err := c.raw.SetDeadline(t)
	c.keepEnding()
	return err
}

// SetReadDeadline is net.Conn's. It has no effect while the connection is
// ending.
func (c *conn) SetReadDeadline(t time.Time) error {
	err := c.raw.SetReadDeadline(t)
	if c.turns == nil {
		c.h1.deadlineSet(c)
	}
	c.keepEnding()
	return err
}

// keepEnding sets the deadline of end again after another was set. end changes
// the state first and sets its deadline then, so a deadline that was set in
// between is either overwritten by expire or finds the state here.
func (c *conn) keepEnding() {
	if c.load().state() == connEnding {
		c.expire()
	}
}

// Close closes the connection and gives its slot in the limit back. A
// hijacked connection, or one of a protocol that reports no states, is gone
// by it.
func (c *conn) Close() error {
	err := c.raw.Close()
	c.freeSlot()
	if c.turns != nil || c.load().state() == connHijacked {
		c.gone()
	}
	return err
}

// freeSlot gives the slot in the limit back, once.
func (c *conn) freeSlot() {
	if c.limit != nil && c.set(flagReleased)&flagReleased == 0 {
		c.limit.release()
	}
}

// gone marks the connection closed and tells the manager, once.
func (c *conn) gone() {
	c.freeSlot()
	if h2 := c.h2.Load(); h2 != nil {
		h2.stop()
	}
	if connWord(c.word.Swap(uint64(c.m.stamp(connClosed)))).state() != connClosed {
		c.m.removed(c)
	}
}

// cut closes the connection without any farewell: below TLS, whose Close would
// write an alert and wait for that for up to five seconds.
func (c *conn) cut() {
	c.bottom().Close()
	c.freeSlot()
}

// cutSoon is cut, but does not wait for a Close that is not package net's.
func (c *conn) cutSoon() {
	if c.ours() {
		c.cut()
	} else {
		go c.cut()
	}
}

// bottom returns the connection below TLS.
func (c *conn) bottom() net.Conn {
	nc := c.raw
	for {
		switch below := nc.(type) {
		case *tls.Conn:
			nc = below.NetConn()
		case *recordConn:
			nc = below.Conn
		default:
			return nc
		}
	}
}

// ours reports whether the methods of the connection are known: package net's,
// with or without TLS over them. Those do not block, so that they may be called
// by the manager and on the way to the kill. What a caller's type does is not
// known.
func (c *conn) ours() bool {
	switch c.bottom().(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// NetConn returns the connection that the listener produced, or TLS over it.
func (c *conn) NetConn() net.Conn { return c.raw }

func (c *conn) tracked() *conn { return c }

// trackedConn finds the tracked connection beneath nc: beneath TLS, and
// beneath any wrapper that has a NetConn method, as *tls.Conn has. It returns
// nil if there is none.
func trackedConn(nc net.Conn) *conn {
	for nc != nil {
		if t, ok := nc.(interface{ tracked() *conn }); ok {
			return t.tracked()
		}
		w, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		nc = w.NetConn()
	}
	return nil
}

// A wrapper embeds conn one level above the connection itself, so that conn's
// methods hide the connection's and everything else shines through.
type (
	tcpBelow  struct{ *net.TCPConn }
	unixBelow struct{ *net.UnixConn }
	connBelow struct{ net.Conn }

	tcpConn struct {
		conn
		tcpBelow
	}

	unixConn struct {
		conn
		unixBelow
	}

	anyConn struct {
		conn
		connBelow
	}
)

// track wraps nc for the manager m. The wrapper holds a slot in the limit, if
// that is not nil.
func track(m *manager, nc net.Conn, limit *limiter, tr *turns) (net.Conn, *conn) {
	switch below := nc.(type) {
	case *net.TCPConn:
		w := &tcpConn{tcpBelow: tcpBelow{below}}
		w.init(m, nc, limit, tr)
		return w, &w.conn
	case *net.UnixConn:
		w := &unixConn{unixBelow: unixBelow{below}}
		w.init(m, nc, limit, tr)
		return w, &w.conn
	}
	w := &anyConn{connBelow: connBelow{nc}}
	w.init(m, nc, limit, tr)
	if s, ok := nc.(secureConn); ok && tr != nil {
		return &listenerTLSConn{w, s}, &w.conn
	}
	return w, &w.conn
}

func (c *conn) init(m *manager, nc net.Conn, limit *limiter, tr *turns) {
	c.m, c.raw, c.limit, c.turns = m, nc, limit, tr
	c.word.Store(uint64(m.stamp(connNew)))
}

// ReadFrom lets the kernel copy, as (*net.TCPConn).ReadFrom does.
func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) { return c.readFrom(c.TCPConn, r) }

// WriteTo writes what is read to w. Unlike (*net.TCPConn).WriteTo it does not
// splice, since the connection would not notice that it is read.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, readerOnly{&c.conn}) }

// CloseWrite closes the writing side, where the connection can.
func (c *anyConn) CloseWrite() error { return closeWrite(c.raw) }

// ReadFrom uses the connection's own ReadFrom where there is one.
func (c *anyConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.raw.(io.ReaderFrom); ok {
		return c.readFrom(rf, r)
	}
	return io.Copy(writerOnly{&c.conn}, r)
}

// closeWrite closes the writing side of nc, where it can.
func closeWrite(nc net.Conn) error {
	if cw, ok := nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

type readerOnly struct{ io.Reader }

type writerOnly struct{ io.Writer }
