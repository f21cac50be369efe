// Package deadline gives HTTP requests a deadline. It has the context, the
// ResponseWriter and the request body that cut a handler off, and ends the
// response of a handler that has run out of time. The caller decides when the
// deadline is and how a request that has timed out is answered.
//
// A [Timeout] enforces the deadline even if the handler does not watch its
// context; a [Deadline] leaves the deadline to the handler. Both lift it when the
// handler hijacks the connection or begins a response of Content-Type
// text/event-stream.
package deadline

import (
	"context"
	"log"
	"net"
	"net/http"
	"time"
)

// A Config configures a Timeout or a Deadline.
type Config struct {
	Next  http.Handler
	Grace time.Duration // how long the handler may write after the end of its context; negative means 0
	Cause error         // context.Cause of a request whose deadline has passed

	// The following are for a Timeout only.

	// Answer answers a request that has timed out. accept is the request's
	// Accept header.
	Answer func(w http.ResponseWriter, accept []string)

	// Outlived, if not nil, is called with 1 when a request times out while its
	// handler runs, and with -1 when that handler returns.
	Outlived func(n int)

	// LatePanic, if not nil, is called on the handler's goroutine when a handler
	// panics after its request has timed out.
	LatePanic func(l Late, value any)

	// Socket returns the innermost connection below a hijacked one.
	Socket func(net.Conn) net.Conn

	timedOut context.Context // see requestContext
}

func (c Config) prepared() Config {
	c.Grace = max(0, c.Grace)
	c.timedOut = canceledWith(c.Cause)
	return c
}

// Late describes a request, as it was before its handler started.
type Late struct {
	Context                    context.Context // of the outer handler's request
	Method, Target, RemoteAddr string
}

// A Timeout serves requests with a deadline that it enforces.
type Timeout struct{ cfg Config }

// NewTimeout returns a Timeout.
func NewTimeout(c Config) *Timeout { return &Timeout{c.prepared()} }

// Serve calls the handler for r and returns when the handler has returned or the
// request has timed out. now is the current time.
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

// A Deadline serves requests with a deadline that the handler has to observe.
type Deadline struct{ cfg Config }

// NewDeadline returns a Deadline.
func NewDeadline(c Config) *Deadline { return &Deadline{c.prepared()} }

// Serve calls the handler for r and returns when the handler does. The context of
// the handler's request ends at the deadline. now is the current time.
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

// HandBack copies the pattern and the forms that were set on a copy of the request
// r to r. Outer handlers read them, and net/http removes the files of the multipart
// form of its own request.
func HandBack(r, copied *http.Request) {
	r.Pattern = copied.Pattern
	r.Form, r.PostForm, r.MultipartForm = copied.Form, copied.PostForm, copied.MultipartForm
}

// Logf returns the function with which net/http logs: Printf of the ErrorLog of
// the http.Server in ctx, or log.Printf if there is none.
func Logf(ctx context.Context) func(format string, args ...any) {
	if srv, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
		return srv.ErrorLog.Printf
	}
	return log.Printf
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }
