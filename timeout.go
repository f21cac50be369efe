package graceful

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful/internal/deadline"
	"github.com/seed-121bbccf/graceful/internal/sock"
)

// RequestTimeout gives every request a deadline, and enforces it even if the
// handler does not watch its context. The handler runs on a goroutine of its own.
// When the deadline passes, the client gets 504. If the response has begun, the
// connection (HTTP/1) or the stream (HTTP/2) is aborted instead, so that the
// client does not take a partial response for a complete one. If the request's
// context has an earlier deadline, that one counts. If that context is cancelled,
// because the client has disconnected or the server kills the request, the
// response is aborted at once.
//
// Unlike http.TimeoutHandler, RequestTimeout does not buffer the response: writes
// go to the client at once. The handler's ResponseWriter implements Flusher,
// Hijacker, io.ReaderFrom, http.Pusher, Unwrap and what http.ResponseController
// uses, if the outer ResponseWriter does. After the deadline the handler's writes
// return http.ErrHandlerTimeout and do not reach the connection. RequestTimeout
// cannot stop the handler, which should watch its context.
//
// The deadline is lifted when the handler hijacks the connection, and when it
// begins a response of Content-Type text/event-stream.
//
// The handler gets a copy of the request, with its own header, URL and form, and
// may change them even after the deadline. If the handler returns in time, its
// changes of these, and the pattern that a mux has matched, are copied to the
// outer handler's request. Otherwise that request stays as it was.
//
// A handler's panic before the deadline reaches net/http with the same value. A
// later panic is logged to the server's ErrorLog.
//
// To free a handler that blocks in a read or write, RequestTimeout sets the
// connection's deadlines. So a ResponseWriter that an outer handler puts around
// net/http's must have an Unwrap method. A Server.WriteTimeout that is shorter
// than Max closes the connection first.
//
// Its fields are those of DeadlineOptions.
type RequestTimeout DeadlineOptions

// Handler returns a handler that calls next for each request, with a deadline.
func (t *RequestTimeout) Handler(next http.Handler) http.Handler {
	c := deadline.Config{
		Next:  next,
		Grace: t.Grace,
		Cause: ErrRequestTimeout,
		Answer: func(w http.ResponseWriter, accept []string) {
			writeErrorAs(w, accept, http.StatusGatewayTimeout, timeoutReason)
		},
		LatePanic: logLatePanic,
		Socket:    sock.Bottom,
	}
	if f := t.InFlight; f != nil {
		c.Outlived = f.outlived.Add
	}
	return &timeoutHandler{newLimit((*DeadlineOptions)(t), next), deadline.NewTimeout(c)}
}

// RequestDeadline gives every request a deadline, which the handler has to observe
// itself. The request's context ends at the deadline, with the cause
// ErrRequestTimeout. Grace later, reads of the body and writes of the response
// fail as well. RequestDeadline is cheaper than RequestTimeout, since it needs no
// goroutine and copies no header. But a handler that uses neither its context nor
// its connection is not interrupted; use RequestTimeout for such handlers.
//
// The deadline is lifted, from the context and from the connection, when the
// handler hijacks the connection or begins a response of Content-Type
// text/event-stream.
//
// Its fields are those of DeadlineOptions.
type RequestDeadline DeadlineOptions

// Handler returns a handler that calls next for each request, with a deadline.
//
// It sets the write deadline of the connection, over HTTP/2 of the stream, and for
// a request with a body also the read deadline. An earlier WriteTimeout or
// ReadTimeout of the http.Server stays in force, if the request's context has the
// server under http.ServerContextKey, as net/http's contexts do.
func (d *RequestDeadline) Handler(next http.Handler) http.Handler {
	return &deadlineHandler{newLimit((*DeadlineOptions)(d), next), deadline.NewDeadline(deadline.Config{
		Next:  next,
		Grace: d.Grace,
		Cause: ErrRequestTimeout,
	})}
}

// DeadlineOptions are the fields of RequestTimeout and of RequestDeadline. The
// zero value is ready for use. Fields must not change once Handler has been
// called.
type DeadlineOptions struct {
	// Max is how much time a request has, and the longest time that a client can
	// ask for. Zero and negative mean one minute.
	Max time.Duration

	// Parameter is the name of a query parameter with which a client can ask for
	// less time than Max, as a duration of time.ParseDuration. If the parameter is
	// absent, empty, zero, negative or above Max, the request has Max. If it
	// cannot be parsed, for example because the unit is missing, the response is
	// 400. If Parameter is empty, clients cannot ask for less.
	Parameter string

	// Grace is how long after the end of its context the handler may still write
	// a response. Zero and negative mean that it may not.
	//
	// A handler under RequestDeadline that reports the timeout to its client needs
	// a Grace, because its writes fail afterwards.
	Grace time.Duration

	// LongRunning reports, before the handler is called, whether a request is
	// long-running and gets no deadline. Nil means that every request gets one.
	//
	// With and without LongRunning, the deadline is lifted when the handler hijacks
	// the connection or begins a response of Content-Type text/event-stream. If
	// LongRunning goes by the request's headers, as DefaultLongRunning does,
	// clients can evade the deadline.
	LongRunning func(*http.Request) bool

	// Received returns when a request was received, for example because an outer
	// handler has recorded that. The deadline counts from then. If Received is
	// nil or returns the zero time, the deadline counts from when the request
	// reaches this handler.
	Received func(*http.Request) time.Time

	// InFlight, if not nil, counts the handlers that still run when RequestTimeout
	// has answered their requests: see InFlight.Handlers. RequestDeadline does not
	// use it.
	InFlight *InFlight
}

// ErrRequestTimeout is the context.Cause of a request whose deadline, set by
// RequestTimeout or RequestDeadline, has passed. It wraps
// context.DeadlineExceeded. A context that ended for another reason, for example
// because the client has disconnected, has another cause.
var ErrRequestTimeout error = fmt.Errorf("graceful: the time for this request is up: %w", context.DeadlineExceeded)

type timeoutHandler struct {
	limit
	machine *deadline.Timeout
}

func (h *timeoutHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now, end, ok := h.begin(w, r)
	switch {
	case !ok:
	case end.After(now):
		h.machine.Serve(w, r, now, end)
	default: // Received has returned a time so long ago that the deadline has passed
		writeError(w, r, http.StatusGatewayTimeout, timeoutReason)
	}
}

const timeoutReason = "the server did not answer in time"

// logLatePanic logs a panic after the deadline, which does not reach net/http. It
// is called while the panicking frames are still on the stack.
func logLatePanic(r deadline.Late, value any) {
	deadline.Logf(r.Context)("graceful: panic serving %s for %s after its deadline: %s\n%s",
		quote(r.Method+" "+r.Target), quote(r.RemoteAddr), quote(fmt.Sprint(value)), debug.Stack())
}

type deadlineHandler struct {
	limit
	machine *deadline.Deadline
}

func (h *deadlineHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if now, end, ok := h.begin(w, r); ok {
		h.machine.Serve(w, r, now, end)
	}
}

// limit determines a request's deadline, for RequestTimeout and RequestDeadline.
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

// begin returns the time and the deadline of r. It reports false if it has handled
// r itself: it calls next for a long-running request, and answers 400 if r's query
// parameter is invalid.
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

// deadline returns the deadline of r. The text of its error is sent to the client.
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

// queryValue returns the first value of name in a query, as url.Values.Get does,
// without parsing the other pairs. If the pair is malformed it returns an error,
// where url.ParseQuery drops the pair.
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
