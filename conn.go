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
	// connNew: the connection was accepted, and no byte was read from it.
	// Receiving, ending and closed follow.
	connNew connState = iota

	// connReceiving: part of a request was read. Active, ending and closed
	// follow.
	connReceiving

	// connActive: a request is in progress. Idle, hijacked and closed follow.
	connActive

	// connIdle: the last response was written, and no byte was read since.
	// Receiving, active, ending and closed follow.
	connIdle

	// connEnding: the connection was told to end. Its Read returns and looks for
	// bytes once more. Receiving follows if there are any, otherwise closed.
	connEnding

	// connHijacked: a handler has hijacked the connection. Closed follows.
	connHijacked

	// connClosed is final.
	connClosed

	connStates = iota
)

var connStateNames = [connStates]string{
	"new", "receiving", "active", "idle", "ending", "hijacked", "closed",
}

func (s connState) String() string { return connStateNames[s] }

// A connWord holds a connection's state in its low three bits, and in the rest
// when the connection entered that state, in nanoseconds since the manager's
// start. It is one word so that both change atomically. When a receiving
// connection becomes active it keeps the time of its request's first byte, which
// saves a call of time.Now.
type connWord uint64

const connStateBits = 3

func (w connWord) state() connState { return connState(w & (1<<connStateBits - 1)) }

// as returns the word for the state s with the time of w.
func (w connWord) as(s connState) connWord {
	return w&^(1<<connStateBits-1) | connWord(s)
}

func (w connWord) since() time.Duration { return time.Duration(w >> connStateBits) }

// connFlags are facts about a connection besides its state.
type connFlags uint32

const (
	// flagAhead: while the request was in progress, a byte that follows the
	// request was read.
	flagAhead connFlags = 1 << iota

	// flagHandshake: the TLS handshake is not complete.
	flagHandshake

	// flagForeign: the connection speaks HTTP/2 with an implementation whose
	// streams this package does not see (see (*Server).serveALPN).
	flagForeign

	// flagGaveUp: the connection was told to end within a request's header.
	flagGaveUp

	// flagOver: the connection has ended within a request's header. Only its
	// close follows.
	flagOver

	// flagInHandler: the handler of the HTTP/1 request in progress was called and
	// has not returned.
	flagInHandler

	// flagReported: that request is being read for a report.
	flagReported

	// flagReleased: the slot in the limit was given back.
	flagReleased
)

// A conn is one tracked connection. Its wrappers (tcpConn, unixConn, anyConn,
// tlsConn) embed it above the accepted connection, so that
// its methods take precedence and all others are the connection's own.
//
// The goroutines that read and write the connection change its state with atomic
// operations. From the drain on they also send the manager an event.
type conn struct {
	// Immutable after track.
	m       *manager
	raw     net.Conn // the accepted connection, or TLS over it
	limit   *limiter // in which the connection holds a slot; nil without limit
	ioState *ioState // derives the state from Read and Write; nil for HTTP

	word  atomic.Uint64 // a connWord
	flags atomic.Uint32 // connFlags

	// revoked counts how often connEnding was taken back. A Read that times out
	// although the state is not connEnding compares it with the value from before,
	// to tell a deadline that was taken back from one of the server's own.
	revoked atomic.Uint32

	h2   atomic.Pointer[http2Conn] // nil unless the connection speaks HTTP/2
	http atomic.Pointer[httpConn]  // HTTP's data; nil before the first request

	// mu orders expire, which sets the read deadline of an ending connection, and
	// goOn, which removes it.
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

// multiplexes reports whether the connection speaks HTTP/2: it carries several
// requests at once.
func (c *conn) multiplexes() bool { return c.h2.Load() != nil || c.has(flagForeign) }

// Read reads from the connection. If the connection was told to end and no bytes
// have come, Read returns io.EOF, upon which the server closes the connection.
func (c *conn) Read(p []byte) (int, error) {
	if c.ioState != nil {
		c.ioState.enterRead(c)
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
			case c.ioState != nil:
				c.ioState.received(c)
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
			return n, err // the deadline was set by the server
		case !ending:
			continue
		}
		// Bytes may have come before the deadline was set, or since.
		if sock.Pending(c.raw) {
			c.goOn(connReceiving)
			continue
		}
		if c.has(flagGaveUp) {
			c.set(flagOver) // net/http reports StateActive after this
			c.cut()         // otherwise net/http answers the incomplete request with 400
		}
		return 0, io.EOF
	}
}

// begun makes a new, idle or ending connection receiving, because bytes have come
// that may begin a request. It returns the state before.
func (c *conn) begun() connState {
	for {
		w := c.load()
		switch w.state() {
		case connNew, connIdle:
			if !c.word.CompareAndSwap(uint64(w), uint64(c.m.stamp(connReceiving))) {
				continue // the manager has just told it to end
			}
			c.m.changed(c, connReceiving)
		case connEnding:
			c.goOn(connReceiving)
		}
		return w.state()
	}
}

// Write writes to the connection. Over HTTP it adds what tells the client that
// the connection is about to be closed: "Connection: close", or GOAWAY frames.
func (c *conn) Write(p []byte) (int, error) {
	if h2 := c.h2.Load(); h2 != nil {
		return h2.write(p)
	}
	if c.ioState != nil {
		c.ioState.beginWrite(c)
		defer c.ioState.endWrite(c)
	} else if c.h1.lastResponse(c, p) {
		return c.h1.writeFarewell(c, p)
	}
	return c.raw.Write(p)
}

// readFrom implements io.ReaderFrom for the wrappers whose connection, rf, has it.
func (c *conn) readFrom(rf io.ReaderFrom, r io.Reader) (int64, error) {
	if c.h2.Load() != nil {
		return io.Copy(writerOnly{c}, r)
	}
	if c.ioState != nil {
		if !sendfile.IsFile(r) {
			// Waiting for data from r, as in a proxy, must not count as a Write.
			return io.Copy(writerOnly{c}, r)
		}
		c.ioState.beginWrite(c)
		defer c.ioState.endWrite(c)
	} else {
		c.h1.lastResponse(c, nil)
	}
	return rf.ReadFrom(r)
}

// setState moves the connection to a state that the server reports: active, idle,
// hijacked or closed.
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

// end tells a connection that was found in the state w to end; the caller then
// calls expire. It reports false if the state has changed since, in which case
// the manager gets an event for the change.
//
// The connection is not closed here. Its Read times out because of expire's
// deadline, looks for bytes that have come meanwhile, and returns io.EOF if there
// are none. So a close cannot race with a read.
func (c *conn) end(w connWord) bool {
	return c.word.CompareAndSwap(uint64(w), uint64(c.m.stamp(connEnding)))
}

// expire sets the read deadline of a connection that is ending. It blocks if the
// connection's SetReadDeadline does.
func (c *conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.load().state() == connEnding && c.raw.SetReadDeadline(aLongTimeAgo) != nil {
		c.cutSoon() // the connection has no deadlines, or is closed already
	}
}

// expireSoon makes the Read of an active connection time out, in which net/http
// waits for the rest of a request's body.
func (c *conn) expireSoon() {
	expire := func() { c.raw.SetReadDeadline(aLongTimeAgo) }
	if c.nonBlocking() {
		expire()
	} else {
		go expire()
	}
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// goOn takes end back, because the connection turned out to be in use. A read
// deadline that the server has set is lost by this; net/http sets a new one for
// every request.
func (c *conn) goOn(to connState) {
	c.mu.Lock()
	// While mu is held here, expire has either set its deadline or not begun.
	if c.load().state() == connEnding {
		c.raw.SetReadDeadline(time.Time{})
		c.revoked.Add(1) // after the deadline, and before the state: see Read
	}
	c.word.Store(uint64(c.m.stamp(to)))
	c.mu.Unlock()
	c.m.changed(c, to)
}

// SetDeadline implements net.Conn. While the connection is ending, it sets the
// write deadline only.
func (c *conn) SetDeadline(t time.Time) error {
	err := c.raw.SetDeadline(t)
	c.keepEnding()
	return err
}

// SetReadDeadline implements net.Conn. It has no effect while the connection is
// ending.
func (c *conn) SetReadDeadline(t time.Time) error {
	err := c.raw.SetReadDeadline(t)
	if c.ioState == nil {
		c.h1.deadlineSet(c)
	}
	c.keepEnding()
	return err
}

// keepEnding sets expire's deadline again after the server has set another. The
// state is changed by end before expire sets its deadline. So a deadline that the
// server sets in between is overwritten by expire, and for one that it sets later
// keepEnding sees the state.
func (c *conn) keepEnding() {
	if c.load().state() == connEnding {
		c.expire()
	}
}

// Close closes the connection and gives its slot in the limit back. If no
// StateClosed follows, which is so for hijacked connections and those of a
// Listener, it also marks the connection closed.
func (c *conn) Close() error {
	err := c.raw.Close()
	c.freeSlot()
	if c.ioState != nil || c.load().state() == connHijacked {
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

// cut closes the connection below TLS, because tls.Conn's Close writes an alert,
// for which it may wait up to five seconds.
func (c *conn) cut() {
	c.bottom().Close()
	c.freeSlot()
}

// cutSoon is cut, on a goroutine of its own if the Close may block.
func (c *conn) cutSoon() {
	if c.nonBlocking() {
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

// nonBlocking reports whether the connection's Close and SetReadDeadline do not
// block, so that the manager and killLeft may call them. That is so for connections
// of package net, with or without TLS over them. It is not known for callers'
// types.
func (c *conn) nonBlocking() bool {
	switch c.bottom().(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// NetConn returns the accepted connection, or TLS over it.
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
// methods hide the connection's and all others are promoted.
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

// track wraps nc for the manager m. The wrapper gives a slot back to limit when
// it is closed, if limit is not nil. Its state comes from tr, if tr is not nil.
func track(m *manager, nc net.Conn, limit *limiter, tr *ioState) (net.Conn, *conn) {
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

func (c *conn) init(m *manager, nc net.Conn, limit *limiter, tr *ioState) {
	c.m, c.raw, c.limit, c.ioState = m, nc, limit, tr
	c.word.Store(uint64(m.stamp(connNew)))
}

// ReadFrom lets the kernel copy, as (*net.TCPConn).ReadFrom does.
func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) { return c.readFrom(c.TCPConn, r) }

// WriteTo copies from the connection to w. Unlike (*net.TCPConn).WriteTo it does
// not splice, because a splice bypasses Read, and with it the connection's state.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, readerOnly{&c.conn}) }

// CloseWrite calls the connection's CloseWrite. It returns errors.ErrUnsupported
// if there is none.
func (c *anyConn) CloseWrite() error { return closeWrite(c.raw) }

// ReadFrom calls the connection's ReadFrom, or copies if there is none.
func (c *anyConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.raw.(io.ReaderFrom); ok {
		return c.readFrom(rf, r)
	}
	return io.Copy(writerOnly{&c.conn}, r)
}

// closeWrite calls nc's CloseWrite. It returns errors.ErrUnsupported if there is
// none.
func closeWrite(nc net.Conn) error {
	if cw, ok := nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

type readerOnly struct{ io.Reader }

type writerOnly struct{ io.Writer }
