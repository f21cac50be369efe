package graceful

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// LimitListener returns a listener that accepts at most n simultaneous
// connections from l. While n connections are open, Accept waits until one is
// closed or the listener is. LimitListener panics if n is not positive.
//
// A Server or a Listener that is given it applies the limit to its own
// connections, without another wrapper, so that HTTP/2, Request.TLS and sendfile
// work as without the limit. With other servers, its connections are wrappers
// that have the methods of the connections of l. There, put it below TLS
// (tls.NewListener(LimitListener(l, n), config)), because net/http does not
// recognise HTTP/2 on a wrapped TLS connection.
func LimitListener(l net.Listener, n int) net.Listener {
	if n <= 0 {
		panic(fmt.Sprintf("graceful: LimitListener with a limit of %d", n))
	}
	return &limitListener{Listener: l, limit: newLimiter(n), closed: make(chan struct{})}
}

// A limitListener limits the connections of a listener, outside a Server.
type limitListener struct {
	net.Listener
	limit     *limiter
	closed    chan struct{} // closed by Close
	closeOnce sync.Once

	// served is the listener that a Server made of this one; nil outside a
	// Server.
	served atomic.Pointer[listener]
}

func (l *limitListener) Accept() (net.Conn, error) {
	if !l.limit.acquire(nil, l.closed) {
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	nc, err := l.Listener.Accept()
	if err != nil {
		l.limit.release()
		return nil, err
	}
	return limitConn(nc, l.limit.release), nil
}

func (l *limitListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	if tl := l.served.Load(); tl != nil {
		return tl.Close() // its Accept may be waiting for a slot
	}
	return l.Listener.Close()
}

// limitConn wraps nc so that its Close gives the slot back.
func limitConn(nc net.Conn, release func()) net.Conn {
	slot := limitSlot{raw: nc, release: sync.OnceFunc(release)}
	switch below := nc.(type) {
	case *net.TCPConn:
		return &limitTCPConn{slot, tcpBelow{below}}
	case *net.UnixConn:
		return &limitUnixConn{slot, unixBelow{below}}
	case *tls.Conn:
		return &limitTLSConn{slot, tlsBelow{below}}
	}
	return &limitAnyConn{slot, connBelow{nc}}
}

type tlsBelow struct{ *tls.Conn }

type (
	limitTCPConn struct {
		limitSlot
		tcpBelow
	}
	limitUnixConn struct {
		limitSlot
		unixBelow
	}
	limitTLSConn struct {
		limitSlot
		tlsBelow
	}
	limitAnyConn struct {
		limitSlot
		connBelow
	}
)

// ConnectionState runs the handshake first, because net/http calls
// ConnectionState before the first Read on a connection that is not a *tls.Conn.
func (c *limitTLSConn) ConnectionState() tls.ConnectionState {
	c.tlsBelow.Conn.Handshake() // Read returns its error again
	return c.tlsBelow.Conn.ConnectionState()
}

// A limitSlot replaces a connection's Close by one that gives the slot back.
type limitSlot struct {
	raw     net.Conn
	release func()
}

func (s limitSlot) Close() error {
	err := s.raw.Close()
	s.release()
	return err
}

// NetConn returns the connection without its limit.
func (s limitSlot) NetConn() net.Conn { return s.raw }

// A limiter hands out n slots.
type limiter struct {
	slots chan struct{} // holds a value for each slot that is taken
}

func newLimiter(n int) *limiter { return &limiter{make(chan struct{}, n)} }

// acquire waits for a slot and takes it. It reports false if stop or closed is
// closed first.
func (l *limiter) acquire(stop, closed <-chan struct{}) bool {
	if isClosed(closed) { // select picks at random if a slot is free as well
		return false
	}
	select {
	case l.slots <- struct{}{}:
		return true
	case <-stop:
	case <-closed:
	}
	return false
}

func (l *limiter) tryAcquire() bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *limiter) release() { <-l.slots }
