package graceful

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// An httpSide is what a Server knows of HTTP.
type httpSide struct {
	once sync.Once // prepare

	// Immutable after prepare.
	err         error
	handler     http.Handler // the caller's, and what Health and RetryAfter put around it
	inflight    *InFlight    // nil without RetryAfter
	hs          *http.Server // serves; made from the caller's, which only configures
	limit       *limiter     // nil without ListenLimit
	speaksHTTP2 bool         // over TLS, where Protocols says nothing
	http2       *http2Layer  // nil: HTTP/2 is as net/http makes it
	http2Plain  string       // why so
	http2Err    error        // what net/http's ServeTLS would return

	health Health // in the place of a nil Server.Health

	// beside has the tracked connection for each *tls.Conn of a caller's
	// listener.
	beside sync.Map // net.Conn to *conn

	mu           sync.Mutex // guards what follows
	drainBegun   bool
	noKeepAlives bool
	onShutdown   []func()
	cancels      []context.CancelCauseFunc // of the base contexts
}

// init makes s usable before anything is served.
func (s *Server) init() {
	s.life.init((*httpProtocol)(s))
}

// prepare checks the configuration and makes the http.Server that serves.
//
// It is not the caller's: net/http's Shutdown has to be called late, when it
// can lose nobody, but the functions that were registered with the caller's
// http.Server must run early, and only its Shutdown runs them.
func (s *Server) prepare() error {
	s.init()
	s.side.once.Do(func() {
		if s.Server == nil {
			s.Server = new(http.Server)
		}
		if s.side.err = s.check(); s.side.err != nil {
			return
		}
		s.side.handler = s.compose()
		if s.ListenLimit > 0 {
			s.side.limit = newLimiter(s.ListenLimit)
		}
		user := s.Server
		hs := &http.Server{
			Addr:              user.Addr,
			Handler:           http.HandlerFunc(s.serveHTTP),
			ReadTimeout:       user.ReadTimeout,
			ReadHeaderTimeout: user.ReadHeaderTimeout,
			WriteTimeout:      user.WriteTimeout,
			IdleTimeout:       user.IdleTimeout,
			MaxHeaderBytes:    user.MaxHeaderBytes,
			TLSNextProto:      maps.Clone(user.TLSNextProto),
			ErrorLog:          user.ErrorLog,
			HTTP2:             user.HTTP2,
			Protocols:         user.Protocols,
			ConnState:         s.connState,
			ConnContext:       s.connContext,
			BaseContext:       s.baseContext,

			// serveHTTP answers "OPTIONS *", so that it says close as well.
			DisableGeneralOptionsHandler: true,
		}
		_, hasH2 := user.TLSNextProto["h2"]
		s.side.speaksHTTP2 = user.TLSNextProto == nil || hasH2
		s.side.http2, s.side.http2Plain, s.side.http2Err = newHTTP2(user, http2Config{
			serveTLS:  true, // only Serve knows; the one error waits until then
			grace:     s.idleGrace(),
			patience:  http2Patience,
			connState: s.connState,
			onOpen:    s.http2Opened,
		})
		if s.side.http2Plain == http2Disabled {
			s.side.speaksHTTP2 = false
		}
		if s.side.http2Err != nil && wantsHTTP2(user, false) {
			s.side.err = s.side.http2Err
			return
		}
		if user.TLSConfig != nil {
			// net/http's Serve, which is never told of TLS here, sets HTTP/2
			// up only for a configuration that names it.
			hs.TLSConfig = s.withProtocols(user.TLSConfig)
		}
		s.side.http2.install(hs)
		s.side.mu.Lock()
		s.side.hs = hs
		if s.side.noKeepAlives {
			hs.SetKeepAlivesEnabled(false)
			s.side.http2.setKeepAlivesEnabled(false)
		}
		s.side.mu.Unlock()
		user.RegisterOnShutdown(func() { s.life.order("Shutdown of the http.Server", nil) })
	})
	return s.side.err
}

// check reports what is wrong with the configuration.
func (s *Server) check() error {
	switch {
	case s.Timeout < 0:
		return fmt.Errorf("graceful: Server.Timeout is negative: %v", s.Timeout)
	case s.ShutdownDelay < 0:
		return fmt.Errorf("graceful: Server.ShutdownDelay is negative: %v", s.ShutdownDelay)
	case s.RetryAfter < 0:
		return fmt.Errorf("graceful: Server.RetryAfter is negative: %v", s.RetryAfter)
	case s.ListenLimit < 0:
		return fmt.Errorf("graceful: Server.ListenLimit is negative: %d", s.ListenLimit)
	}
	return nil
}

// compose returns the caller's handler with what the fields put around it.
func (s *Server) compose() http.Handler {
	h := s.Server.Handler
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.DefaultServeMux.ServeHTTP(w, r) // which may be replaced
		})
	}
	if s.Health != nil {
		h = s.Health.Handler(h)
	}
	if s.RetryAfter > 0 {
		s.side.inflight = &InFlight{RetryAfter: s.RetryAfter, ReleaseWindow: -1}
		h = s.side.inflight.Handler(h)
	}
	return h
}

// defaultIdleGrace is the quiet window where none is configured.
const defaultIdleGrace = 500 * time.Millisecond

func (s *Server) idleGrace() time.Duration { return graceOf(s.IdleGrace) }

// graceOf returns what a field IdleGrace means.
func graceOf(field time.Duration) time.Duration {
	switch {
	case field == 0:
		return defaultIdleGrace
	case field < 0:
		return 0
	}
	return field
}

func (s *Server) logf(format string, args ...any) {
	switch {
	case s.LogFunc != nil:
		s.LogFunc(format, args...)
	case s.Logger != nil:
		s.Logger.Printf(format, args...)
	}
}

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

	// req is the request in progress, of HTTP/1.
	req atomic.Pointer[http.Request]

	mu      sync.Mutex                 // guards streams
	streams map[*http.Request]struct{} // those in progress, of HTTP/2
}

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
	original := originalConn(nc, c)
	if hook := s.Server.ConnState; hook != nil {
		hook(original, state)
	}
	if hook := s.ConnState; hook != nil {
		hook(original, state)
	}
	// What lets the manager end the connection, or forget it, comes last.
	switch state {
	case http.StateIdle:
		c.setState(connIdle)
	case http.StateHijacked:
		c.setState(connHijacked)
		if c.has(flagBeside) {
			// Nobody will tell when it is closed.
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

// serveHTTP is the outermost handler.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	h, _ := r.Context().Value(httpConnKey{}).(*httpConn)
	switch {
	case h == nil:
		// The caller's ConnContext returned a context that isn't derived
		// from the one it was given.
		if r.ProtoMajor == 1 && s.life.shutting.Load() {
			w.Header().Set("Connection", "close")
		}
		s.handle(w, r)
	case r.ProtoMajor == 1:
		h.req.Store(r)
		if s.life.shutting.Load() {
			// Before the handler runs, for its header may go out at any
			// moment after that.
			w.Header().Set("Connection", "close")
			h.c.sayFarewell()
		}
		s.handle(w, r)
		h.req.Store(nil) // after a panic the connection is closed anyway
	default:
		if !h.c.has(flagStreams) {
			h.c.flags.Or(flagStreams)
		}
		s.streamCount.Add(1)
		h.begin(r)
		defer func() {
			h.end(r)
			s.streamCount.Add(-1)
		}()
		s.handle(w, r)
	}
}

// inHandler reports whether there is a request of HTTP/1 in the handler.
func inHandler(c *conn) bool {
	h, _ := c.info.Load().(*httpConn)
	return h != nil && h.req.Load() != nil
}

func (h *httpConn) begin(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams = make(map[*http.Request]struct{})
	}
	h.streams[r] = struct{}{}
}

func (h *httpConn) end(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, r)
}

// handle calls the handler, or what net/http has in its place.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if r.RequestURI == "*" && r.Method == http.MethodOptions && !s.Server.DisableGeneralOptionsHandler {
		answerOptions(w, r)
		return
	}
	s.side.handler.ServeHTTP(w, r)
}

// answerOptions answers "OPTIONS *", which asks about the server as a whole,
// as net/http does: with nothing, after a body of at most 4 KiB was read.
func answerOptions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	if r.ContentLength != 0 {
		io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	}
}

// httpProtocol is a Server as its lifecycle sees it.
type httpProtocol Server

func (p *httpProtocol) server() *Server { return (*Server)(p) }

func (p *httpProtocol) logf(format string, args ...any) { p.server().logf(format, args...) }

func (p *httpProtocol) config() lifeConfig {
	s := p.server()
	cfg := lifeConfig{
		delay:   s.ShutdownDelay,
		timeout: s.Timeout,
		rules: drainRules{
			grace:        s.idleGrace(),
			waitHijacked: s.WaitHijacked,
			entered:      inHandler,
			settled:      s.shutHTTP,
		},
	}
	if s.Timeout == 0 {
		cfg.rules.half = halfSpoken
	}
	return cfg
}

func (p *httpProtocol) beforeShutdown() bool {
	return p.BeforeShutdown == nil || p.BeforeShutdown()
}

func (p *httpProtocol) beginDelay() {
	p.Interrupted = true
	p.server().health().Shutdown()
}

// finishRequests refuses new requests until those in progress are answered.
func (p *httpProtocol) finishRequests(ctx context.Context) <-chan struct{} {
	f := p.side.inflight
	if f == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.WaitContext(ctx)
	}()
	return done
}

// beginDrain runs the functions that wait for it: those of the caller's
// http.Server with its Shutdown, which has nothing else to do, since it serves
// nothing.
func (p *httpProtocol) beginDrain() {
	s := p.server()
	s.side.mu.Lock()
	s.side.drainBegun = true
	hooks := s.side.onShutdown
	s.side.onShutdown = nil
	s.side.mu.Unlock()
	if s.ShutdownInitiated != nil {
		go s.ShutdownInitiated()
	}
	for _, f := range hooks {
		go f()
	}
	if s.Server != nil {
		shutNow(s.Server)
	}
	s.side.http2.finish()
}

// shutHTTP says net/http's last word: answers that have not begun yet say
// close, and HTTP/2 connections are told to leave. It would lose a request
// that is being read, which is why it waits until there can be none.
func (s *Server) shutHTTP() {
	m := s.life.manager()
	m.sweeping.Store(true)
	shutNow(s.side.hs)
	m.sweeping.Store(false)
}

// shutNow calls hs.Shutdown without waiting for its connections.
func shutNow(hs *http.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	hs.Shutdown(ctx)
}

func (p *httpProtocol) beginKill() {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	for _, cancel := range s.side.cancels {
		cancel(ErrKilled)
	}
}

func (p *httpProtocol) requests(info any) []string {
	h, _ := info.(*httpConn)
	if h == nil {
		return nil
	}
	var list []string
	add := func(r *http.Request) {
		list = append(list, r.Method+" "+r.RequestURI)
	}
	if r := h.req.Load(); r != nil {
		add(r)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.streams {
		add(r)
	}
	return list
}

func (p *httpProtocol) streams() int { return int(p.streamCount.Load()) }

// finish lets go of the base contexts, but for hijacked connections' sake: the
// handlers of those that were left may still use them.
func (p *httpProtocol) finish(left int) string {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	for _, cancel := range s.side.cancels {
		if left == 0 {
			cancel(http.ErrServerClosed)
		}
	}
	switch {
	case s.side.http2 != nil:
		return "GOAWAY in two steps"
	case s.side.http2Plain != "":
		return "as by net/http: " + s.side.http2Plain
	}
	return "" // nothing was ever served
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
