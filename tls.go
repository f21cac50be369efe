package graceful

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A secureConn is a connection over TLS: a *tls.Conn, or a type of the caller's.
type secureConn interface {
	net.Conn
	ConnectionState() tls.ConnectionState
}

// A tlsConn is a connection that is tracked above TLS, so that it reads and writes
// HTTP. net/http recognises it as TLS by its methods: before the first Read it calls
// HandshakeContext and ConnectionState (from Go 1.27 on), or ConnectionState alone
// (Go 1.26), which then runs the handshake.
//
// If ALPN has negotiated another protocol than HTTP/1, ConnectionState serves it,
// since net/http passes only a *tls.Conn to such protocols. With Go 1.26 that
// includes HTTP/2. The connection has ended when ConnectionState returns.
type tlsConn struct {
	conn
	connBelow
	secure secureConn  // raw, with its type
	below  *recordConn // below the TLS of this package; nil below a caller's TLS
	s      *Server
	ctx    context.Context // the context that ConnContext has returned

	once  sync.Once   // begin
	over  bool        // the connection has ended in begin. Written in once.
	apart atomic.Bool // begin is serving another protocol
}

// A fullTLSConn is a tlsConn with all methods of *tls.Conn, for handlers that
// hijack the connection.
type fullTLSConn struct {
	tlsConn
	tc *tls.Conn
}

// Handshake runs the TLS handshake, unless it was run before.
func (c *fullTLSConn) Handshake() error { return c.HandshakeContext(context.Background()) }

// OCSPResponse calls (*tls.Conn).OCSPResponse.
func (c *fullTLSConn) OCSPResponse() []byte { return c.tc.OCSPResponse() }

// VerifyHostname calls (*tls.Conn).VerifyHostname.
func (c *fullTLSConn) VerifyHostname(host string) error { return c.tc.VerifyHostname(host) }

// trackTLS wraps sc for HTTP and the manager m.
func (s *Server) trackTLS(m *manager, sc secureConn, limit *limiter) (net.Conn, *conn) {
	var wrapped net.Conn
	var w *tlsConn
	if tc, ok := sc.(*tls.Conn); ok {
		full := &fullTLSConn{tc: tc}
		wrapped, w = full, &full.tlsConn
		if w.below, ok = tc.NetConn().(*recordConn); ok {
			w.below.c = &w.conn
		}
	} else {
		w = new(tlsConn)
		wrapped = w
	}
	w.connBelow, w.secure, w.s = connBelow{sc}, sc, s
	w.init(m, sc, limit, nil)
	w.h1.preface = -1
	w.set(flagHandshake)
	return wrapped, &w.conn
}

func (c *tlsConn) Read(p []byte) (int, error) {
	if c.begin(); c.over {
		return 0, io.EOF
	}
	// Not once it is hijacked, since several goroutines may read it then.
	if c.below != nil && c.load().state() != connHijacked && c.below.partial() {
		c.below.begun(true) // the record began during a request, and was not counted then
	}
	return c.conn.Read(p)
}

// CloseWrite calls the connection's CloseWrite. It returns errors.ErrUnsupported if
// there is none.
func (c *tlsConn) CloseWrite() error { return closeWrite(c.raw) }

// Close closes the connection, unless begin is serving another protocol. During
// that, net/http takes the connection for a new one, and closes it when keep-alives
// are disabled.
func (c *tlsConn) Close() error {
	if c.apart.Load() {
		return nil
	}
	return c.conn.Close()
}

// HandshakeContext runs the TLS handshake, unless it was run before.
func (c *tlsConn) HandshakeContext(ctx context.Context) error {
	err := handshake(ctx, c.secure)
	if err == nil {
		c.handshakeDone()
	}
	return err
}

// ConnectionState returns the TLS state, after running the handshake if necessary.
// If ALPN has negotiated a protocol that begin serves, ConnectionState returns an
// empty state when the connection has ended.
func (c *tlsConn) ConnectionState() tls.ConnectionState {
	if c.begin(); c.over {
		return tls.ConnectionState{}
	}
	return c.secure.ConnectionState()
}

// begin runs the handshake if net/http has not run it, and serves the connection if
// ALPN has negotiated a protocol that net/http would not serve on it.
func (c *tlsConn) begin() {
	c.once.Do(func() {
		if c.has(flagHandshake) {
			if err := c.handshakeForNetHTTP(); err != nil {
				c.over = true
				return
			}
			c.handshakeDone()
		}
		c.over = c.s.serveALPN(c)
	})
}

// handshakeDone is called when the handshake is complete. The connection is new
// then, and its quiet period begins.
func (c *tlsConn) handshakeDone() {
	if c.unset(flagHandshake)&flagHandshake == 0 {
		return
	}
	if c.secure.ConnectionState().NegotiatedProtocol == protoHTTP2 && c.s.followsHTTP2() {
		c.followHTTP2(false)
	}
	for {
		w := c.load()
		if s := w.state(); s != connNew && s != connReceiving {
			break
		}
		if c.word.CompareAndSwap(uint64(w), uint64(c.m.stamp(connNew))) {
			break
		}
	}
	c.m.changed(&c.conn, connNew)
	if c.below != nil && c.below.partial() {
		c.below.begun(true)
	}
}

// handshakeForNetHTTP runs the handshake as net/http does: with the same timeout,
// and with the same log lines and the same response if it fails.
func (c *tlsConn) handshakeForNetHTTP() error {
	hs := c.s.side.hs
	ctx := c.requestContext()
	if d := tlsHandshakeTimeout(hs); d > 0 {
		c.SetDeadline(time.Now().Add(d))
		defer c.SetDeadline(time.Time{})
	}
	err := handshake(ctx, c.secure)
	if err == nil {
		return nil
	}
	reason := err.Error()
	if re, ok := err.(tls.RecordHeaderError); ok && re.Conn != nil {
		switch string(re.RecordHeader[:]) {
		case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
			io.WriteString(re.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
			re.Conn.Close()
			reason = "client sent an HTTP request to an HTTPS server"
		}
	}
	logf := log.Printf
	if hs.ErrorLog != nil {
		logf = hs.ErrorLog.Printf
	}
	logf("http: TLS handshake error from %s: %v", c.RemoteAddr(), reason)
	return err
}

// requestContext returns the context of the connection's requests.
func (c *tlsConn) requestContext() context.Context {
	ctx := c.ctx
	if ctx == nil { // if ConnContext has returned nil, net/http panics later
		ctx = context.Background()
	}
	return context.WithValue(ctx, http.LocalAddrContextKey, c.LocalAddr())
}

func (c *tlsConn) setContext(ctx context.Context) { c.ctx = ctx }

// handshake calls sc's HandshakeContext or Handshake, if there is one.
func handshake(ctx context.Context, sc secureConn) error {
	switch sc := sc.(type) {
	case interface{ HandshakeContext(context.Context) error }:
		return sc.HandshakeContext(ctx)
	case interface{ Handshake() error }:
		return sc.Handshake()
	}
	return nil
}

// tlsHandshakeTimeout is like http.Server's unexported method of that name.
func tlsHandshakeTimeout(s *http.Server) (least time.Duration) {
	for _, d := range [...]time.Duration{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout} {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// An alpnHandler is the handler for an entry of TLSNextProto. It does what the one
// that net/http passes to such an entry does.
type alpnHandler struct {
	ctx    context.Context
	secure secureConn
	h      http.Handler
	// options makes it answer "OPTIONS *" itself.
	options bool
}

// BaseContext returns the context for the connection's requests. HTTP/2
// implementations call it.
func (h alpnHandler) BaseContext() context.Context { return h.ctx }

func (h alpnHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil {
		r.TLS = new(tls.ConnectionState)
		*r.TLS = h.secure.ConnectionState()
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	if r.RemoteAddr == "" {
		r.RemoteAddr = h.secure.RemoteAddr().String()
	}
	if h.options && r.RequestURI == "*" && r.Method == http.MethodOptions {
		// As http.Server does, unless its DisableGeneralOptionsHandler is set.
		w.Header().Set("Content-Length", "0")
		if r.ContentLength != 0 {
			io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
		}
		return
	}
	h.h.ServeHTTP(w, r)
}

// isHTTP1 reports whether an ALPN protocol is HTTP/1 or empty.
func isHTTP1(proto string) bool {
	return proto == "" || proto == "http/1.1" || proto == "http/1.0"
}

// A recordConn is the connection below the TLS of this package. It follows the TLS
// records: part of a record may be part of a request, although TLS returns no byte
// of it before the record is complete.
type recordConn struct {
	net.Conn
	c *conn // the connection above TLS. Written before the first Read.

	// Owned by the reader.
	header [5]byte
	have   int // how many bytes of the header were read; 0 between records
	left   int // how many bytes of the record are missing, once the header is complete

	// before is the connection's state before an incomplete record made it
	// receiving; 0 if none did. It is restored when the record is complete, because
	// a record may contain no data (TLS 1.3's KeyUpdate).
	before connWord
}

// NetConn returns the accepted connection.
func (r *recordConn) NetConn() net.Conn { return r.Conn }

func (r *recordConn) tracked() *conn { return r.c }

func (r *recordConn) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if r.have < len(r.header) {
			k := copy(r.header[r.have:], b)
			r.have, b = r.have+k, b[k:]
			r.left = int(r.header[3])<<8 | int(r.header[4])
		} else {
			k := min(r.left, len(b))
			r.left, b = r.left-k, b[k:]
		}
		if r.have == len(r.header) && r.left == 0 {
			r.have = 0
		}
	}
	switch c := r.c; {
	case n <= 0 || c.multiplexes():
	case !c.has(flagHandshake):
		r.begun(r.partial())
	case c.load().state() == connNew:
		c.begun() // a handshake that has begun is waited for like an incomplete request
	}
	return n, err
}

// partial reports whether part of a record was read.
func (r *recordConn) partial() bool { return r.have > 0 }

// begun makes the connection receiving if partial is true, and otherwise restores
// the state before.
func (r *recordConn) begun(partial bool) {
	c := r.c
	switch w := c.load(); {
	case partial && r.before != 0:
		// The connection is receiving already.
	case partial && (w.state() == connNew || w.state() == connIdle):
		if c.begun(); c.load().state() == connReceiving {
			r.before = w
		}
	case partial && w.state() == connEnding:
		r.before = c.m.stamp(connIdle)
		c.goOn(connReceiving)
	case !partial && r.before != 0:
		// If the record contains data, conn.Read makes the connection receiving again.
		before := r.before
		r.before = 0
		if w.state() == connReceiving && c.word.CompareAndSwap(uint64(w), uint64(before)) {
			c.m.changed(c, before.state())
		}
	}
}

// A listenerTLSConn is a Listener's connection if the listener below is a TLS
// listener. Its ConnectionState runs the handshake, for servers that call
// ConnectionState before they read.
type listenerTLSConn struct {
	*anyConn
	secure secureConn
}

func (c *listenerTLSConn) ConnectionState() tls.ConnectionState {
	_ = handshake(context.Background(), c.secure) // Read returns its error again
	return c.secure.ConnectionState()
}
