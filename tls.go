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

// A tlsConn is a connection that is tracked above TLS, where what is read and
// written is HTTP. To net/http it is TLS by its methods: from Go 1.27 on net/http
// calls HandshakeContext and ConnectionState before anything else. Go 1.26 calls
// ConnectionState alone, which makes the handshake there.
//
// Another protocol that was agreed on by ALPN is served from within
// ConnectionState, since net/http hands only a *tls.Conn on. So is HTTP/2 with Go
// 1.26. net/http then finds the connection at its end.
type tlsConn struct {
	conn
	connBelow
	secure secureConn  // raw, as what it is
	below  *recordConn // below the server's own TLS; nil below a caller's
	s      *Server
	ctx    context.Context // of its requests, as ConnContext has made it

	once  sync.Once   // of begin
	over  bool        // nothing is left for HTTP/1. Written in once.
	apart atomic.Bool // another protocol is being served from within begin
}

// A fullTLSConn is a tlsConn with the other methods of *tls.Conn, for handlers
// that hijack it.
type fullTLSConn struct {
	tlsConn
	tc *tls.Conn
}

// Handshake makes the TLS handshake, if it has not been made.
func (c *fullTLSConn) Handshake() error { return c.HandshakeContext(context.Background()) }

// OCSPResponse is (*tls.Conn).OCSPResponse.
func (c *fullTLSConn) OCSPResponse() []byte { return c.tc.OCSPResponse() }

// VerifyHostname is (*tls.Conn).VerifyHostname.
func (c *fullTLSConn) VerifyHostname(host string) error { return c.tc.VerifyHostname(host) }

// trackTLS wraps sc for HTTP.
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
	// Once it is hijacked, several goroutines may read it.
	if c.below != nil && c.load().state() != connHijacked && c.below.partial() {
		c.below.begun(true) // since the last Read, during which a request was in progress
	}
	return c.conn.Read(p)
}

// CloseWrite closes the writing side, where the connection can.
func (c *tlsConn) CloseWrite() error { return closeWrite(c.raw) }

// Close closes the connection. While another protocol is served from within
// begin, net/http takes the connection for one that has said nothing yet, and
// closes it when keep-alives are disabled: that is ignored.
func (c *tlsConn) Close() error {
	if c.apart.Load() {
		return nil
	}
	return c.conn.Close()
}

// HandshakeContext makes the TLS handshake, if it has not been made.
func (c *tlsConn) HandshakeContext(ctx context.Context) error {
	err := handshake(ctx, c.secure)
	if err == nil {
		c.shaken()
	}
	return err
}

// ConnectionState returns the TLS state. It makes the handshake first if that has
// not been made. Of a connection on which another protocol than net/http's was
// served, the state is empty.
func (c *tlsConn) ConnectionState() tls.ConnectionState {
	if c.begin(); c.over {
		return tls.ConnectionState{}
	}
	return c.secure.ConnectionState()
}

// begin makes the handshake where net/http has not made it, and serves what is
// not net/http's to serve.
func (c *tlsConn) begin() {
	c.once.Do(func() {
		if c.has(flagHandshake) {
			if err := c.handshakeForNetHTTP(); err != nil {
				c.over = true
				return
			}
			c.shaken()
		}
		c.over = c.s.serveALPN(c)
	})
}

// shaken notes that the handshake is over. A connection that has sent nothing
// since then is new: the quiet window counts from now.
func (c *tlsConn) shaken() {
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

// handshakeForNetHTTP makes the handshake as net/http does: within its time, and
// with what it says when the handshake fails.
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
	if ctx == nil { // ConnContext has returned it: net/http panics
		ctx = context.Background()
	}
	return context.WithValue(ctx, http.LocalAddrContextKey, c.LocalAddr())
}

func (c *tlsConn) setContext(ctx context.Context) { c.ctx = ctx }

// handshake makes the TLS handshake of sc, if it has one to make.
func handshake(ctx context.Context, sc secureConn) error {
	switch sc := sc.(type) {
	case interface{ HandshakeContext(context.Context) error }:
		return sc.HandshakeContext(ctx)
	case interface{ Handshake() error }:
		return sc.Handshake()
	}
	return nil
}

// tlsHandshakeTimeout is http.Server's method of that name.
func tlsHandshakeTimeout(s *http.Server) (least time.Duration) {
	for _, d := range [...]time.Duration{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout} {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// An alpnHandler is what net/http passes to an entry of TLSNextProto.
type alpnHandler struct {
	ctx    context.Context
	secure secureConn
	h      http.Handler
	// options answers "OPTIONS *", which asks about the server as a whole.
	options bool
}

// BaseContext is how net/http passes the connection's context to HTTP/2.
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

// isHTTP1 reports whether a protocol of ALPN is HTTP/1, or none.
func isHTTP1(proto string) bool {
	return proto == "" || proto == "http/1.1" || proto == "http/1.0"
}

// A recordConn is below the server's own TLS and sees where its records end: one
// that has begun to come may hold the beginning of a request, though nobody can
// read it yet.
type recordConn struct {
	net.Conn
	c *conn // above it. Written before the first Read.

	// Owned by the reader.
	header [5]byte
	have   int // bytes of the header that have come; 0 between records
	left   int // bytes of the record that have not, when the header is whole

	// before is the connection's state before a record that has not ended made it
	// receiving; 0 if none did. A record that turns out to hold no data (TLS 1.3's
	// KeyUpdate) leaves that state, and its time, as they were.
	before connWord
}

// NetConn returns the connection that the listener produced.
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
		c.begun() // half a handshake is as good as half a request
	}
	return n, err
}

// partial reports whether a record has begun to come and has not ended.
func (r *recordConn) partial() bool { return r.have > 0 }

// begun notes whether part of a record has come.
func (r *recordConn) begun(partial bool) {
	c := r.c
	switch w := c.load(); {
	case partial && r.before != 0:
		// It has been noted.
	case partial && (w.state() == connNew || w.state() == connIdle):
		if c.begun(); c.load().state() == connReceiving {
			r.before = w
		}
	case partial && w.state() == connEnding:
		r.before = c.m.stamp(connIdle)
		c.goOn(connReceiving)
	case !partial && r.before != 0:
		// What is in the record is read next, if it is data.
		before := r.before
		r.before = 0
		if w.state() == connReceiving && c.word.CompareAndSwap(uint64(w), uint64(before)) {
			c.m.changed(c, before.state())
		}
	}
}

// A listenerTLSConn is a Listener's connection over TLS that the listener below
// has laid. A server that looks for ConnectionState before it reads anything
// finds the handshake made.
type listenerTLSConn struct {
	*anyConn
	secure secureConn
}

func (c *listenerTLSConn) ConnectionState() tls.ConnectionState {
	_ = handshake(context.Background(), c.secure) // its error comes again from Read
	return c.secure.ConnectionState()
}
