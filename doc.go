// Package graceful provides HTTP servers, and servers of any other protocol,
// that stop without losing a request. It is a drop-in replacement for
// http.Server, whose own Shutdown drops requests that have reached it: those
// half read, those still in the kernel, those on their way on a kept-alive
// connection.
//
//	func main() {
//		http.HandleFunc("/", hello)
//		graceful.Run(":8080", 10*time.Second, nil)
//	}
//
// serves until SIGTERM or SIGINT, answers the requests that have reached it, and
// returns. A [Server] has all options; a [Listener] does the same for protocols
// other than HTTP; a [Group] runs several servers and workers in one process.
//
// # Shutdown sequence
//
//  1. Serving.
//  2. Delaying, for Server.ShutdownDelay: the channel of [ShutdownBegun] is
//     closed, the ready handler answers 503, HTTP/1 responses say
//     "Connection: close", and everything is served as before, until load
//     balancers have noticed.
//  3. Draining. The channel of [Draining] is closed. The socket admits no new
//     connections. It is closed when those in its accept queue have been accepted.
//     Each connection is closed as soon as
//     closing it cannot drop a request: after a response that says close, or when
//     it has been quiet for Server.IdleGrace.
//  4. Killing, if Server.Timeout has passed: the contexts of requests in
//     progress end with the cause [ErrKilled], and the connections that are left
//     are closed.
//  5. Stopped. Serve returns. [Server.Report] says what the shutdown waited for,
//     how many connections ended in which way, and which requests were cut off.
//
// The shutdown ends with the last response, over TLS too; nothing is polled.
// "Connection: close" is put into the header that is sent, whatever the handler
// has set, and not into the handler's header map.
//
// # Signals
//
// SIGINT and SIGTERM begin the shutdown. A second signal kills. Signals within
// 250 ms of the first count as the same one, since a Ctrl-C often reaches a
// process twice: from the terminal and from a supervisor. A third signal has its
// default effect: the process exits. No signal handler stays registered when the
// shutdown is over.
//
// SIGINT that was ignored when the process started stays ignored, so that Ctrl-C
// does not stop the background jobs of a shell. SIGTERM is always caught: Go's
// runtime does not tell whether it was ignored (see os/signal).
//
// # HTTP/2 and hijacked connections
//
// HTTP/2 connections get a GOAWAY in two steps (RFC 9113, section 6.8). The first
// asks the client to open no more streams. The second names the last stream; it
// is sent when the client has acknowledged the first and no stream is open. So no
// stream is lost that crosses a GOAWAY on the wire. This holds for net/http's
// HTTP/2, over TLS and in the clear, and for that of
// golang.org/x/net/http2.ConfigureServer.
//
// Hijacked connections (WebSockets) are left open, as by net/http, or waited for
// with Server.WaitHijacked. Their handlers can select on [Draining].
// golang.org/x/net/http2/h2c.NewHandler hijacks the connections on which it serves
// HTTP/2: they get no GOAWAY, and are waited for with WaitHijacked only. Use
// http.Server.Protocols.SetUnencryptedHTTP2 instead.
//
// # Differences from http.Server
//
//   - Serve returns when the shutdown is over, and returns nil, not
//     http.ErrServerClosed.
//   - The connection that a handler hijacks is a wrapper. It is not a *net.TCPConn
//     or *tls.Conn, but has the same methods, and a NetConn method that returns
//     the connection below. Hooks get the connection that the listener returned.
//   - The inner http.Server is configuration and serves nothing. Calling its
//     Shutdown begins the shutdown; calling its Close or SetKeepAlivesEnabled has
//     no effect. Call the methods of Server.
//   - Requests that were pipelined behind a response that says close are not
//     served; the client has to repeat them (RFC 9112, section 9.3.2).
//   - Below the TLS of the caller's own listener, half a TLS record is not seen:
//     such a connection counts as quiet.
//
// One loss is inherent in HTTP/1.1: a client that has paused for longer than
// IdleGrace may send a request at the moment when its connection is closed.
package graceful
