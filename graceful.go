package graceful

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// ErrNotTCP is returned where only TCP connections will do.
//
// It is kept for programs written for tylerstillwater/graceful, which returned
// it from listeners that were to set TCP keep-alive. Nothing here returns it:
// a connection that isn't TCP is served without keep-alive.
var ErrNotTCP = errors.New("graceful: only TCP connections have keep-alive")

// A Server is an http.Server that stops without losing a request. The package
// comment says in which steps.
//
// It may be used in the place of an http.Server:
//
//	srv := &graceful.Server{
//		Server:  &http.Server{Addr: ":8080", Handler: handler},
//		Timeout: 10 * time.Second,
//	}
//	err := srv.ListenAndServe() // nil after SIGTERM and an orderly end
//
// The fields, and those of the http.Server, must not be changed once it
// serves. A Server serves once: after its end there is no second life.
type Server struct {
	// Server is the configuration of HTTP; nil means a zero one. It is read
	// when serving begins and not changed. Its hooks run as under net/http,
	// and see the connections that the listener produced. Its own Shutdown
	// begins the shutdown as that of this type does, and doesn't wait for it.
	// Its own Close is not heard of: call that of this type.
	*http.Server

	// Timeout is how long the shutdown waits for requests in progress once
	// draining has begun, before it kills what is left. 0 waits for them
	// without end.
	Timeout time.Duration

	// ListenLimit is how many connections may be open at once, over all
	// listeners of the Server. 0 means no limit. A *tls.Conn of the caller's
	// own listener gives its place back when it is hijacked. Once draining has
	// begun, one more may be held unserved until there is a place: where the
	// accept queue can't be looked into (other systems than Linux).
	ListenLimit int

	// TCPKeepAlive is the period between TCP keep-alive probes on
	// connections of listeners that the Server opens itself. 0 means package
	// net's default (15 s), negative none.
	TCPKeepAlive time.Duration

	// ConnState is called after the http.Server's own hook of that name, if
	// not nil, and as that one is.
	ConnState func(net.Conn, http.ConnState)

	// BeforeShutdown is asked, if not nil, when a signal or Stop is about to
	// begin the shutdown. It may take its time: the server serves on. If it
	// returns false nothing happens. Shutdown, Close and the end of Start's
	// context do not ask.
	BeforeShutdown func() bool

	// ShutdownInitiated is called, if not nil, once the listeners are closed, a
	// second after draining began at the latest, on a goroutine of its own, as the
	// functions of RegisterOnShutdown are. With RetryAfter it is called when
	// draining begins.
	ShutdownInitiated func()

	// NoSignalHandling leaves SIGINT and SIGTERM alone.
	NoSignalHandling bool

	// Logger is where the shutdown is reported. nil means nowhere, but for
	// the functions of this package, which log to standard error.
	Logger *log.Logger

	// LogFunc takes Logger's place if it is not nil.
	LogFunc func(format string, args ...interface{})

	// Interrupted is true once a shutdown has begun. It is kept for programs
	// written for tylerstillwater/graceful, and must not be read while
	// another goroutine may begin one; Phase may.
	Interrupted bool

	// ShutdownDelay is how long the server goes on serving as before after
	// the shutdown has begun, while ReadyHandler answers 503 and responses
	// of HTTP/1 say "Connection: close": the time that a load balancer needs
	// to notice, which is how many checks have to fail, times their
	// interval. 0 means not at all.
	ShutdownDelay time.Duration

	// IdleGrace is how long a connection must have been quiet before it is
	// closed during the drain, and a listening socket before its queue is
	// taken to be empty. It protects clients who pause for less between two
	// requests. 0 means 500 ms, negative none.
	IdleGrace time.Duration

	// RetryAfter, if positive, makes the drain keep the listeners open until
	// the requests in progress have been answered. New ones are refused
	// meanwhile with 503, this time in Retry-After (whole seconds, rounded
	// up) and Connection: close, but for those of which DefaultExempt holds;
	// those of which DefaultLongRunning holds are not waited for with that.
	// It is for clients that know a single address: without it they are
	// refused a connection. The Kubernetes apiserver calls this
	// --shutdown-send-retry-after. 0 closes the listeners first.
	RetryAfter time.Duration

	// Health, if not nil, is what ReadyHandler answers by, beside the
	// shutdown. Its Handler is put around the http.Server's: requests that
	// come before the application is ready get 503 and Retry-After.
	Health *Health

	// WaitHijacked makes the drain wait for hijacked connections (WebSockets)
	// as it does for requests, until Timeout, and then closes them. Without
	// it they are left alone, as by net/http.
	//
	// It does not see *tls.Conn connections that the caller's own listener
	// produced, once they are hijacked: those are always left alone.
	WaitHijacked bool

	// ReusePort lets another process of the same user bind the same port
	// (SO_REUSEPORT), so that a successor can begin before this server
	// stops. It applies to listeners that the Server opens itself. On Linux
	// new connections go to the successor from the drain's first moment on.
	// It is an error on Windows.
	ReusePort bool

	// OwnsListener says that no other process shares the sockets that are
	// handed to Serve: neither the one that handed them down, nor a
	// successor that inherits them. On Linux they may then be shut in a way
	// that loses nobody, but which a process sharing them would feel too.
	// What the Server or Listen has opened is known to be its own.
	OwnsListener bool

	life lifecycle
	side httpSide

	// streamCount is how many HTTP/2 requests are in progress.
	streamCount atomic.Int64
}

// Run serves handler on the TCP address addr until SIGINT or SIGTERM, and
// returns when the shutdown is over. timeout is how long requests in progress
// are waited for; 0 waits without end. It logs to standard error. If it can't
// serve, it logs why and ends the process with status 1: see RunWithErr.
func Run(addr string, timeout time.Duration, handler http.Handler) {
	srv := standard(&http.Server{Addr: addr, Handler: handler}, timeout)
	if err := srv.ListenAndServe(); err != nil {
		srv.logf("%v", err)
		os.Exit(1)
	}
}

// RunWithErr is Run, but returns the error.
func RunWithErr(addr string, timeout time.Duration, handler http.Handler) error {
	return standard(&http.Server{Addr: addr, Handler: handler}, timeout).ListenAndServe()
}

// ListenAndServe is server.ListenAndServe with a graceful shutdown, for which
// timeout and the log are as with Run.
func ListenAndServe(server *http.Server, timeout time.Duration) error {
	return standard(server, timeout).ListenAndServe()
}

// ListenAndServeTLS is server.ListenAndServeTLS with a graceful shutdown, for
// which timeout and the log are as with Run.
func ListenAndServeTLS(server *http.Server, certFile, keyFile string, timeout time.Duration) error {
	return standard(server, timeout).ListenAndServeTLS(certFile, keyFile)
}

// Serve is server.Serve with a graceful shutdown, for which timeout and the
// log are as with Run.
func Serve(server *http.Server, l net.Listener, timeout time.Duration) error {
	return standard(server, timeout).Serve(l)
}

// standard returns the Server that the functions of this package use.
func standard(server *http.Server, timeout time.Duration) *Server {
	return &Server{
		Server:       server,
		Timeout:      timeout,
		TCPKeepAlive: 3 * time.Minute, // as tylerstillwater/graceful's
		Logger:       DefaultLogger(),
	}
}

// DefaultLogger returns the logger of the functions of this package. It writes
// to standard error.
func DefaultLogger() *log.Logger { return log.New(os.Stderr, "[graceful] ", 0) }

// TLSConfigHasHTTP2Enabled reports whether t offers HTTP/2 to clients. A nil
// one does not.
func TLSConfigHasHTTP2Enabled(t *tls.Config) bool {
	return t != nil && slices.Contains(t.NextProtos, "h2")
}

// ListenAndServe listens on the TCP address Addr (":http" if empty) and calls
// Serve.
func (s *Server) ListenAndServe() error {
	l, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// Serve serves the connections that l accepts, and returns when the shutdown
// is over: nil if it was asked for, the error of l's Accept if that is what
// began it. Serve closes l, but for an error of the configuration.
//
// It may be called for several listeners at once: they are drained as one, and
// if one of them fails, all are. If Stop, Shutdown or Close was called before,
// Serve returns nil at once; when the server has served and was stopped, an
// error that wraps http.ErrServerClosed.
//
// What a listener can do decides how much of the promise is kept for clients that
// have connected and have not been accepted when draining begins:
//
//   - A socket of Listen's is this process's alone. On Linux it admits no client
//     from that moment on, and is closed when its queue is empty. So is any other
//     socket with OwnsListener.
//   - A *net.TCPListener or *net.UnixListener from elsewhere may be shared with
//     another process. Its queue is emptied, and it is closed at the first moment
//     at which the queue is empty, after a second at the latest. A client that
//     connects in between is reset.
//   - So it is with a wrapper around one of these that has a SetDeadline method, or
//     an Unwrap method that returns what it wraps: without Unwrap the wrapper is
//     not known to be this process's alone, and where it has no SyscallConn method
//     either (as everywhere but on Linux) its queue is empty when Accept has waited
//     in vain for some milliseconds.
//   - Any other listener is closed at once, and clients in its queue are lost:
//     tls.NewListener's (prefer ServeTLS), or a wrapper that has neither SetDeadline
//     nor Unwrap. The log says so when serving begins.
func (s *Server) Serve(l net.Listener) error {
	if t, ok := l.(*tlsListener); ok && t != nil {
		return s.serve(t.Listener, t.config)
	}
	return s.serve(l, nil)
}

// Start listens on the TCP address Addr and serves in the background until ctx
// ends, a signal comes or one of the stopping methods is called. It has bound
// the address when it returns: an address in use is its error. stopped is
// closed when the shutdown is over; Report says what happened.
//
// If the http.Server's TLSConfig has a certificate, or a function that gets
// one, Start serves TLS, with ":https" for an empty Addr.
func (s *Server) Start(ctx context.Context) (stopped <-chan struct{}, err error) {
	tl, err := s.bind(ctx)
	if err != nil {
		return nil, err
	}
	forget := context.AfterFunc(ctx, func() {
		s.life.order(fmt.Sprintf("the context of Start: %v", context.Cause(ctx)), nil)
	})
	go func() {
		defer forget() // ctx may outlive the server
		if err := s.run(tl); err != nil {
			s.logf("%v", err)
		}
	}()
	return s.life.stopped, nil
}

// ListenAndServeTLS listens on the TCP address Addr (":https" if empty) and
// calls ServeTLS.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.listenAndServeTLS(config)
}

// ListenAndServeTLSConfig listens on the TCP address Addr (":https" if empty)
// and serves TLS with config, in which there must be a certificate or a
// function that gets one. The http.Server's own TLSConfig is not used. config
// is not changed: HTTP/2 and HTTP/1.1 are added to a copy's NextProtos, as far
// as the http.Server's Protocols allow.
func (s *Server) ListenAndServeTLSConfig(config *tls.Config) error {
	if config == nil {
		return errors.New("graceful: ListenAndServeTLSConfig with a nil config")
	}
	if !hasCertificate(config) {
		return errors.New("graceful: the TLS config has neither a certificate nor a function that gets one")
	}
	if err := s.prepare(); err != nil {
		return err
	}
	return s.listenAndServeTLS(s.withProtocols(config))
}

// ListenTLS listens on the TCP address Addr (":https" if empty) and returns a
// listener to pass to Serve, for those who need the listener itself. The files
// are as with ServeTLS. If Serve is never called, it must be closed.
func (s *Server) ListenTLS(certFile, keyFile string) (net.Listener, error) {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	l, err := s.listen(":https")
	if err != nil {
		return nil, err
	}
	return &tlsListener{Listener: l, config: config}, nil
}

// ServeTLS is Serve with TLS over the connections that l accepts. certFile and
// keyFile hold the certificate (with the intermediate ones behind it) and its
// key; both may be empty if the http.Server's TLSConfig has a certificate.
func (s *Server) ServeTLS(l net.Listener, certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.serve(l, config)
}

// Addrs returns the addresses of the listeners that the Server serves or has
// served, in the order in which it began to: with ":0" in Addr, here is the
// real port.
func (s *Server) Addrs() []net.Addr { return s.life.allAddrs() }

// Stop begins the shutdown as a signal does and returns at once; StopChan and
// the return of Serve tell of its end. timeout takes the place of the Timeout
// field; 0 waits without end for requests in progress. It panics if timeout is
// negative.
//
// When a shutdown is under way already, Stop can only shorten it: the time that is
// left of its drain becomes timeout, if that is less. It does not shorten
// ShutdownDelay: during the delay, timeout counts from the delay's end. Close and a
// second signal end the delay. Before Serve, Stop makes every later Serve return at
// once.
func (s *Server) Stop(timeout time.Duration) {
	if timeout < 0 {
		panic("graceful: Stop with a negative timeout")
	}
	s.init()
	go s.life.ask("Stop", &timeout)
}

// StopChan returns the channel that is closed when the shutdown is over.
func (s *Server) StopChan() <-chan struct{} {
	s.init()
	return s.life.stopped
}

// Shutdown shuts the server down and returns when that is over. It does not
// ask BeforeShutdown. If ctx ends first, it closes what is left and returns
// ctx's error. If Timeout, another's Close or a second signal ended it, the
// error wraps ErrKilled and the report names what was closed; it is nil if
// nothing had to be.
//
// Further calls, also concurrent ones, wait for the same shutdown, each no
// longer than its ctx. Unlike http.Server's, it returns after Serve's last
// connection is gone, with no more delay than that.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.life.order("Shutdown", nil)
	return s.life.wait(ctx)
}

// Close closes all listeners and connections, hijacked ones only with
// WaitHijacked, and returns when that is done. It does not wait for handlers.
// The request contexts' cause is ErrKilled. It returns the first error of
// closing a listener.
func (s *Server) Close() error {
	s.init()
	s.life.kill("Close")
	<-s.life.stopped
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	return s.life.closeErr
}

// RegisterOnShutdown adds a function to call once in the shutdown, on a goroutine of
// its own, when ShutdownInitiated is called. Those that are registered with the
// http.Server before Serve are called then, too, unless the http.Server's own
// Shutdown has called them: that begins the shutdown. A function that is added
// later is called at once.
//
// Where golang.org/x/net/http2.ConfigureServer has brought its own HTTP/2 (it has
// registered itself as well), those of the http.Server wait until every HTTP/2
// connection was told to leave, for two seconds at the most.
func (s *Server) RegisterOnShutdown(f func()) {
	s.init()
	s.side.mu.Lock()
	late := s.side.drainBegun
	if !late {
		s.side.onShutdown = append(s.side.onShutdown, f)
	}
	s.side.mu.Unlock()
	if late {
		go f()
	}
}

// SetKeepAlivesEnabled is http.Server's. Disabling keep-alives closes idle
// connections on the spot, and with them requests on their way: a shutdown
// doesn't need it.
func (s *Server) SetKeepAlivesEnabled(v bool) {
	s.side.mu.Lock()
	s.side.keepAlives = &v
	hs := s.side.hs
	s.side.mu.Unlock()
	if hs != nil {
		hs.SetKeepAlivesEnabled(v) // without mu: it closes connections, which may block
	}
}

// Phase returns where the server stands.
func (s *Server) Phase() Phase { return s.life.Phase() }

// Stats counts the open connections. It takes time in proportion to them.
func (s *Server) Stats() Stats {
	s.init()
	return s.life.stats()
}

// Report says what the shutdown has done so far; after the end of it, what it
// did.
func (s *Server) Report() Report {
	s.init()
	return s.life.currentReport()
}

// ReadyHandler returns a handler for readiness probes, which this server or
// another may serve: it answers 200 while the server serves, and 503 from the
// first moment of the shutdown on. With Health set it is that one's
// ReadyHandler.
func (s *Server) ReadyHandler() http.Handler {
	s.init()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.health().ReadyHandler().ServeHTTP(w, r)
	})
}

// bind is Start's first half: it listens, and serves nothing yet.
func (s *Server) bind(ctx context.Context) (*listener, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("graceful: Start: %w", err)
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	var config *tls.Config
	addr := ":http"
	if hasCertificate(s.Server.TLSConfig) {
		if s.side.http2Err != nil {
			return nil, s.side.http2Err
		}
		config = s.withProtocols(s.Server.TLSConfig)
		addr = ":https"
	}
	l, err := s.listen(addr)
	if err != nil {
		return nil, err
	}
	tl, err := s.open(l, config)
	if tl == nil && err == nil {
		err = errNotServed
	}
	return tl, err
}

// listen opens the TCP address Addr. Misuse is found before the address is
// bound.
func (s *Server) listen(defaultAddr string) (net.Listener, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.life.refusal(); err == errServed {
		return nil, err // also from a server that has not closed its socket yet
	}
	addr := s.Server.Addr
	if addr == "" {
		addr = defaultAddr
	}
	return listen("tcp", addr, s.ReusePort, s.TCPKeepAlive)
}

// serve is Serve, with TLS if config is not nil.
func (s *Server) serve(l net.Listener, config *tls.Config) error {
	if l == nil {
		return errors.New("graceful: Serve with a nil listener")
	}
	if err := s.prepare(); err != nil {
		return err
	}
	tl, err := s.open(l, config)
	if tl == nil {
		return err
	}
	return s.run(tl)
}

// open lays tracking over l. It returns nil, and has closed l, if there is
// nothing to serve any more; the error is nil too if nothing ever was.
func (s *Server) open(l net.Listener, config *tls.Config) (*listener, error) {
	m, err := s.life.open()
	if err != nil {
		l.Close()
		return nil, s.refused(err)
	}
	below, limit := l, s.side.limit
	outer, _ := l.(*limitListener)
	if limit != nil {
		outer = nil
	}
	if outer != nil {
		below, limit = outer.Listener, outer.limit
	}
	tl := newListener(&s.life, m, below, limit)
	if outer != nil {
		outer.served.Store(tl)
		if isClosed(outer.closed) { // before that was stored
			tl.Close()
		}
	}
	tl.original = l
	tl.wrap = func(nc net.Conn) (net.Conn, *conn) { return s.wrap(m, nc, limit, config) }
	tl.owned = isOwn(below) || s.OwnsListener
	tl.reuse = s.ReusePort
	tl.grace = s.idleGrace()
	if err := s.life.admit(tl); err != nil {
		l.Close()
		return nil, s.refused(err)
	}
	if w := weakness(below); w != "" {
		s.logf("%s", w)
	}
	if !s.NoSignalHandling {
		s.life.catch()
	}
	return tl, nil
}

// refused returns what Serve returns when the lifecycle has refused with err.
func (s *Server) refused(err error) error {
	if err == errNotServed {
		<-s.life.stopped
		return nil
	}
	return err
}

// run serves the connections of tl until the end of everything.
func (s *Server) run(tl *listener) (err error) {
	served := false
	// A hook that panics for a new connection does so here. The caller may
	// recover, and the other connections go on.
	defer func() {
		if s.life.release(tl); !served {
			tl.dropLast()
		}
	}()
	err = s.side.hs.Serve(tl)
	served = true
	expected := s.life.Phase() != PhaseServing
	s.life.release(tl)
	if expected {
		err = nil
	} else {
		s.life.order(fmt.Sprintf("accepting on %s failed: %v", tl.Addr(), err), nil)
	}
	<-s.life.stopped
	return err
}

func (s *Server) listenAndServeTLS(config *tls.Config) error {
	l, err := s.listen(":https")
	if err != nil {
		return err
	}
	return s.serve(l, config)
}

// tlsConfig returns a copy of the http.Server's TLS configuration with the
// certificate from the files, if they are named, and with the protocols.
func (s *Server) tlsConfig(certFile, keyFile string) (*tls.Config, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if s.side.http2Err != nil {
		return nil, s.side.http2Err
	}
	config := s.Server.TLSConfig
	if config == nil {
		config = new(tls.Config)
	}
	config = s.withProtocols(config)
	if hasCertificate(config) && certFile == "" && keyFile == "" {
		return config, nil
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("graceful: certificate %q, key %q: %w", certFile, keyFile, err)
	}
	config.Certificates = []tls.Certificate{cert}
	return config, nil
}

func hasCertificate(c *tls.Config) bool {
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}

// health returns Health, or one that knows of the shutdown only.
func (s *Server) health() *Health {
	if s.Health != nil {
		return s.Health
	}
	return &s.side.health
}

// A tlsListener is what ListenTLS returns. Serve takes it apart and lays TLS
// over the tracked connection; for anybody else it is a TLS listener.
type tlsListener struct {
	net.Listener
	config *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(nc, l.config), nil
}
