package graceful

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

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

	// anyTLSConn is for connections that are not *tls.Conn but know a TLS
	// state, which net/http puts into the request.
	anyTLSConn struct {
		anyConn
		state func() tls.ConnectionState
	}
)

// ReadFrom lets the kernel copy, as (*net.TCPConn).ReadFrom does.
func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) { return c.readFrom(c.TCPConn, r) }

// WriteTo writes what is read to w. Unlike (*net.TCPConn).WriteTo it does not
// splice, since the connection would not notice that it is read.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, readerOnly{&c.conn}) }

// CloseWrite closes the writing side, where the connection can.
func (c *anyConn) CloseWrite() error {
	if cw, ok := c.raw.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ReadFrom uses the connection's own ReadFrom where there is one.
func (c *anyConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.raw.(io.ReaderFrom); ok {
		return c.readFrom(rf, r)
	}
	return io.Copy(writerOnly{&c.conn}, r)
}

func (c *anyTLSConn) ConnectionState() tls.ConnectionState { return c.state() }

type readerOnly struct{ io.Reader }

type writerOnly struct{ io.Writer }

// track wraps nc for the manager m. A *tls.Conn is not wrapped, for net/http
// finds HTTP/2 and the request's TLS state by its type: it is returned as it
// is, with a conn beside it that has flagBeside set.
func track(m *manager, nc net.Conn, release func(), tr *turns, flags uint32) (net.Conn, *conn) {
	set := func(c *conn) *conn {
		c.m, c.raw, c.release, c.turns = m, nc, release, tr
		c.flags.Store(flags)
		c.word.Store(m.stamp(connNew))
		return c
	}
	switch below := nc.(type) {
	case *net.TCPConn:
		w := &tcpConn{tcpBelow: tcpBelow{below}}
		return w, set(&w.conn)
	case *net.UnixConn:
		w := &unixConn{unixBelow: unixBelow{below}}
		return w, set(&w.conn)
	case *tls.Conn:
		if tr == nil {
			c := set(new(conn))
			c.flags.Or(flagBeside | flagTLS)
			return nc, c
		}
		w := &anyTLSConn{anyConn{connBelow: connBelow{nc}}, func() tls.ConnectionState {
			below.Handshake() // its error comes again from Read
			return below.ConnectionState()
		}}
		return w, set(&w.conn)
	case interface{ ConnectionState() tls.ConnectionState }:
		w := &anyTLSConn{anyConn{connBelow: connBelow{nc}}, below.ConnectionState}
		return w, set(&w.conn)
	}
	w := &anyConn{connBelow: connBelow{nc}}
	return w, set(&w.conn)
}

// socketOf returns what lies at the bottom of nc's NetConn methods.
func socketOf(nc net.Conn) net.Conn {
	for {
		w, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		below := w.NetConn()
		if below == nil {
			return nc
		}
		nc = below
	}
}
