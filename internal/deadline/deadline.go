// Package deadline gives an HTTP request a deadline: the context, the
// ResponseWriter and the body through which a handler is cut off, and the end
// of a response whose handler has run out of time. What a deadline is and how
// a timeout is answered are the caller's to say.
//
// A [Timeout] keeps the deadline even if the handler does not; a [Deadline]
// leaves that to the handler. Both lift it when the handler hijacks the
// connection or begins a response of Content-Type text/event-stream.
package deadline

import (
	"context"
	"log"
	"net"
	"net/http"
	"time"
)

// A Config says what a Timeout or a Deadline does.
type Config struct {
	Next  http.Handler
	Grace time.Duration // after the end of the context; negative means none
	Cause error         // context.Cause of a request whose deadline has passed

	// Answer answers a request that has timed out; accept is the request's
	// Accept header. A Deadline needs none of these.
	Answer func(w http.ResponseWriter, accept []string)

	// Outlived, if not nil, is called with 1 when a handler goes on after its
	// request has timed out, and with -1 when that handler returns.
	Outlived func(n int)

	// LatePanic is called on the handler's goroutine when a handler panics
	// after its request has timed out.
	LatePanic func(l Late, value any)

	// Socket returns the connection at the bottom of one that was hijacked.
	Socket func(net.Conn) net.Conn

	timedOut context.Context // see requestContext
}

func (c Config) prepared() Config {
	c.Grace = max(0, c.Grace)
	c.timedOut = canceledWith(c.Cause)
	return c
}

// Late is what was noted of a request before its handler started.
type Late struct {
	Context                    context.Context // of the request as it came
	Method, Target, RemoteAddr string
}

// A Timeout serves requests within a deadline that it keeps by itself.
type Timeout struct{ cfg Config }

// NewTimeout returns a Timeout.
func NewTimeout(c Config) *Timeout { return &Timeout{c.prepared()} }

// Serve serves r, at the time now, until the deadline.
func (t *Timeout) Serve(w http.ResponseWriter, r *http.Request, now, deadline time.Time) {
	x := newExchange(&t.cfg, w, r, deadline)
	defer x.ctx.requestOver()
	go x.run()
	if x.wait(deadline.Sub(now)) {
		x.complete()
	} else {
		x.timeOut()
	}
}

// A Deadline serves requests with a deadline that the handler has to keep.
type Deadline struct{ cfg Config }

// NewDeadline returns a Deadline.
func NewDeadline(c Config) *Deadline { return &Deadline{c.prepared()} }

// Serve serves r, which came at the time now, and lets its context end at the
// deadline.
func (d *Deadline) Serve(w http.ResponseWriter, r *http.Request, now, deadline time.Time) {
	x := &deadlineRequest{now: now, r: r, major: r.ProtoMajor, connEnd: deadline.Add(d.cfg.Grace)}
	x.top = guarded{x, w}
	x.ctx.parent, x.ctx.deadline, x.ctx.timedOut = r.Context(), deadline, d.cfg.timedOut
	x.ctx.selfDriven = true
	x.req = *r.WithContext(&x.ctx)
	x.limitConn(false)
	defer x.end()
	d.cfg.Next.ServeHTTP(writerLike(&x.top), &x.req)
}

// HandBack copies what a mux or a parser has noted on a copy of the request r
// to r: outer handlers look for it, and net/http removes the files of a form
// that it finds on its own request.
func HandBack(r, copied *http.Request) {
	r.Pattern = copied.Pattern
	r.Form, r.PostForm, r.MultipartForm = copied.Form, copied.PostForm, copied.MultipartForm
}

// Logf returns the function with which net/http logs: to the ErrorLog of the
// server in ctx, if there is one.
func Logf(ctx context.Context) func(format string, args ...any) {
	if srv, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
		return srv.ErrorLog.Printf
	}
	return log.Printf
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }
