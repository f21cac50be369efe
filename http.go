package graceful

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/counter"
)

// An httpSide is what a Server knows of HTTP.
type httpSide struct {
	once sync.Once // prepare

	// Immutable after prepare.
	err        error
	handler    http.Handler // the caller's, and what Health and RetryAfter put around it
	inflight   *InFlight    // nil without RetryAfter
	hs         *http.Server // serves; made from the caller's, which only configures
	limit      *limiter     // nil without ListenLimit
	http2      http2Kind
	http2Clear bool  // a connection without TLS may turn out to be HTTP/2
	http2Err   error // what net/http's ServeTLS would return

	health Health // in the place of a nil Server.Health

	mu         sync.Mutex // guards what follows
	drainBegun bool
	ranHooks   bool // the http.Server's own Shutdown has run its functions
	keepAlives *bool
	onShutdown []func()
	cancels    []context.CancelCauseFunc // of the base contexts
	untold     int                       // HTTP/2 connections that may still get a stream
	allTold    chan struct{}             // closed when untold is 0; nil unless that is awaited
}

// An http2Kind says who serves HTTP/2.
type http2Kind int

const (
	http2Off http2Kind = iota

	// http2Native: net/http.
	http2Native

	// http2Program: an implementation of the program's own, of the kind of
	// golang.org/x/net/http2's, which takes any net.Conn.
	http2Program

	// http2Blind: an implementation of the program's own, which takes a *tls.Conn
	// alone.
	http2Blind
)

// init makes s usable before anything is served.
func (s *Server) init() { s.life.init((*httpProtocol)(s)) }

// prepare checks the configuration and makes the http.Server that serves.
//
// It is not the caller's: net/http's Shutdown drops requests that it has just
// read, so the http.Server that serves is never shut down; but the functions that
// were registered with the caller's http.Server must run, and only its Shutdown
// runs them.
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
		if s.side.err = s.configure(); s.side.err != nil {
			return
		}
		s.Server.RegisterOnShutdown(func() {
			s.side.mu.Lock()
			s.side.ranHooks = true
			s.side.mu.Unlock()
			s.life.begin("Shutdown of the http.Server", nil)
		})
	})
	return s.side.err
}

// check reports what is wrong with the configuration.
func (s *Server) check() error {
	return cmp.Or(
		notNegative("Server.Timeout", s.Timeout),
		notNegative("Server.ShutdownDelay", s.ShutdownDelay),
		notNegative("Server.RetryAfter", s.RetryAfter),
		notNegative("Server.ListenLimit", s.ListenLimit),
	)
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
		h = s.side.inflight.serverHandler(h)
	}
	return h
}

// configure makes the http.Server that serves, and finds out who serves HTTP/2.
func (s *Server) configure() error {
	user, kind := s.Server, http2Off
	if wantsHTTP2(user, true) {
		kind = http2Native
		if own := user.TLSNextProto[protoHTTP2]; own != nil && !isNetHTTPs(own) {
			if kind = http2Blind; user.TLSNextProto[protoUnencryptedHTTP2] != nil {
				kind = http2Program
			}
		}
	}
	hs := s.newHTTPServer(kind)
	if kind == http2Native {
		// net/http configures HTTP/2, and says what is wrong with that, in ServeTLS,
		// before it opens the files.
		const noFile = "\x00"
		var noSuchFile *fs.PathError
		if err := hs.ServeTLS(nil, noFile, noFile); !errors.As(err, &noSuchFile) {
			if s.side.http2Err = err; wantsHTTP2(user, false) {
				return err
			}
			kind = http2Off
			hs = s.newHTTPServer(kind)
		} else if hs.TLSNextProto[protoHTTP2] == nil {
			kind = http2Off // GODEBUG=http2server=0, or the build
		}
	}
	s.side.http2 = kind
	s.side.http2Clear = (kind == http2Native || kind == http2Program) &&
		user.Protocols != nil && user.Protocols.UnencryptedHTTP2()
	s.side.mu.Lock()
	s.side.hs = hs
	if s.side.keepAlives != nil {
		hs.SetKeepAlivesEnabled(*s.side.keepAlives)
	}
	s.side.mu.Unlock()
	return nil
}

// newHTTPServer returns a copy of the caller's http.Server with our handler and
// hooks.
func (s *Server) newHTTPServer(kind http2Kind) *http.Server {
	hs := copyServer(s.Server)
	hs.Handler = http.HandlerFunc(s.serveHTTP)
	hs.ConnState = s.connState
	hs.ConnContext = s.connContext
	hs.BaseContext = s.baseContext
	hs.TLSNextProto = maps.Clone(s.Server.TLSNextProto)
	if isNetHTTPs(hs.TLSNextProto[protoHTTP2]) {
		delete(hs.TLSNextProto, protoHTTP2)
		delete(hs.TLSNextProto, protoUnencryptedHTTP2)
		if len(hs.TLSNextProto) == 0 {
			hs.TLSNextProto = nil
		}
	}
	if kind == http2Off && hs.TLSNextProto == nil {
		hs.TLSNextProto = make(map[string]nextProto)
	}
	if hs.TLSConfig != nil {
		// net/http's Serve, which is never told of TLS here, sets HTTP/2 up only
		// for a configuration that names it.
		hs.TLSConfig = hs.TLSConfig.Clone()
		if kind == http2Native && !slices.Contains(hs.TLSConfig.NextProtos, protoHTTP2) {
			hs.TLSConfig.NextProtos = append(slices.Clone(hs.TLSConfig.NextProtos), protoHTTP2)
		}
	}
	return hs
}

// copyServer returns an http.Server with the exported fields of from, those of a
// later Go included. http.Server has locks, and can't be assigned.
//
// With Go 1.27 golang.org/x/net/http2 leaves its settings in a field that is not
// exported. Where it has, everything is copied: from does not serve.
func copyServer(from *http.Server) *http.Server {
	to := new(http.Server)
	src, dst := reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem()
	if f := src.FieldByName("h2Config"); f.IsValid() && f.Kind() == reflect.Interface && !f.IsNil() {
		dst.Set(src)
		return to
	}
	for i := range src.NumField() {
		if src.Type().Field(i).IsExported() {
			dst.Field(i).Set(src.Field(i))
		}
	}
	return to
}

// withProtocols returns a copy of config that offers to clients what the
// http.Server speaks, as its ServeTLS does.
func (s *Server) withProtocols(config *tls.Config) *tls.Config {
	config = config.Clone()
	http1, http2 := true, s.side.http2 != http2Off
	if p := s.Server.Protocols; p != nil {
		http1, http2 = p.HTTP1(), p.HTTP2()
	}
	protos := slices.DeleteFunc(slices.Clone(config.NextProtos), func(p string) bool {
		return p == "http/1.1" && !http1 || p == protoHTTP2 && !http2
	})
	if http2 && !slices.Contains(protos, protoHTTP2) {
		protos = append(protos, protoHTTP2)
	}
	if http1 && !slices.Contains(protos, "http/1.1") {
		protos = append(protos, "http/1.1")
	}
	config.NextProtos = protos
	return config
}

// wrap tracks a connection, over which TLS is laid if config is not nil.
func (s *Server) wrap(m *manager, nc net.Conn, limit *limiter, config *tls.Config) (net.Conn, *conn) {
	if config != nil {
		return s.trackTLS(m, tls.Server(&recordConn{Conn: nc}, config), limit)
	}
	if sc, ok := nc.(secureConn); ok {
		return s.trackTLS(m, sc, limit)
	}
	wrapped, c := track(m, nc, limit, nil)
	if !s.side.http2Clear {
		c.h1.preface = -1
	}
	return wrapped, c
}

// followsHTTP2 reports whether HTTP/2 is served in such a way that the connection
// sees it.
func (s *Server) followsHTTP2() bool {
	return s.side.http2 == http2Native || s.side.http2 == http2Program
}

// serveHTTP is the outermost handler.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	h, _ := r.Context().Value(httpConnKey{}).(*httpConn)
	switch {
	case h == nil:
		// The caller's ConnContext returned a context that isn't derived
		// from the one it was given.
		s.side.handler.ServeHTTP(w, r)
	case r.ProtoMajor == 1:
		h.enter(r)
		s.side.handler.ServeHTTP(w, r)
		h.leave() // after a panic the connection is closed anyway
	default:
		h.begin(r)
		defer h.end(r)
		r2 := s.withServer(r)
		defer func() {
			if f := r2.MultipartForm; f != nil {
				f.RemoveAll() // Go 1.27's HTTP/2 looks for them in another Request
			}
		}()
		s.side.handler.ServeHTTP(w, r2)
	}
}

// withServer returns r with the caller's http.Server under http.ServerContextKey,
// where golang.org/x/net/http2, and net/http's HTTP/2 up to Go 1.26, have put the
// one that serves.
func (s *Server) withServer(r *http.Request) *http.Request {
	if http2KeepsContext && s.side.http2 == http2Native {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, s.Server))
}

// An httpConn is what HTTP keeps about one connection. It is the context of
// the connection's requests as well, which saves one.
type httpConn struct {
	context.Context
	c *conn
	s *Server

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

// A requestLine is what the report says of a request. It is kept apart from the
// request, which handlers may change.
type requestLine struct {
	method, target string
	cut            int // how many bytes of the target are not kept
}

func (l requestLine) String() string {
	target := strconv.Quote(l.target)
	if l.cut > 0 {
		target += fmt.Sprintf("… (%d bytes)", len(l.target)+l.cut)
	}
	return l.method + " " + target
}

// maxTarget is how many bytes of a request's target are kept and reported, and
// maxMethod how many of its method. A client may send as much of either as
// http.Server.MaxHeaderBytes, 1 MB by default.
const (
	maxTarget = 200
	maxMethod = 40
)

func lineOf(r *http.Request) requestLine {
	l := requestLine{method: r.Method, target: r.RequestURI}
	if len(l.method) <= maxMethod && len(l.target) <= maxTarget {
		return l
	}
	// Copies: the line outlives its request, on an idle connection.
	method := l.method[:min(len(l.method), maxMethod)]
	target := l.target[:min(len(l.target), maxTarget)]
	return requestLine{strings.Clone(method), strings.Clone(target), len(l.target) - len(target)}
}

// method returns the method of the request of HTTP/1 that is in its handler.
func (h *httpConn) method() string {
	if h == nil || !h.c.has(flagInHandler) {
		return ""
	}
	return h.last.method
}

// requests returns the requests in progress.
func (h *httpConn) requests() []requestLine {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := slices.Collect(maps.Values(h.streams))
	// The handler may return at any moment, and the next request come: it
	// finds flagReported, for that was set while the handler had not returned.
	if h.c.set(flagReported)&flagInHandler != 0 {
		lines = append(lines, h.last)
	}
	h.c.unset(flagReported)
	return lines
}

// enter and leave are for a request of HTTP/1, begin and end for those of HTTP/2.
// A mutex in enter would be two locked operations more in every request, for a
// report that hardly ever comes.
func (h *httpConn) enter(r *http.Request) {
	if h.c.has(flagReported) {
		h.mu.Lock() // waits until the last one was read
		defer h.mu.Unlock()
	}
	h.last = lineOf(r)
	h.c.set(flagInHandler)
}

func (h *httpConn) leave() {
	h.c.unset(flagInHandler)
	h.c.m.changed(h.c, connActive) // the response may be out, and the request's body to come
}

func (h *httpConn) begin(r *http.Request) {
	h.s.streamCount.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams = make(map[*http.Request]requestLine)
	}
	h.streams[r] = lineOf(r)
}

func (h *httpConn) end(r *http.Request) {
	h.mu.Lock()
	delete(h.streams, r)
	h.mu.Unlock()
	h.s.streamCount.Add(-1)
}

type httpConnKey struct{}

// Value returns what the context of a request on h holds.
func (h *httpConn) Value(key any) any {
	switch key {
	case httpConnKey{}:
		return h
	case http.ServerContextKey:
		return h.s.Server
	}
	return h.Context.Value(key)
}

// drainingKey is the context key under which a server keeps the channel that
// Draining hands out.
type drainingKey struct{}

// Draining returns the channel that is closed once the server that ctx came
// from has begun to shut down: at the first moment of it, ShutdownDelay
// included. A handler with a long answer (server-sent events, a long poll)
// selects on it and ends early.
//
// For a context that no server of this package made it returns nil, which
// blocks for ever in a select: a handler written for graceful works elsewhere
// too.
func Draining(ctx context.Context) <-chan struct{} {
	ch, _ := ctx.Value(drainingKey{}).(<-chan struct{})
	return ch
}

func (s *Server) baseContext(l net.Listener) context.Context {
	ctx := context.Background()
	if s.Server.BaseContext != nil {
		original := l
		if tl, ok := l.(*listener); ok {
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
	c := connOf(nc)
	h := &httpConn{Context: ctx, c: c, s: s}
	c.http.Store(h)
	ctx = h
	if s.Server.ConnContext != nil {
		ctx = s.Server.ConnContext(h, c.raw)
	}
	if t, ok := nc.(interface{ setContext(context.Context) }); ok {
		t.setContext(ctx)
	}
	return ctx
}

// connOf returns the tracked connection that nc, which net/http was given, is.
func connOf(nc net.Conn) *conn {
	switch t := nc.(type) {
	case *tcpConn:
		return &t.conn
	case *fullTLSConn:
		return &t.conn
	}
	return trackedConn(nc)
}

// connState hears from net/http what a connection does.
func (s *Server) connState(nc net.Conn, state http.ConnState) {
	if c := connOf(nc); c != nil { // else of a TLSNextProto function that made a connection up
		s.moved(c, state)
	}
}

// moved hears that c has changed its state.
func (s *Server) moved(c *conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		if !c.multiplexes() {
			c.h1.request(c)
		}
		c.setState(connActive)
	case http.StateIdle:
		if !c.multiplexes() {
			if c.h1.last {
				c.h1.endLast(c) // does not return; hooks hear of the end next, as after net/http's own close
			}
			c.h1.response()
		}
	case http.StateClosed:
		if c.load().state() == connHijacked {
			return // for hooks that was the end
		}
	}
	for _, hook := range [...]func(net.Conn, http.ConnState){s.Server.ConnState, s.ConnState} {
		if hook != nil {
			hook(c.raw, state)
		}
	}
	// What lets the manager end the connection, or forget it, comes last.
	switch state {
	case http.StateIdle:
		c.setState(connIdle)
	case http.StateHijacked:
		if h := c.http.Load(); h != nil && s.side.inflight != nil {
			s.side.inflight.hijacked(h)
		}
		c.setState(connHijacked)
	case http.StateClosed:
		c.gone()
	}
}

// httpProtocol is a Server as its lifecycle sees it.
type httpProtocol Server

func (p *httpProtocol) server() *Server { return (*Server)(p) }

func (p *httpProtocol) logf(format string, args ...any) { p.server().logf(format, args...) }

func (p *httpProtocol) config() lifeConfig {
	s := p.server()
	rules := drainRules{grace: s.idleGrace(), receiving: receivingLimit, waitHijacked: s.WaitHijacked}
	if s.side.http2 == http2Program {
		rules.openToStreams = s.countUntold
	}
	return lifeConfig{delay: s.ShutdownDelay, timeout: s.Timeout, rules: rules}
}

func (p *httpProtocol) beforeShutdown() bool {
	return p.BeforeShutdown == nil || p.BeforeShutdown()
}

func (p *httpProtocol) interrupted(yes bool) { p.Interrupted = yes }

func (p *httpProtocol) beginDelay() { p.server().health().Shutdown() }

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

func (p *httpProtocol) beginDrain() {}

// runHooks runs the functions that were registered for the shutdown, those of the
// caller's http.Server with its Shutdown, which has nothing else to do, since it
// serves nothing.
func (p *httpProtocol) runHooks() {
	s := p.server()
	_ = s.prepare() // if nothing was served; what is wrong, Serve will say
	s.side.mu.Lock()
	s.side.drainBegun = true
	hooks := s.side.onShutdown
	s.side.onShutdown = nil
	var told chan struct{}
	if s.side.http2 == http2Program && s.side.untold > 0 {
		// The program's HTTP/2 is registered there as well, and sends its final
		// GOAWAY at once.
		told = make(chan struct{})
		s.side.allTold = told
	}
	s.side.mu.Unlock()
	if s.ShutdownInitiated != nil {
		go s.ShutdownInitiated()
	}
	for _, f := range hooks {
		go f()
	}
	if told == nil {
		s.shutUser()
		return
	}
	go func() {
		select {
		case <-told:
		case <-s.life.killing:
		case <-s.life.stopped:
		}
		s.shutUser()
	}()
}

// shutUser calls Shutdown of the caller's http.Server without waiting for its
// connections, unless it was called before.
func (s *Server) shutUser() {
	s.side.mu.Lock()
	ran := s.side.ranHooks
	s.side.ranHooks = true
	s.side.mu.Unlock()
	if ran {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Server.Shutdown(ctx)
}

// countUntold counts the HTTP/2 connections that may still get a stream.
func (s *Server) countUntold(by int) {
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	s.side.untold += by
	if s.side.untold == 0 && s.side.allTold != nil {
		close(s.side.allTold)
		s.side.allTold = nil
	}
}

func (p *httpProtocol) beginKill() {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	for _, cancel := range s.side.cancels {
		cancel(ErrKilled)
	}
}

func (p *httpProtocol) requests(c *conn) []requestLine {
	if h := c.http.Load(); h != nil {
		return h.requests()
	}
	return nil
}

func (p *httpProtocol) streams() int { return int(p.streamCount.Load()) }

// finish lets go of the base contexts, but for hijacked connections' sake: the
// handlers of those that were left may still use them.
func (p *httpProtocol) finish(m *manager, left int) string {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	if left == 0 {
		for _, cancel := range s.side.cancels {
			cancel(http.ErrServerClosed)
		}
	}
	switch {
	case m.goAways.Load() > 0:
		return "GOAWAY in two steps"
	case s.side.http2 == http2Blind:
		return "as by the program's own HTTP/2"
	}
	return ""
}

// defaultIdleGrace is the quiet window where none is configured.
const defaultIdleGrace = 500 * time.Millisecond

// maxGrace is as good as for ever, and can be added to a time.
const maxGrace = 1 << 61

func (s *Server) idleGrace() time.Duration { return graceOf(s.IdleGrace) }

// graceOf returns what a field IdleGrace means.
func graceOf(field time.Duration) time.Duration {
	switch {
	case field == 0:
		return defaultIdleGrace
	case field < 0:
		return 0
	}
	return min(field, maxGrace)
}

func (s *Server) logf(format string, args ...any) {
	logTo(s.LogFunc, s.Logger, format, args...)
}
