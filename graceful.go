package graceful

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// ErrNotTCP says that a connection is not a TCP connection.
//
// Deprecated: this package never returns it. It is kept for programs written for
// tylerstillwater/graceful, whose listeners returned it if they could not set TCP
// keep-alive. Here, other connections are served without keep-alive.
var ErrNotTCP = errors.New("graceful: only TCP connections have keep-alive")

// A Server is an http.Server that stops without losing a request. The package
// comment describes the steps of its shutdown.
//
// It is used like an http.Server:
//
//	srv := &graceful.Server{
//		Server:  &http.Server{Addr: ":8080", Handler: handler},
//		Timeout: 10 * time.Second,
//	}
//	err := srv.ListenAndServe() // nil after SIGTERM and an orderly end
//
// The fields, and those of the http.Server, must not be changed once the Server
// serves. The methods may be called concurrently. A Server serves once: a stopped
// Server cannot serve again.
type Server struct {
	// Server configures HTTP; nil means a zero http.Server. It is read when
	// serving begins and not changed, and does not serve itself. Its hooks run
	// as under net/http, with the connections that the listener returned. Calling
	// Shutdown on it begins this Server's shutdown and does not wait for it.
	// Calling Close on it has no effect: call Close on this Server.
	*http.Server

	// Timeout is how long the shutdown waits for requests in progress once
	// draining has begun, before it closes the connections that are left. 0 waits
	// without limit.
	Timeout time.Duration

	// ListenLimit is how many connections may be open at once, over all
	// listeners of the Server, hijacked ones included. 0 means no limit. On systems
	// other than Linux, where the accept queue cannot be inspected, the drain may
	// accept one more connection, which is served when there is a slot.
	ListenLimit int

	// TCPKeepAlive is the period between TCP keep-alive probes on
	// connections of listeners that the Server opens itself. 0 means package
	// net's default (15 s), a negative value no probes.
	TCPKeepAlive time.Duration

	// ConnState is called, if not nil, after the http.Server's own ConnState hook,
	// with the same arguments.
	//
	// Deprecated: use the http.Server's. It is kept for programs written for
	// tylerstillwater/graceful.
	ConnState func(net.Conn, http.ConnState)

	// BeforeShutdown is called, if not nil, before a signal or Stop begins the
	// shutdown. If it returns false, no shutdown begins. It may block; the server
	// serves meanwhile. It is not called for Shutdown, Close and the end of
	// Start's context, which cannot be refused.
	BeforeShutdown func() bool

	// ShutdownInitiated is called, if not nil, on a goroutine of its own when the
	// listeners are closed, at the latest a second after draining began. With
	// ShutdownSendRetryAfter it is called when draining begins. The functions of
	// RegisterOnShutdown are called at the same time.
	ShutdownInitiated func()

	// NoSignalHandling keeps the Server from catching signals.
	NoSignalHandling bool

	// Signals are the signals that begin the shutdown and, the second time, kill it.
	// nil means SIGINT and SIGTERM; some container images stop with SIGQUIT, for
	// example. An empty slice has the effect of NoSignalHandling. SIGINT and SIGHUP
	// are not caught if they were ignored when the process started.
	Signals []os.Signal

	// OnReport is called, if not nil, with the final Report, before the channel of
	// StopChan is closed and Serve returns, also if nothing was served. It runs on a
	// goroutine of its own; the shutdown waits for it, but for a second at most.
	OnReport func(Report)

	// Slog is where the shutdown is logged, in records of one line with attributes.
	// docs/logging.md lists them. Killed connections are warnings.
	Slog *slog.Logger

	// LogFunc is used if Slog is nil.
	LogFunc func(format string, args ...interface{})

	// Logger is used if Slog and LogFunc are nil. If all three are nil, nothing is
	// logged. The package's functions, such as Run, use DefaultLogger.
	Logger *log.Logger

	// Interrupted is true once a shutdown has begun, and while BeforeShutdown
	// runs. Reading it while another goroutine may begin a shutdown is a data race.
	//
	// Deprecated: use Phase. It is kept for programs written for
	// tylerstillwater/graceful.
	Interrupted bool

	// ShutdownDelay is how long connections are accepted and served as before
	// after the shutdown has begun. During the delay ReadyHandler answers 503 and
	// HTTP/1 responses say "Connection: close". It should be as long as a load
	// balancer needs to notice: the number of probes that have to fail, times
	// their interval. 0 means that draining begins at once.
	ShutdownDelay time.Duration

	// IdleGrace is how long a connection must have been quiet before it is
	// closed during the drain: its quiet period. Requests of clients that pause
	// for less are answered. It is also how long, on Linux, a listening socket
	// waits for TCP handshakes under way. 0 means 500 ms. A negative value means
	// that quiet connections are closed at once.
	IdleGrace time.Duration

	// ShutdownSendRetryAfter, if positive, keeps the listeners open during the drain
	// until the requests in progress have been answered. New requests are refused
	// meanwhile with 503, Connection: close, and this duration as the Retry-After
	// header (in whole seconds, rounded up). Requests for which DefaultExempt
	// reports true are served. Requests for which DefaultLongRunning reports true
	// do not keep the listeners open. This is for clients that know a single
	// address, whose connections would be refused otherwise. It works as
	// --shutdown-send-retry-after of the Kubernetes apiserver. 0 closes the
	// listeners when draining begins.
	ShutdownSendRetryAfter time.Duration

	// Health, if not nil, has the checks of which ReadyHandler reports the
	// result. Its Handler is put around the http.Server's handler: requests that
	// come before the application is ready are answered with 503 and Retry-After.
	Health *Health

	// Process, if not nil, connects the Server to its service manager (systemd), and
	// to the successor that replaces it in place. nil means that it does neither.
	Process *Process

	// WaitHijacked makes the drain wait for hijacked connections (WebSockets) as
	// it does for requests, and close them after Timeout. If it is false,
	// hijacked connections are left open, as by net/http.
	WaitHijacked bool

	// ReusePort lets another process of the same user bind the same port
	// (SO_REUSEPORT), so that a successor can start before this server stops. It
	// applies to listeners that the Server opens itself. On Linux new connections
	// go to the successor as soon as draining begins. On Windows the methods that
	// listen return an error.
	ReusePort bool

	// OwnsListener says that no other process shares the sockets that are given
	// to Serve: neither the process that handed them down, nor a successor that
	// inherits them otherwise than by Upgrade. On Linux the drain can then make the kernel refuse new
	// connections before it empties the accept queue, so that no client is reset.
	// On a shared socket that would affect the other processes. The Server
	// knows that it owns the sockets that it or Listen has opened.
	OwnsListener bool

	life lifecycle
	side httpSide

	// streamCount is how many HTTP/2 requests are in progress.
	streamCount atomic.Int64
}

// Run serves handler on the TCP address addr until SIGINT or SIGTERM, and
// returns when the shutdown is over. timeout is how long the shutdown waits for
// requests in progress; 0 waits without limit. Run logs to standard error. On an
// error it logs the error and exits the process with status 1; RunWithErr returns
// the error instead.
func Run(addr string, timeout time.Duration, handler http.Handler) {
	srv := standard(&http.Server{Addr: addr, Handler: handler}, timeout)
	if err := srv.ListenAndServe(); err != nil {
		srv.Logger.Print(err)
		os.Exit(1)
	}
}

// RunWithErr is like Run, but returns the error. It returns nil after a shutdown
// by a signal.
func RunWithErr(addr string, timeout time.Duration, handler http.Handler) error {
	return standard(&http.Server{Addr: addr, Handler: handler}, timeout).ListenAndServe()
}

// RunContext is like RunWithErr, but the end of ctx begins the shutdown as well.
// It returns an error at once if ctx has ended already. Its error wraps ErrKilled if
// connections were killed, because of timeout or a second signal.
func RunContext(ctx context.Context, addr string, timeout time.Duration, handler http.Handler) error {
	srv := standard(&http.Server{Addr: addr, Handler: handler}, timeout)
	if _, err := srv.Start(ctx); err != nil {
		return err
	}
	return srv.Wait()
}

// ListenAndServe is like server.ListenAndServe, with a graceful shutdown on
// SIGINT and SIGTERM. timeout and the log are as with Run, errors as with
// Server.Serve.
func ListenAndServe(server *http.Server, timeout time.Duration) error {
	return standard(server, timeout).ListenAndServe()
}

// ListenAndServeTLS is like server.ListenAndServeTLS, with a graceful shutdown on
// SIGINT and SIGTERM. timeout and the log are as with Run, errors as with
// Server.Serve.
func ListenAndServeTLS(server *http.Server, certFile, keyFile string, timeout time.Duration) error {
	return standard(server, timeout).ListenAndServeTLS(certFile, keyFile)
}

// Serve is like server.Serve, with a graceful shutdown on SIGINT and SIGTERM.
// timeout and the log are as with Run, errors and the requirements on l as with
// Server.Serve.
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

// TLSConfigHasHTTP2Enabled reports whether t offers HTTP/2 to clients. It reports
// false if t is nil.
//
// Deprecated: look for "h2" in t.NextProtos. It is kept for programs written for
// tylerstillwater/graceful.
func TLSConfigHasHTTP2Enabled(t *tls.Config) bool {
	return t != nil && slices.Contains(t.NextProtos, "h2")
}

// ListenAndServe listens on the TCP address Addr (":http" if empty) and serves
// as Serve does.
func (s *Server) ListenAndServe() error {
	l, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// Serve serves the connections that l accepts, and returns when the shutdown is
// over. It returns nil, or the error of l's Accept if that began the shutdown. An
// invalid configuration is returned as an error at once; in all other cases Serve
// closes l.
//
// Serve may be called concurrently for several listeners. They share one
// shutdown, which the failure of one of them begins. If the Server has not served
// before Stop, Shutdown or Close was called, Serve returns nil once that shutdown
// is over. If it has served and is stopped, Serve returns an error that wraps
// http.ErrServerClosed.
//
// What happens to clients that have connected, and have not been accepted when
// draining begins, depends on the listener:
//
//   - A socket from Listen, or any socket with OwnsListener, belongs to this
//     process alone. On Linux it admits no new client from then on, its accept
//     queue is emptied, and then it is closed. No client is lost.
//   - Another *net.TCPListener or *net.UnixListener may be shared with another
//     process. Its accept queue is emptied, and it is closed as soon as the queue
//     is empty, after a second at the latest. A client that connects between the
//     two is reset.
//   - A wrapper around one of these is treated the same if it has a SetDeadline
//     method, or an Unwrap method that returns the wrapped listener. Without
//     Unwrap, a listener from Listen below it is not recognised. Without a
//     SyscallConn method as well, and on systems other than Linux, the queue is
//     taken to be empty when Accept has timed out three times in a row, each after
//     a millisecond.
//   - Any other listener is closed at once, and the clients in its accept queue
//     are lost. This concerns tls.NewListener (use ServeTLS instead) and wrappers
//     that have neither SetDeadline nor Unwrap. A log line says so when serving
//     begins.
func (s *Server) Serve(l net.Listener) error {
	if t, ok := l.(*tlsListener); ok && t != nil {
		return s.serve(t.Listener, t.config)
	}
	return s.serve(l, nil)
}

// Start listens on the TCP address Addr (":http" if empty) and serves in the
// background until ctx ends, a signal comes, or Stop, Shutdown or Close is
// called. The address is bound when Start returns, so that "address in use" is
// Start's error. stopped is closed when the shutdown is over; Wait then returns the
// error with which it ended, and Report says what happened.
//
// If the http.Server's TLSConfig has a certificate, or a function that gets
// one, Start serves TLS, and an empty Addr means ":https".
func (s *Server) Start(ctx context.Context) (stopped <-chan struct{}, err error) {
	tl, err := s.bind(ctx)
	if err != nil {
		return nil, err
	}
	forget := context.AfterFunc(ctx, func() {
		s.life.begin("the context of Start: "+firstLine(context.Cause(ctx)), nil)
	})
	go func() {
		defer forget() // ctx may outlive the server
		s.run(tl)
	}()
	return s.life.stopped, nil
}

// Wait blocks until the shutdown is over, also if it is called before Start. It
// returns the error of Accept that began the shutdown, an error that wraps
// ErrKilled if connections were killed, the first error of closing a listener, or
// nil. If there are several, they are joined with errors.Join. Further calls return
// the same.
func (s *Server) Wait() error {
	s.init()
	<-s.life.stopped
	s.life.mu.Lock()
	failure := s.life.failure
	s.life.mu.Unlock()
	outcome := s.life.outcome()
	if failure == nil {
		return outcome
	}
	return errors.Join(failure, outcome)
}

// ListenAndServeTLS listens on the TCP address Addr (":https" if empty) and
// serves as ServeTLS does. The files are loaded before the address is bound.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.listenAndServeTLS(config)
}

// ListenAndServeTLSConfig listens on the TCP address Addr (":https" if empty)
// and serves TLS with config, which must have a certificate or a function that
// gets one, as Serve does. The http.Server's own TLSConfig is not used. config is
// not changed: HTTP/2 and HTTP/1.1 are added to the NextProtos of a copy, as far
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
// listener to pass to Serve, for programs that need the listener itself. The
// files are as with ServeTLS. If Serve is not called, the caller must close the
// listener.
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

// ServeTLS is like Serve, with TLS over the connections that l accepts. certFile
// holds the certificate, followed by any intermediate certificates, and keyFile
// its key, both as PEM. Both may be empty if the http.Server's TLSConfig has a
// certificate. If they cannot be loaded, ServeTLS returns an error and does not
// close l.
func (s *Server) ServeTLS(l net.Listener, certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.serve(l, config)
}

// Addrs returns the addresses of the listeners that the Server serves or has
// served, in the order in which serving began. If Addr has the port 0, Addrs has
// the port that was chosen.
func (s *Server) Addrs() []net.Addr { return s.life.allAddrs() }

// Stop begins the shutdown as a signal does, after BeforeShutdown, and returns at
// once. When the shutdown is over, the channel of StopChan is closed and Serve
// returns. timeout replaces the Timeout field; 0 waits without limit for requests
// in progress. Stop panics if timeout is negative.
//
// If a shutdown is under way already, Stop can only shorten it: if less than
// timeout is left of its drain, nothing changes, otherwise timeout is left. Stop
// does not shorten ShutdownDelay: during the delay, timeout counts from the end of
// the delay. Close and a second signal end the delay. After a Stop before Serve,
// every Serve returns without serving.
func (s *Server) Stop(timeout time.Duration) {
	if timeout < 0 {
		panic("graceful: Stop with a negative timeout")
	}
	s.init()
	go s.life.tryBegin("Stop", &timeout)
}

// StopChan returns a channel that is closed when the shutdown is over. It returns
// the same channel every time.
func (s *Server) StopChan() <-chan struct{} {
	s.init()
	return s.life.stopped
}

// Shutdown begins the shutdown, without calling BeforeShutdown, and returns when
// it is over. If ctx ends first, Shutdown closes the connections that are left and
// returns ctx's error. If connections were killed because of Timeout, a call of
// Close or a second signal, the error wraps ErrKilled and the report lists them.
// Otherwise Shutdown returns nil, or the first error of closing a listener.
//
// Further calls, also concurrent ones, wait for the same shutdown, each no
// longer than its ctx. Shutdown returns as soon as the last connection is closed;
// unlike http.Server.Shutdown it does not poll.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.life.begin("Shutdown", nil)
	return s.life.wait(ctx)
}

// Close closes all listeners and connections and returns when that is done.
// Hijacked connections are closed with WaitHijacked only. Close does not wait for
// handlers; the contexts of their requests are cancelled with the cause
// ErrKilled. It returns the first error of closing a listener. Further calls
// return the same.
func (s *Server) Close() error {
	s.init()
	s.life.kill("Close")
	<-s.life.stopped
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	return s.life.closeErr
}

// RegisterOnShutdown registers a function that the shutdown calls once, on a
// goroutine of its own, at the same time as ShutdownInitiated. If that time has
// passed, f is called at once.
//
// Functions that were registered with the inner http.Server are called at the
// same time, unless the program has called the inner http.Server's own Shutdown,
// which begins this Server's shutdown and calls them itself. Calling that Shutdown
// a second time, or once they have run, runs them again, as under net/http.
//
// golang.org/x/net/http2.ConfigureServer registers such a function, which sends a
// final GOAWAY on its HTTP/2 connections. After ConfigureServer, the functions of
// the inner http.Server are therefore called when every HTTP/2 connection was
// told to leave, which takes two seconds at most.
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

// SetKeepAlivesEnabled is like http.Server.SetKeepAlivesEnabled. Disabling
// keep-alives closes idle connections at once, and drops requests that are on
// their way to the server. A shutdown does not need it.
func (s *Server) SetKeepAlivesEnabled(v bool) {
	s.side.mu.Lock()
	s.side.keepAlives = &v
	hs := s.side.hs
	s.side.mu.Unlock()
	if hs != nil {
		hs.SetKeepAlivesEnabled(v) // without mu: it closes connections, which may block
	}
}

// Draining returns a channel that is closed when draining begins, which is after
// ShutdownDelay. It returns the same channel every time.
func (s *Server) Draining() <-chan struct{} {
	s.init()
	return s.life.draining
}

// ShutdownBegun returns a channel that is closed at the first moment of the
// shutdown, before ShutdownDelay. It returns the same channel every time.
func (s *Server) ShutdownBegun() <-chan struct{} {
	s.init()
	return s.life.begun
}

// Phase returns the phase of the shutdown, PhaseServing before it.
func (s *Server) Phase() Phase { return s.life.Phase() }

// Stats counts the open connections. Its cost is proportional to their number.
func (s *Server) Stats() Stats {
	s.init()
	return s.life.stats()
}

// Report returns the report of the shutdown: zero before it, up to now while it
// runs, and final once it is over.
func (s *Server) Report() Report {
	s.init()
	return s.life.currentReport()
}

// ReadyHandler returns a handler for readiness probes, which this Server or
// another server may serve. It answers 200 while the Server serves, and 503 once
// the shutdown has begun. If Health is not nil, it is Health.ReadyHandler.
func (s *Server) ReadyHandler() http.Handler {
	s.init()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.health().ReadyHandler().ServeHTTP(w, r)
	})
}

// bind listens on Addr and adds the listener, for Start. The caller calls run.
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

// listen listens on the TCP address Addr, after it has checked the configuration.
func (s *Server) listen(defaultAddr string) (net.Listener, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.life.refusal(); err == errServed {
		return nil, err // not "address in use", if the socket is not closed yet
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

// open wraps l and adds it to the lifecycle. Once a shutdown has begun, it closes
// l and returns nil with the error for Serve, which is nil if the Server has not
// served.
func (s *Server) open(l net.Listener, config *tls.Config) (*listener, error) {
	if err := s.life.claim(s.Process); err != nil {
		l.Close()
		return nil, err
	}
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
		if isClosed(outer.closed) { // Close did not find served, or closes tl too
			tl.Close()
		}
	}
	tl.original = l
	tl.wrap = func(nc net.Conn) (net.Conn, *conn) { return s.wrap(m, nc, limit, config) }
	tl.declared = s.OwnsListener
	tl.reuse = s.ReusePort
	tl.grace = s.idleGrace()
	if err := s.life.admit(tl); err != nil {
		l.Close()
		return nil, s.refused(err)
	}
	if warning, weak := weakness(below); weak {
		s.log(warning)
	}
	s.life.catch(signalsOf(s.Signals, s.NoSignalHandling))
	s.life.connect(s.Process, func(ctx context.Context) bool { return s.unready(ctx) == "" })
	return tl, nil
}

// refused returns the error for Serve if the lifecycle has refused with err. If
// the Server was stopped before it served, refused waits for the end of that
// shutdown and returns nil.
func (s *Server) refused(err error) error {
	if err == errNotServed {
		<-s.life.stopped
		return nil
	}
	return err
}

// run serves the connections of tl and returns when the shutdown is over.
func (s *Server) run(tl *listener) (err error) {
	served := false
	// A ConnState or ConnContext hook that panics for a new connection does so on
	// this goroutine. The caller may recover; the other connections stay open.
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
		s.life.fail(tl.Addr(), err)
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

// health returns Health, or one without checks if that is nil.
func (s *Server) health() *Health {
	if s.Health != nil {
		return s.Health
	}
	return &s.side.health
}

// A tlsListener is what ListenTLS returns. Server.Serve unwraps it, to run TLS
// over the tracked connection. For other servers it is a TLS listener.
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
