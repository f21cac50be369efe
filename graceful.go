package graceful

import (
	"crypto/tls"
	"errors"
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

	// ShutdownInitiated is called, if not nil, when draining has begun, on a
	// goroutine of its own, as the functions of RegisterOnShutdown are.
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
