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

// An httpSide is the part of a Server that is specific to HTTP.
type httpSide struct {
	once sync.Once // prepare

	// Immutable after prepare.
	err        error
	handler    http.Handler // the caller's, and what Health and ShutdownSendRetryAfter put around it
	inflight   *InFlight    // nil without ShutdownSendRetryAfter
	hs         *http.Server // serves; made from the caller's, which only configures
	limit      *limiter     // nil without ListenLimit
	http2      http2Kind
	http2Clear bool  // a connection without TLS may turn out to be HTTP/2
	http2Err   error // what net/http's ServeTLS would return

	health Health // in the place of a nil Server.Health

	mu            sync.Mutex // guards what follows
	drainBegun    bool
	ranHooks      bool // the http.Server's own Shutdown has run its functions
	keepAlives    *bool
	onShutdown    []func()
	cancels       []context.CancelCauseFunc // of the base contexts
	openToStreams int                       // how many HTTP/2 connections may still get a stream
	noneOpen      chan struct{}             // closed when openToStreams is 0; nil unless runHooks waits
}

// An http2Kind is the implementation that serves HTTP/2.
type http2Kind int

const (
	// http2Off: HTTP/2 is not served.
	http2Off http2Kind = iota

	// http2Native: net/http.
	http2Native

	// http2Program: an implementation of the program's own that takes any net.Conn,
	// such as golang.org/x/net/http2.
	http2Program

	// http2Blind: an implementation of the program's own that takes a *tls.Conn
	// only, so that this package does not see its frames.
	http2Blind
)

// init initializes the lifecycle. Methods that may be called before Serve call it.
func (s *Server) init() { s.life.init((*httpProtocol)(s)) }

// prepare checks the configuration and makes the http.Server that serves, once.
//
// That is a copy of the caller's http.Server. net/http's Shutdown drops requests
// that it has just read, so Shutdown is never called on the copy. It is called on
// the caller's http.Server, which serves nothing, because only Shutdown calls the
// functions that were registered with it.
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

// check returns an error if a field has an invalid value.
func (s *Server) check() error {
	return cmp.Or(
		notNegative("Server.Timeout", s.Timeout),
		notNegative("Server.ShutdownDelay", s.ShutdownDelay),
		notNegative("Server.ShutdownSendRetryAfter", s.ShutdownSendRetryAfter),
		catchable("Server.Signals", s.Signals),
		s.Process.check(signalsOf(s.Signals, s.NoSignalHandling)),
		notNegative("Server.ListenLimit", s.ListenLimit),
	)
}

// compose returns the caller's handler, wrapped as Health and ShutdownSendRetryAfter require.
func (s *Server) compose() http.Handler {
	h := s.Server.Handler
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.DefaultServeMux.ServeHTTP(w, r) // read each time, since it may be replaced
		})
	}
	if s.Health != nil {
		h = s.Health.Handler(h)
	}
	if s.ShutdownSendRetryAfter > 0 {
		s.side.inflight = &InFlight{RetryAfter: s.ShutdownSendRetryAfter, ReleaseWindow: -1}
		h = s.side.inflight.serverHandler(h)
	}
	return h
}

// configure makes the http.Server that serves, and determines the http2Kind.
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
		// net/http configures HTTP/2 in ServeTLS, before it opens the files. So with
		// a file that does not exist, ServeTLS returns either an error of the
		// configuration or that of the file.
		const noFile = "\x00"
		var noSuchFile *fs.PathError
		if err := hs.ServeTLS(nil, noFile, noFile); !errors.As(err, &noSuchFile) {
			if s.side.http2Err = err; wantsHTTP2(user, false) {
				return err
			}
			kind = http2Off
			hs = s.newHTTPServer(kind)
		} else if hs.TLSNextProto[protoHTTP2] == nil {
			kind = http2Off // disabled by GODEBUG=http2server=0 or a build tag
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

// newHTTPServer returns a copy of the caller's http.Server with this package's
// handler and hooks.
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
		// The copy's Serve is called, also for TLS. Serve sets up HTTP/2 only if
		// NextProtos has it.
		hs.TLSConfig = hs.TLSConfig.Clone()
		if kind == http2Native && !slices.Contains(hs.TLSConfig.NextProtos, protoHTTP2) {
			hs.TLSConfig.NextProtos = append(slices.Clone(hs.TLSConfig.NextProtos), protoHTTP2)
		}
	}
	return hs
}

// copyServer returns an http.Server with the exported fields of from, including
// those of later Go versions. An http.Server cannot be assigned, since it has
// mutexes.
//
// With Go 1.27 golang.org/x/net/http2 stores its settings in an unexported field.
// If that is set, all fields are copied; the mutexes are not in use, because from
// does not serve.
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

// withProtocols returns a copy of config whose NextProtos has the protocols that
// the http.Server serves, as in its ServeTLS.
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

// wrap tracks a connection, with TLS over it if config is not nil.
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

// followsHTTP2 reports whether HTTP/2 is served so that the connection sees its
// frames.
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
		h.leave() // not deferred, since a panic closes the connection
	default:
		h.begin(r)
		defer h.end(r)
		r2 := s.withServer(r)
		defer func() {
			if f := r2.MultipartForm; f != nil {
				f.RemoveAll() // Go 1.27's HTTP/2 removes the files of its own Request only
			}
		}()
		s.side.handler.ServeHTTP(w, r2)
	}
}

// withServer returns r with the caller's http.Server under http.ServerContextKey.
// golang.org/x/net/http2, and net/http's HTTP/2 up to Go 1.26, have put the copy
// that serves there.
func (s *Server) withServer(r *http.Request) *http.Request {
	if http2KeepsContext && s.side.http2 == http2Native {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, s.Server))
}

// An httpConn has the data of HTTP about one connection. It is also the context of
// the connection's requests, which saves an allocation.
type httpConn struct {
	context.Context
	c *conn
	s *Server

	mu      sync.Mutex                    // guards streams; requests holds it while it reads last
	streams map[*http.Request]requestLine // the HTTP/2 requests in progress

	// last is the HTTP/1 request that last reached the handler. It is written by
	// the connection's goroutine while flagInHandler is not set, and not changed
	// while it is set.
	last requestLine

	// counted is where InFlight counts the HTTP/1 request in progress for
	// Server.ShutdownSendRetryAfter; nil if it is not counted.
	counted atomic.Pointer[counter.Shard]
}

// A requestLine is a request's line in the report. It is copied from the request,
// which handlers may change.
type requestLine struct {
	method, target string
	cut            int // how many bytes of the target were cut off
}

func (l requestLine) String() string {
	target := strconv.Quote(l.target)
	if l.cut > 0 {
		target += fmt.Sprintf("… (%d bytes)", len(l.target)+l.cut)
	}
	return l.method + " " + target
}

// path returns the target without its query, which may hold secrets. It is cut off
// where the target is, and is not quoted, because slog's handlers do that.
func (l requestLine) path() string {
	if i := strings.IndexAny(l.target, "?#"); i >= 0 {
		return l.target[:i]
	}
	return l.target
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
	// Cloned, since an idle connection keeps the line after its request.
	method := l.method[:min(len(l.method), maxMethod)]
	target := l.target[:min(len(l.target), maxTarget)]
	return requestLine{strings.Clone(method), strings.Clone(target), len(l.target) - len(target)}
}

// method returns the method of the HTTP/1 request whose handler runs, or "".
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
	// The handler may return meanwhile, and the next request come. enter then finds
	// flagReported, which was set before the handler returned, and waits for mu.
	if h.c.set(flagReported)&flagInHandler != 0 {
		lines = append(lines, h.last)
	}
	h.c.unset(flagReported)
	return lines
}

// enter and leave record an HTTP/1 request, begin and end an HTTP/2 request.
// enter takes the mutex only while a report is made, since a mutex would add two
// atomic operations to every request.
func (h *httpConn) enter(r *http.Request) {
	if h.c.has(flagReported) {
		h.mu.Lock() // waits until requests has read last
		defer h.mu.Unlock()
	}
	h.last = lineOf(r)
	h.c.set(flagInHandler)
}

func (h *httpConn) leave() {
	h.c.unset(flagInHandler)
	h.c.m.changed(h.c, connActive) // the rest of the request's body may not have come: see drain.until
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

// Value implements context.Context. It has the caller's http.Server under
// http.ServerContextKey.
func (h *httpConn) Value(key any) any {
	switch key {
	case httpConnKey{}:
		return h
	case http.ServerContextKey:
		return h.s.Server
	}
	return h.Context.Value(key)
}

// momentsKey is the context key for a value of type moments.
type momentsKey struct{}

// moments are the channels that ShutdownBegun and Draining return. No values are
// sent on them.
type moments struct {
	begun    <-chan struct{} // closed when the shutdown begins
	draining <-chan struct{} // closed when draining begins
}

func momentsOf(ctx context.Context) moments {
	m, _ := ctx.Value(momentsKey{}).(moments)
	return m
}

func withMoments(ctx context.Context, m moments) context.Context {
	return context.WithValue(ctx, momentsKey{}, m)
}

// Draining returns a channel that is closed when the Server, or the Group, that ctx
// comes from begins to drain, which is after ShutdownDelay. A handler with a long
// response (server-sent events, a long poll, a WebSocket) can select on it and end
// early: its client then connects again, and no longer to this process.
//
// A handler's context comes from its Server, and so do the contexts of the Group's
// workers and those of Group.Context. For other contexts Draining returns nil,
// which blocks for ever in a select. So a handler that uses Draining works with
// other servers as well.
func Draining(ctx context.Context) <-chan struct{} { return momentsOf(ctx).draining }

// ShutdownBegun is like Draining, but its channel is closed at the first moment of
// the shutdown, before ShutdownDelay. New clients are still accepted and served
// during the delay, so a handler that ended its response then would see its client
// again at once. ShutdownBegun is for workers that take their work from outside
// the process, and for probes of the program's own.
func ShutdownBegun(ctx context.Context) <-chan struct{} { return momentsOf(ctx).begun }

func (s *Server) baseContext(l net.Listener) context.Context {
	ctx := context.Background()
	if s.Server.BaseContext != nil {
		original := l
		if tl, ok := l.(*listener); ok {
			original = tl.original
		}
		if ctx = s.Server.BaseContext(original); ctx == nil {
			return nil // net/http panics with a message of its own
		}
	}
	ctx = withMoments(ctx, s.life.moments())
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

// connOf returns the tracked connection of nc, which net/http serves.
func connOf(nc net.Conn) *conn {
	switch t := nc.(type) {
	case *tcpConn:
		return &t.conn
	case *fullTLSConn:
		return &t.conn
	}
	return trackedConn(nc)
}

// connState is the ConnState hook of the http.Server that serves.
func (s *Server) connState(nc net.Conn, state http.ConnState) {
	if c := connOf(nc); c != nil { // nil for a connection that a TLSNextProto function has made
		s.stateChanged(c, state)
	}
}

// stateChanged handles c's change to state, and calls the caller's hooks.
func (s *Server) stateChanged(c *conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		if !c.multiplexes() {
			c.h1.request(c)
		}
		c.setState(connActive)
	case http.StateIdle:
		if !c.multiplexes() {
			if c.h1.last {
				c.h1.endLast(c) // does not return; StateClosed follows, as after net/http's own close
			}
			c.h1.response()
		}
	case http.StateClosed:
		if c.load().state() == connHijacked {
			return // StateHijacked is the last state that hooks see
		}
	}
	for _, hook := range [...]func(net.Conn, http.ConnState){s.Server.ConnState, s.ConnState} {
		if hook != nil {
			hook(c.raw, state)
		}
	}
	// After the hooks, since the manager may end or forget the connection now.
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

func (p *httpProtocol) log(e logEvent) { p.server().log(e) }

func (p *httpProtocol) reported(r Report) { callReportHook(p.OnReport, r) }

func (p *httpProtocol) config() lifeConfig {
	s := p.server()
	rules := drainRules{grace: s.idleGrace(), receiving: receivingLimit, waitHijacked: s.WaitHijacked}
	if s.side.http2 == http2Program {
		rules.openToStreams = s.countOpenToStreams
	}
	return lifeConfig{delay: s.ShutdownDelay, timeout: s.Timeout, rules: rules}
}

func (p *httpProtocol) beforeShutdown() bool {
	return p.BeforeShutdown == nil || p.BeforeShutdown()
}

func (p *httpProtocol) interrupted(yes bool) { p.Interrupted = yes }

func (p *httpProtocol) beginDelay() { p.server().health().Shutdown() }

// finishRequests makes the handler refuse new requests, if ShutdownSendRetryAfter is
// set. The channel is closed when those in progress are answered or ctx ends.
func (p *httpProtocol) finishRequests(ctx context.Context) <-chan struct{} {
	f := p.side.inflight
	if f == nil || p.life.handedOver.Load() {
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

// runHooks calls the functions that were registered for the shutdown. Those of the
// caller's http.Server are called by its Shutdown, which does nothing else, since
// that http.Server serves nothing.
func (p *httpProtocol) runHooks() {
	s := p.server()
	_ = s.prepare() // needed if nothing was served; Serve returns the error
	s.side.mu.Lock()
	s.side.drainBegun = true
	hooks := s.side.onShutdown
	s.side.onShutdown = nil
	var noneOpen chan struct{}
	if s.side.http2 == http2Program && s.side.openToStreams > 0 {
		// The program's HTTP/2 has registered a function there that sends the final
		// GOAWAY at once.
		noneOpen = make(chan struct{})
		s.side.noneOpen = noneOpen
	}
	s.side.mu.Unlock()
	if s.ShutdownInitiated != nil {
		go s.ShutdownInitiated()
	}
	for _, f := range hooks {
		go f()
	}
	if noneOpen == nil {
		s.shutdownUser()
		return
	}
	go func() {
		select {
		case <-noneOpen:
		case <-s.life.killing:
		case <-s.life.stopped:
		}
		s.shutdownUser()
	}()
}

// shutdownUser calls Shutdown of the caller's http.Server without waiting for its
// connections, unless Shutdown was called on it before.
func (s *Server) shutdownUser() {
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

// countOpenToStreams adds by to the number of HTTP/2 connections that may still get
// a stream. It is drainRules.openToStreams.
func (s *Server) countOpenToStreams(by int) {
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	s.side.openToStreams += by
	if s.side.openToStreams == 0 && s.side.noneOpen != nil {
		close(s.side.noneOpen)
		s.side.noneOpen = nil
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

// finish cancels the base contexts, unless hijacked connections were left open,
// whose handlers may still use them.
func (p *httpProtocol) finish(m *manager, left int) HTTP2Farewell {
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
		return HTTP2TwoSteps
	case s.side.http2 == http2Blind:
		return HTTP2Program
	}
	return HTTP2None
}

// defaultIdleGrace is the quiet period if IdleGrace is 0.
const defaultIdleGrace = 500 * time.Millisecond

// maxGrace bounds IdleGrace, so that it can be added to a time without overflow.
const maxGrace = 1 << 61

func (s *Server) idleGrace() time.Duration { return graceOf(s.IdleGrace) }

// graceOf returns the quiet period for the value of a field IdleGrace.
func graceOf(field time.Duration) time.Duration {
	switch {
	case field == 0:
		return defaultIdleGrace
	case field < 0:
		return 0
	}
	return min(field, maxGrace)
}

func (s *Server) log(e logEvent) { logSink{s.Slog, s.LogFunc, s.Logger}.log(e) }
