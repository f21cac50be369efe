package graceful

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-121bbccf/graceful/internal/counter"
)

// wrap tracks a connection.
func (s *Server) wrap(m *manager, nc net.Conn, release func(), flags uint32) (net.Conn, *conn) {
	wrapped, c := track(m, nc, release, nil, flags)
	if c.has(flagBeside) {
		s.side.beside.Store(nc, c)
	}
	return wrapped, c
}

// An httpConn is what HTTP keeps about one connection. It is the context of
// the connection's requests as well, which saves one.
type httpConn struct {
	context.Context
	c    *conn
	user *http.Server
	own  context.Context // what the caller's ConnContext made of it

	mu      sync.Mutex                    // guards streams, and is held by who reads last
	streams map[*http.Request]requestLine // those in progress, of HTTP/2

	// last is the request of HTTP/1 that came to the handler last. It is its
	// goroutine's while flagInHandler is not set, and nobody's to write while
	// it is.
	last requestLine

	// counted is where Server.RetryAfter counts the request of HTTP/1 in
	// progress; nil if it does not.
	counted atomic.Pointer[counter.Shard]
}

// requests returns the requests in progress.
func (h *httpConn) requests() []requestLine {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := slices.Collect(maps.Values(h.streams))
	// The handler may return at any moment, and the next request come: it
	// finds flagReported, for that was set while the handler had not returned.
	if h.c.flags.Or(flagReported)&flagInHandler != 0 {
		lines = append(lines, h.last)
	}
	h.c.flags.And(^uint32(flagReported))
	return lines
}

// A requestLine is what the report says of a request. It is kept apart from the
// request, which handlers may change.
type requestLine struct{ method, target string }

func lineOf(r *http.Request) requestLine { return requestLine{r.Method, r.RequestURI} }

type httpConnKey struct{}

// Value returns what the context of a request on h holds.
func (h *httpConn) Value(key any) any {
	switch key {
	case httpConnKey{}:
		return h
	case http.ServerContextKey:
		return h.user
	}
	return h.Context.Value(key)
}

func (s *Server) baseContext(l net.Listener) context.Context {
	ctx := context.Background()
	if s.Server.BaseContext != nil {
		original := l
		if tl := trackedListener(l); tl != nil {
			original = tl.original
		}
		if ctx = s.Server.BaseContext(original); ctx == nil {
			return nil // net/http panics with what it has to say
		}
	}
	ctx = context.WithValue(ctx, drainingKey{}, (<-chan struct{})(s.life.draining))
	ctx, cancel := context.WithCancelCause(ctx)
	s.side.mu.Lock()
	s.side.cancels = append(s.side.cancels, cancel)
	s.side.mu.Unlock()
	return ctx
}

func (s *Server) connContext(ctx context.Context, nc net.Conn) context.Context {
	c := s.connOf(nc)
	h := &httpConn{Context: ctx, c: c, user: s.Server}
	h.own = h
	if s.Server.ConnContext != nil {
		h.own = s.Server.ConnContext(h, originalConn(nc, c))
	}
	c.info.Store(h)
	return h.own
}

// connOf returns the tracked connection beneath or beside nc.
func (s *Server) connOf(nc net.Conn) *conn {
	if t, ok := nc.(*tcpConn); ok {
		return &t.conn // what most are, without a look into a map
	}
	if c, ok := s.side.beside.Load(nc); ok {
		return c.(*conn)
	}
	return trackedConn(nc)
}

// originalConn returns the connection that hooks are to see in nc's place: TLS
// that was laid over the tracked connection, or what the listener produced.
func originalConn(nc net.Conn, c *conn) net.Conn {
	if _, ok := nc.(interface{ tracked() *conn }); ok {
		return c.raw
	}
	return nc
}

// connState hears from net/http what a connection does.
func (s *Server) connState(nc net.Conn, state http.ConnState) {
	c := s.connOf(nc)
	if c == nil {
		return // of a TLSNextProto function that made a connection up
	}
	if was := c.load().state(); state == http.StateClosed && (was == connHijacked || was == connClosed) {
		return // it was hijacked while it was served on: for hooks that is the end
	}
	s.moved(nc, c, state)
	if state == http.StateIdle && !c.has(flagStreams) && c.m.settled.Load() {
		// The manager has heard that the connection is idle by now. Had it
		// heard before it settled, it would not have.
		s.serveOn(nc, c)
	}
}

// moved hears that c, which net/http knows as nc, has changed its state.
func (s *Server) moved(nc net.Conn, c *conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if tc, ok := nc.(*tls.Conn); ok {
			c.tls.Store(tc)
			c.m.changed(c, connNew)
		}
	case http.StateActive:
		if !c.has(flagSpoken) && !c.has(flagStreams) {
			if tc := c.tls.Load(); tc != nil && tc.ConnectionState().NegotiatedProtocol == "h2" {
				c.flags.Or(flagStreams)
			}
		}
		c.setState(connActive)
	}
	for _, hook := range [...]func(net.Conn, http.ConnState){s.Server.ConnState, s.ConnState} {
		if hook != nil {
			hook(originalConn(nc, c), state)
		}
	}
	// What lets the manager end the connection, or forget it, comes last.
	switch state {
	case http.StateIdle:
		c.setState(connIdle)
	case http.StateHijacked:
		if h, ok := c.info.Load().(*httpConn); ok && s.side.inflight != nil {
			s.side.inflight.hijacked(h)
		}
		c.setState(connHijacked)
		if c.has(flagBeside) {
			s.side.lostSight.Store(true)
			s.side.beside.Delete(nc)
			c.gone()
		}
	case http.StateClosed:
		if c.has(flagBeside) {
			s.side.beside.Delete(nc)
		}
		c.gone()
	}
}

// http2Opened hears that nc has turned out to be HTTP/2. Who ends it when it is
// idle is the layer.
func (s *Server) http2Opened(nc net.Conn, _ *http2Conn) {
	if c := s.connOf(nc); c != nil {
		c.flags.Or(flagStreams | flagLayered)
	}
}

// trackedListener returns the tracked listener below l.
func trackedListener(l net.Listener) *listener {
	switch l := l.(type) {
	case *listener:
		return l
	case *tlsOver:
		return l.tl
	}
	return nil
}
