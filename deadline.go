package graceful

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// ErrRequestTimeout is the context.Cause of a request whose deadline, set by
// RequestTimeout or RequestDeadline, has passed. A client that has gone away
// leaves another. errors.Is finds context.DeadlineExceeded in it.
var ErrRequestTimeout error = fmt.Errorf("graceful: the time for this request is up: %w", context.DeadlineExceeded)

// RequestDeadline gives every request that is not long-running a deadline,
// and leaves it to the handler to keep it: the request's context ends at the
// deadline, with the cause ErrRequestTimeout, and reads of the body and
// writes of the response that block beyond it fail. It needs no goroutine and
// copies no header, but a handler that looks neither at its context nor at
// its connection can go on for ever; RequestTimeout is for those.
//
// The zero value is ready for use; fields must not change once Handler has
// been called.
type RequestDeadline struct {
	// Max is how much time a request has, and the most that a client can ask
	// for. Zero means one minute.
	Max time.Duration

	// Parameter is the name of the query parameter with which a client may
	// ask for less, in the form of time.ParseDuration. Absent, empty, zero,
	// negative or above Max it means Max; what cannot be parsed, a number
	// without unit included, is answered with 400. Empty: no such parameter.
	Parameter string

	// Grace is how long after the deadline the connection's deadlines are:
	// time for the handler to answer that it had not enough. Zero means 1 s,
	// negative means none.
	Grace time.Duration

	// LongRunning reports whether a request has no end of its own: it gets no
	// deadline. Nil means DefaultLongRunning.
	LongRunning func(*http.Request) bool

	// Received returns when a request was received, if something outside of
	// this handler has noted that; the deadline counts from there. Nil, or a
	// zero time, means when it came to this handler.
	Received func(*http.Request) time.Time
}

// Handler returns a handler that serves requests by next, within the deadline.
//
// It moves the write deadline of the connection, over HTTP/2 of the stream;
// with a request body also the read deadline. A Server.WriteTimeout or
// ReadTimeout that is earlier stays in force as far as it can be known, that
// is when the server is in the request's context, as net/http puts it there.
func (d *RequestDeadline) Handler(next http.Handler) http.Handler {
	h := &deadlineHandler{
		limit: newLimit(d.Max, d.Parameter, d.LongRunning, d.Received, next),
		grace: d.Grace,
	}
	switch {
	case h.grace == 0:
		h.grace = time.Second
	case h.grace < 0:
		h.grace = 0
	}
	return h
}

type deadlineHandler struct {
	limit
	grace time.Duration
}

func (h *deadlineHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now, deadline, ok := h.begin(w, r)
	if !ok {
		return
	}
	h.setConn(w, r, now, deadline.Add(h.grace))
	x := new(deadlineRequest)
	x.ctx.parent, x.ctx.deadline = r.Context(), deadline
	x.req = *r.WithContext(&x.ctx)
	defer x.end(r)
	h.next.ServeHTTP(w, &x.req)
}

// A deadlineRequest is a request and its context in one allocation: what
// WithContext returns is copied here, and so never leaves the stack. It is
// not used again: a handler's goroutines may keep either.
type deadlineRequest struct {
	ctx lazyContext
	req http.Request
}

// end ends the context, and hands what the handler's request has come to
// have to r.
func (x *deadlineRequest) end(r *http.Request) {
	handBack(r, &x.req)
	x.ctx.end()
}

// handBack copies what a mux or a parser has noted on a copy of the request r
// to r: outer handlers look for it, and net/http removes the files of a form
// that it finds on its own request.
func handBack(r, copied *http.Request) {
	r.Pattern = copied.Pattern
	r.Form, r.PostForm, r.MultipartForm = copied.Form, copied.PostForm, copied.MultipartForm
}

// setConn sets the deadlines of the connection, but does not put off those
// of the server. net/http takes them away before the next request. Where
// there are none to set, the context has to do.
func (h *deadlineHandler) setConn(w http.ResponseWriter, r *http.Request, now, t time.Time) {
	srv, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	rc := http.NewResponseController(w)
	if srv == nil || srv.WriteTimeout <= 0 || t.Before(now.Add(srv.WriteTimeout)) {
		rc.SetWriteDeadline(t)
	}
	// Without a body the server reads only to learn whether the client is
	// still there, and would take a passed deadline for a client that is not.
	if r.Body != nil && r.Body != http.NoBody {
		if srv == nil || srv.ReadTimeout <= 0 || t.Before(now.Add(srv.ReadTimeout)) {
			rc.SetReadDeadline(t)
		}
	}
}

// limit is how much time a request has: what RequestTimeout and
// RequestDeadline have in common.
type limit struct {
	max         time.Duration
	parameter   string
	longRunning func(*http.Request) bool
	received    func(*http.Request) time.Time
	next        http.Handler
}

func newLimit(most time.Duration, parameter string, longRunning func(*http.Request) bool, received func(*http.Request) time.Time, next http.Handler) limit {
	if most <= 0 {
		most = time.Minute
	}
	if longRunning == nil {
		longRunning = DefaultLongRunning
	}
	return limit{most, parameter, longRunning, received, next}
}

// begin returns when it was called and when r has to be answered. It reports
// false if there is nothing left to do: a request without an end of its own is
// next's alone, and one that asks for nonsense is told so.
func (l *limit) begin(w http.ResponseWriter, r *http.Request) (now, deadline time.Time, ok bool) {
	if l.longRunning(r) {
		l.next.ServeHTTP(w, r)
		return now, deadline, false
	}
	now = time.Now()
	deadline, err := l.deadline(r, now)
	if err != nil {
		writeError(w, r, http.StatusBadRequest, err.Error())
		return now, deadline, false
	}
	return now, deadline, true
}

// deadline returns when r has to be answered. An error is for the client to
// read.
func (l *limit) deadline(r *http.Request, now time.Time) (time.Time, error) {
	if l.received != nil {
		if t := l.received(r); !t.IsZero() {
			now = t
		}
	}
	d := l.max
	if l.parameter != "" && r.URL.RawQuery != "" {
		s, err := queryValue(r.URL.RawQuery, l.parameter)
		if err == nil && s != "" {
			var asked time.Duration
			if asked, err = time.ParseDuration(s); 0 < asked && asked < d {
				d = asked
			}
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("the query parameter %s must be a duration with its unit, like 1.5s or 300ms", l.parameter)
		}
	}
	return now.Add(d), nil
}

// queryValue returns the first value of name in a query, as url.Values.Get
// would, without parsing the rest of it. Of a pair that is malformed it
// reports an error where url.ParseQuery would drop it.
func queryValue(query, name string) (string, error) {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if key != name {
			if !strings.ContainsAny(key, "%+") {
				continue
			}
			if k, err := url.QueryUnescape(key); err != nil || k != name {
				continue
			}
		}
		return url.QueryUnescape(value)
	}
	return "", nil
}

// A lazyContext is context.WithDeadlineCause(parent, deadline,
// ErrRequestTimeout), made only when somebody asks for more than the
// deadline: most of its price is a timer and four allocations, and many
// handlers never look.
type lazyContext struct {
	parent   context.Context
	deadline time.Time

	// Nil, then lazyEnded or a real context, and that for good once it is
	// one. A real context in place of lazyEnded was cancelled before.
	state atomic.Pointer[realContext]
}

type realContext struct {
	context.Context
	cancel context.CancelFunc
}

// lazyEnded is the state of a context that ended before anybody asked.
var lazyEnded = &realContext{context.Background(), func() {}}

func (c *lazyContext) Deadline() (time.Time, bool) {
	if d, ok := c.parent.Deadline(); ok && d.Before(c.deadline) {
		return d, true
	}
	return c.deadline, true
}

func (c *lazyContext) Done() <-chan struct{} { return c.real().Done() }
func (c *lazyContext) Err() error            { return c.real().Err() }

// Value, too, asks the real context: by a key of its own the context package
// finds there what it needs for context.Cause and for attaching a child
// without a goroutine.
func (c *lazyContext) Value(key any) any { return c.real().Value(key) }

func (c *lazyContext) real() context.Context {
	for {
		was := c.state.Load()
		if was != nil && was != lazyEnded {
			return was.Context
		}
		ctx, cancel := context.WithDeadlineCause(c.parent, c.deadline, ErrRequestTimeout)
		if was == lazyEnded {
			cancel()
		}
		if c.state.CompareAndSwap(was, &realContext{ctx, cancel}) {
			return ctx
		}
		cancel() // another goroutine was first, or the request has just ended
	}
}

// end cancels the context: the request is over.
func (c *lazyContext) end() {
	if !c.state.CompareAndSwap(nil, lazyEnded) {
		c.state.Load().cancel()
	}
}
