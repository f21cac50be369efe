package traffic

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// A line is a client's connection to the server, over which it speaks without
// anything in between that could retry.
type line struct {
	load    *Load
	ctx     context.Context
	connect func(ctx context.Context, network, addr string) (net.Conn, error)
	saw     func(response)

	conn net.Conn // nil: none yet, or no longer
	in   source
	br   *bufio.Reader // of in
	free func() bool   // lets go of ctx
	used bool          // a response has come over conn

	// quiet is since when, at the earliest, the server may take the connection
	// for quiet: it was dialled, or the last request was sent.
	quiet time.Time
}

// maxHeader is how long, in bytes, a response's header may be. It bounds what a
// server that never ends its header costs a client.
const maxHeader = 1 << 20

// A source is the connection that a line reads from. While left is not negative
// it is how many more bytes may come.
type source struct {
	conn net.Conn
	left int
}

var errLongHeader = &failure{"long header", fmt.Errorf("the response's header has more than %d bytes", maxHeader)}

func (s *source) Read(p []byte) (int, error) {
	if s.left < 0 {
		return s.conn.Read(p)
	}
	if s.left == 0 {
		return 0, errLongHeader
	}
	n, err := s.conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

// dial opens the line if it is not open. Its error means that no byte of a
// request has been sent.
func (l *line) dial(deadline time.Time) error {
	if l.conn != nil {
		return nil
	}
	l.quiet = time.Now()
	ctx, cancel := context.WithDeadline(l.ctx, deadline)
	defer cancel()
	conn, err := l.connect(ctx, "tcp", l.load.Addr)
	if err != nil {
		return err
	}
	if tc, ok := conn.(*net.TCPConn); ok && l.load.Any && l.load.Kind.stream > 0 {
		tc.SetReadBuffer(downloadBuffer) // what the kernel holds, the server is done with
	}
	l.free = context.AfterFunc(l.ctx, func() { conn.Close() })
	l.conn, l.used = conn, false
	if l.load.TLS != nil {
		tc := tls.Client(conn, tlsFor(l.load))
		conn.SetDeadline(deadline)
		if err := tc.HandshakeContext(l.ctx); err != nil {
			l.close()
			return &failure{"handshake", err}
		}
		l.conn = tc
	}
	l.in = source{l.conn, -1}
	l.br = bufio.NewReader(&l.in)
	return nil
}

// rest implements client: it listens while it thinks, unless the client is
// deaf.
func (l *line) rest(flow context.Context, d time.Duration) bool {
	if l.conn == nil || l.load.Deaf && d != forever {
		pause(flow, d)
		return false
	}
	conn := l.conn
	if d == forever {
		conn.SetReadDeadline(time.Time{})
	} else {
		conn.SetReadDeadline(time.Now().Add(d))
	}
	// After the deadline above, or that one would put this one off.
	stop := context.AfterFunc(flow, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	_, err := l.br.Peek(1)
	stop()
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	l.close()
	return true
}

// over reports whether the server has ended the connection, as far as this
// machine's kernel knows: a client that does not think between its requests has
// not listened, and would send into it. The reader of http.Transport, and the
// event loops of HAProxy and nginx, see that too.
func (l *line) over() bool {
	if l.conn == nil || l.load.Deaf || l.br.Buffered() > 0 {
		return false
	}
	l.conn.SetReadDeadline(time.Time{}) // rest's has passed
	tc, secure := l.conn.(*tls.Conn)
	if !secure {
		ended, _ := peek(l.conn)
		return ended
	}
	ended, pending := peek(tc.NetConn())
	if !pending {
		return ended
	}
	// It may be the alert that says so, or a session ticket.
	l.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := l.br.Peek(1)
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// excuse returns err, as a pause if the server may have taken the connection
// for quiet before the next request began to come, at the time given.
func (l *line) excuse(err error, began time.Time) error {
	if w := l.load.Window; w > 0 && began.Sub(l.quiet) > w {
		return &failure{causePaused, err}
	}
	return err
}

func (l *line) close() {
	if l.conn == nil {
		return
	}
	l.free()
	l.conn.Close()
	l.conn = nil
}

// response reads a response's header. Its error tells an end without a byte
// (io.EOF) from one in the middle (io.ErrUnexpectedEOF), as http.ReadResponse
// does not. Of the interim responses only 100 and 101 are returned: others, such
// as 103 Early Hints, come before the one that matters.
func (l *line) response(method string) (*http.Response, error) {
	for {
		if _, err := l.br.Peek(1); err != nil {
			return nil, err
		}
		l.in.left = maxHeader
		resp, err := http.ReadResponse(l.br, &http.Request{Method: method})
		if l.in.left == 0 {
			return nil, errLongHeader
		}
		l.in.left = -1
		if err != nil || resp.StatusCode <= 101 || resp.StatusCode >= 200 {
			return resp, err
		}
	}
}

// tlsFor returns l's TLS configuration with the server's name in it.
func tlsFor(l *Load) *tls.Config {
	c := l.TLS.Clone()
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(l.Addr)
	}
	c.NextProtos = nil
	return c
}
