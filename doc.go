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
// serves until SIGTERM or SIGINT, answers what has reached it, and returns. A
// [Server] has the choices; a [Listener] does the same for protocols that are
// not HTTP; a [Group] runs several of them, with workers, in one process.
//
// # Shutdown sequence
//
//  1. Serving.
//  2. Delaying, for Server.ShutdownDelay: the ready handler answers 503, the
//     channel of [Draining] is closed, responses of HTTP/1 say "Connection:
//     close", and everything is served as before. Load balancers notice.
//  3. Draining. The socket admits no new client, and is closed when the
//     connections that were in its queue have been accepted. Each connection is
//     closed as soon as closing it cannot drop a request: after a response that
//     says close, or when nothing has come for Server.IdleGrace.
//  4. Killing, if Server.Timeout has passed: the contexts of requests in
//     progress end with the cause [ErrKilled], and what is left is closed.
//  5. Stopped. Serve returns; [Server.Report] says what was waited for, how
//     each connection ended, and by name whose request was cut off.
//
// The shutdown is over with its last response, over TLS as well; it does not
// poll. Responses say "Connection: close" whatever the handler has set.
//
// # Signals
//
// SIGINT and SIGTERM begin the shutdown. Signals within 250 ms of the first are
// the same keypress: terminals and supervisors both send one. The second kills.
// The third finds the runtime's default, which ends the process. Nothing stays
// registered when the shutdown is over.
//
// SIGINT that was ignored when the process started stays ignored: a shell's
// background job is not stopped by a Ctrl-C that is meant for another. Of an
// ignored SIGTERM Go's runtime does not tell (see os/signal); it is caught.
//
// # HTTP/2 and hijacked connections
//
// HTTP/2 connections are told to leave in two steps (RFC 9113, section 6.8): a
// GOAWAY that asks for no more streams, and, when the client has acknowledged it
// and the last stream has ended, one that names that stream. So no stream crosses
// the GOAWAY. That goes for HTTP/2 of net/http, over TLS and in the clear, and of
// golang.org/x/net/http2.ConfigureServer.
//
// Hijacked connections (WebSockets) are left alone, as by net/http, or waited
// for with Server.WaitHijacked. Their handlers can listen on [Draining]. HTTP/2 of
// golang.org/x/net/http2/h2c.NewHandler is hijacked as well, and gets no GOAWAY:
// http.Server.Protocols.SetUnencryptedHTTP2 has it served by net/http.
//
// # Differences from http.Server
//
// Serve returns when the shutdown is over, with nil. The connection that a
// handler hijacks is not a *net.TCPConn or *tls.Conn, but has its methods, and a
// NetConn method that returns it; hooks see the original. Of the inner
// http.Server, SetKeepAlivesEnabled and Close have no effect, since it serves
// nothing: call those of Server. Requests that were pipelined behind a response
// that says close are the client's to repeat (RFC 9112, section 9.3.2). Below the
// TLS of a listener of the caller's own, half a TLS record can't be seen: such a
// connection counts as quiet.
//
// One loss is inherent in HTTP/1.1: a client that has paused for longer than
// IdleGrace may speak at the very moment at which its connection is closed.
package graceful
