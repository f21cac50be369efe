package graceful

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// ErrRequestTimeout is the context.Cause of a request whose deadline, set by
// RequestTimeout or RequestDeadline, has passed. It wraps
// context.DeadlineExceeded. A context that ended for another reason, such as a
// client that has gone away, has another cause.
var ErrRequestTimeout error = fmt.Errorf("graceful: the time for this request is up: %w", context.DeadlineExceeded)

// DeadlineOptions are the fields of RequestTimeout and of RequestDeadline. The
// zero value is ready for use. Fields must not change once Handler has been
// called.
type DeadlineOptions struct {
	// Max is how much time a request has, and the most that a client can ask
	// for. Zero and negative mean one minute.
	Max time.Duration

	// Parameter is the name of the query parameter with which a client may
	// ask for less, in the form of time.ParseDuration. Absent, empty, zero,
	// negative or above Max it means Max. A value that cannot be parsed, such
	// as a number without unit, is answered with 400. If Parameter is empty,
	// there is no such query parameter.
	Parameter string

	// Grace is how long after the end of its context a handler may still
	// answer by itself. Zero and negative mean not at all.
	//
	// A handler under RequestDeadline that reports the timeout to its client
	// needs a Grace, for its connection is closed to it afterwards.
	Grace time.Duration

	// LongRunning reports, before the handler is called, whether a request has
	// no end of its own and so gets no deadline. Nil means that no request is
	// known to be long-running beforehand.
	//
	// Without it, too, the deadline is lifted when the handler hijacks the
	// connection or begins a response of Content-Type text/event-stream. What
	// a request's header says lifts no deadline, since clients choose it: an
	// application that uses DefaultLongRunning here lets them.
	LongRunning func(*http.Request) bool

	// Received returns when a request was received, if a handler outside of
	// this one has noted that. The deadline counts from there. Nil, or a zero
	// time, means when the request came to this handler.
	Received func(*http.Request) time.Time

	// InFlight, if not nil, counts the handlers that RequestTimeout leaves
	// running when it has answered their requests: see InFlight.Handlers.
	// RequestDeadline leaves none and does not use it.
	InFlight *InFlight
}

// RequestDeadline gives every request a deadline, and leaves it to the handler
// to keep it: the request's context ends at the deadline, with the cause
// ErrRequestTimeout, and after Grace also reads of the body and writes of the
// response fail. It needs no goroutine and copies no header, but a handler that
// looks neither at its context nor at its connection can go on for ever;
// RequestTimeout is for those.
//
// The deadline is lifted, from the context and from the connection, when the
// handler hijacks the connection or begins a response of Content-Type
// text/event-stream.
//
// Its fields are those of DeadlineOptions.
type RequestDeadline DeadlineOptions

// Handler returns a handler that serves requests by next, within the deadline.
//
// It moves the write deadline of the connection, over HTTP/2 of the stream;
// with a request body also the read deadline. A Server.WriteTimeout or
// ReadTimeout that is earlier stays in force as far as it can be known, that
// is when the server is in the request's context, as net/http puts it there.
func (d *RequestDeadline) Handler(next http.Handler) http.Handler {
	return &deadlineHandler{
		limit:    newLimit((*DeadlineOptions)(d), next),
		grace:    max(0, d.Grace),
		timedOut: canceledWith(ErrRequestTimeout),
	}
}

type deadlineHandler struct {
	limit
	grace    time.Duration
	timedOut context.Context // see requestContext
}

func (h *deadlineHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now, deadline, ok := h.begin(w, r)
	if !ok {
		return
	}
	x := &deadlineRequest{now: now, r: r}
	x.top = guarded{x, w}
	x.ctx.parent, x.ctx.deadline, x.ctx.timedOut = r.Context(), deadline, h.timedOut
	x.ctx.selfDriven = true
	x.req = *r.WithContext(&x.ctx)
	x.limitConn(deadline.Add(h.grace))
	defer x.end()
	h.next.ServeHTTP(writerLike(&x.top), &x.req)
}

// A deadlineRequest is a request, its context and its writer in one allocation:
// what WithContext returns is copied here, and so never leaves the stack. It
// is not used again: a handler's goroutines may keep any of them.
type deadlineRequest struct {
	now time.Time     // when it came
	r   *http.Request // as it came
	req http.Request  // as the handler sees it
	ctx requestContext
	top guarded

	mu        sync.Mutex // guards what follows
	committed bool       // the status is on its way
	hijacked  bool       // the connection is the handler's
}

// end ends the context, and hands what the handler's request has come to
// have to the request that came.
func (x *deadlineRequest) end() {
	handBack(x.r, &x.req)
	x.ctx.finish(contextOver)
}

// handBack copies what a mux or a parser has noted on a copy of the request r
// to r: outer handlers look for it, and net/http removes the files of a form
// that it finds on its own request.
func handBack(r, copied *http.Request) {
	r.Pattern = copied.Pattern
	r.Form, r.PostForm, r.MultipartForm = copied.Form, copied.PostForm, copied.MultipartForm
}

// limitConn sets the deadlines of the connection to t, but does not put off
// those of the server. net/http takes them away before the next request. Where
// there are none to set, the context has to do.
func (x *deadlineRequest) limitConn(t time.Time) {
	rc := http.NewResponseController(x.top.w)
	write, read := x.serverDeadlines()
	if write.IsZero() || t.Before(write) {
		rc.SetWriteDeadline(t)
	}
	// Without a body the server reads only to learn whether the client is
	// still there, and would take a passed deadline for a client that is not.
	if hasBody(x.r) && (read.IsZero() || t.Before(read)) {
		rc.SetReadDeadline(t)
	}
}

// serverDeadlines returns what net/http has set the connection's deadlines to,
// or nearly so; zero if it has set none.
func (x *deadlineRequest) serverDeadlines() (write, read time.Time) {
	if srv, _ := x.r.Context().Value(http.ServerContextKey).(*http.Server); srv != nil {
		if srv.WriteTimeout > 0 {
			write = x.now.Add(srv.WriteTimeout)
		}
		if srv.ReadTimeout > 0 {
			read = x.now.Add(srv.ReadTimeout)
		}
	}
	return write, read
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// The methods of a gate: all calls pass, and two of them lift the deadline.

func (x *deadlineRequest) header(w http.ResponseWriter) http.Header { return w.Header() }

func (x *deadlineRequest) enter(w http.ResponseWriter, call callKind) verdict {
	x.mu.Lock()
	defer x.mu.Unlock()
	v := judge(call, x.committed, x.hijacked)
	if v != pass || !call.commits() || x.committed {
		return v
	}
	x.committed = true
	if isEventStream(w.Header()) && x.ctx.lift() {
		rc := http.NewResponseController(w)
		write, read := x.serverDeadlines()
		rc.SetWriteDeadline(write)
		if hasBody(x.r) {
			rc.SetReadDeadline(read)
		}
	}
	return v
}

func (x *deadlineRequest) leave(err error) error { return err }

func (x *deadlineRequest) control(w http.ResponseWriter, do func(*http.ResponseController) error) error {
	return do(http.NewResponseController(w))
}

func (x *deadlineRequest) hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := w.(http.Hijacker).Hijack() // takes the connection's deadlines away
	if err == nil {
		x.mu.Lock()
		x.hijacked = true
		x.mu.Unlock()
		x.ctx.lift()
	}
	return conn, buf, err
}

func (x *deadlineRequest) request() *http.Request { return x.r }

// limit is how much time a request has: what RequestTimeout and
// RequestDeadline have in common.
type limit struct {
	max         time.Duration
	parameter   string
	longRunning func(*http.Request) bool // nil: none
	received    func(*http.Request) time.Time
	next        http.Handler
}

func newLimit(o *DeadlineOptions, next http.Handler) limit {
	l := limit{o.Max, o.Parameter, o.LongRunning, o.Received, next}
	if l.max <= 0 {
		l.max = time.Minute
	}
	return l
}

// begin returns when it was called and when r has to be answered. It reports
// false if there is nothing left to do: a request without an end of its own is
// next's alone, and one that asks for nonsense is told so.
func (l *limit) begin(w http.ResponseWriter, r *http.Request) (now, deadline time.Time, ok bool) {
	if l.longRunning != nil && l.longRunning(r) {
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
