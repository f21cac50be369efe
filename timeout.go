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

// RequestTimeout gives every request a deadline, and keeps it even if the
// handler does not: the handler runs on a goroutine of its own, and when the
// deadline passes the client gets 504, or, if the response has begun, an
// aborted connection (HTTP/1) or stream (HTTP/2), so that no client takes half
// an answer for a whole one. An earlier deadline of the request's context is
// kept as well. If that context is cancelled, because the client has gone or
// the server kills what is left, the response is aborted at that moment.
//
// Unlike http.TimeoutHandler it does not hold the response back: writes go
// straight to the client, and Flusher, Hijacker, io.ReaderFrom, http.Pusher,
// Unwrap and everything that http.ResponseController can do are there if they
// were there without it. From the deadline on the handler's writes return
// http.ErrHandlerTimeout, and nothing that it does reaches the connection.
// What it cannot do is stop the handler; that one should watch its context.
//
// The deadline is lifted when the handler hijacks the connection, which then is
// the handler's own, or begins a response of Content-Type text/event-stream.
//
// The handler gets a copy of the request, with a header, URL and form of its
// own, and may change them even after its deadline. If it returns in time, an
// outer handler finds what it has changed in the header, the URL and the form,
// and the pattern that a mux has matched, as if there were no copy. If it does
// not, the outer handler's request stays as it was.
//
// A handler that panics in time panics through to net/http with the same
// value; one that panics later is logged to the server's ErrorLog.
//
// A ResponseWriter that an outer handler puts between this one and net/http's
// must have an Unwrap method: a handler that is blocked in reading or writing
// is freed by moving the connection's deadlines. A Server.WriteTimeout that is
// shorter than Max cuts the connection first.
//
// Its fields are those of DeadlineOptions.
type RequestTimeout DeadlineOptions

// Handler returns a handler that serves requests by next, within the deadline.
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

// ErrRequestTimeout is the context.Cause of a request whose deadline, set by
// RequestTimeout or RequestDeadline, has passed. It wraps
// context.DeadlineExceeded. A context that ended for another reason, such as a
// client that has gone away, has another cause.
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
	default: // it has waited too long before it came here
		writeError(w, r, http.StatusGatewayTimeout, timeoutReason)
	}
}

const timeoutReason = "the server did not answer in time"

// logLatePanic logs a panic that comes too late for net/http. It is called
// while the panicking frames are still on the stack.
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
