package graceful

import (
	"cmp"
	"context"
	"maps"
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

	// lostSight is set when one of those was hijacked: nobody will tell when
	// it is closed.
	lostSight atomic.Bool

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
