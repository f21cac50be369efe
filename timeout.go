package graceful

import (
	"net/http"
	"sync"
	"time"
)

// RequestTimeout gives every request that is not long-running a deadline, and
// keeps it even if the handler does not: the handler runs on a goroutine of
// its own, and when the deadline passes the client gets 504, or, if the
// response has begun, an aborted connection (HTTP/1) or stream (HTTP/2), so
// that nobody takes half an answer for a whole one.
//
// Unlike http.TimeoutHandler it does not hold the response back: writes go
// straight to the client, and Flusher, Hijacker, io.ReaderFrom, http.Pusher,
// Unwrap and everything that http.ResponseController can do are there if they
// were there without it. From the deadline on the handler's writes return
// http.ErrHandlerTimeout, and nothing that it does reaches the connection.
// What it cannot do is stop the handler; that one should watch its context.
//
// A handler that panics in time panics through to net/http with the same
// value; one that panics later is logged to the server's ErrorLog. After a
// Hijack the connection is the handler's own, deadline or not.
//
// The zero value is ready for use; fields must not change once Handler has
// been called. A ResponseWriter that an outer handler puts between this one
// and net/http's must have an Unwrap method: a handler that is blocked in
// reading or writing is freed by moving the connection's deadlines.
// A Server.WriteTimeout that is shorter than Max cuts the connection first.
type RequestTimeout struct {
	// Max is how much time a request has, and the most that a client can ask
	// for. Zero means one minute.
	Max time.Duration

	// Parameter is the name of the query parameter with which a client may
	// ask for less, in the form of time.ParseDuration. Absent, empty, zero,
	// negative or above Max it means Max; what cannot be parsed, a number
	// without unit included, is answered with 400. Empty: no such parameter.
	Parameter string

	// Grace is how long after the end of its context a handler may still
	// answer by itself. Zero means not at all: whoever comes first, wins.
	Grace time.Duration

	// LongRunning reports whether a request has no end of its own: it gets no
	// deadline. Nil means DefaultLongRunning.
	LongRunning func(*http.Request) bool

	// Received returns when a request was received, if something outside of
	// this handler has noted that; the deadline counts from there. Nil, or a
	// zero time, means when it came to this handler.
	Received func(*http.Request) time.Time

	// InFlight, if not nil, is told of handlers that go on after their
	// request was answered: see InFlight.Handlers.
	InFlight *InFlight
}

// Handler returns a handler that serves requests by next, within the deadline.
func (t *RequestTimeout) Handler(next http.Handler) http.Handler {
	return &timeoutHandler{
		limit:    newLimit(t.Max, t.Parameter, t.LongRunning, t.Received, next),
		grace:    max(0, t.Grace),
		inFlight: t.InFlight,
	}
}

type timeoutHandler struct {
	limit
	grace    time.Duration
	inFlight *InFlight
}

func (h *timeoutHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now, deadline, ok := h.begin(w, r)
	if !ok {
		return
	}
	left := deadline.Sub(now)
	if left <= 0 {
		// It has waited too long before it came here.
		writeError(w, r, http.StatusGatewayTimeout, timeoutReason)
		return
	}

	x := &exchange{h: h, w: w, r: r}
	x.top = guarded{x, w}
	x.ctx.parent, x.ctx.deadline = r.Context(), deadline
	defer x.ctx.end()
	x.header = http.Header{}
	if outer := w.Header(); len(outer) > 0 {
		x.header = outer.Clone()
	}
	x.req = *r.WithContext(&x.ctx)
	if r.Body != nil && r.Body != http.NoBody {
		x.body = guardedBody{x, r.Body}
		x.req.Body = &x.body
	}
	x.over.Add(1)
	timer := time.AfterFunc(left+h.grace, x.expire)
	go x.run()
	x.over.Wait()
	timer.Stop()

	x.mu.Lock()
	expired := x.phase == exchangeExpired
	x.mu.Unlock()
	if expired {
		x.timeOut()
	} else {
		x.complete()
	}
}

const timeoutReason = "the server did not answer in time"

// An exchange is one request and its answer, between the goroutine that
// net/http serves it on and the one that the handler runs on:
//
//	running ──handler returns, panics──▶ finished: net/http's goroutine goes on with the response
//	   └────deadline──▶ expired: the handler is cut off, net/http's goroutine answers
//
// Whichever comes first releases net/http's goroutine, which was waiting. The
// handler's goroutine reaches the inner ResponseWriter and body only through
// enter and leave, so that once the exchange has expired, and all are out,
// they are net/http's goroutine's alone.
type exchange struct {
	h      *timeoutHandler
	w      http.ResponseWriter // as it came
	r      *http.Request       // as it came
	req    http.Request        // as the handler sees it
	header http.Header         // as the handler sees it
	top    guarded             // what the handler writes to, less the optional methods
	body   guardedBody
	ctx    lazyContext
	over   sync.WaitGroup // 1 while running: a channel that costs no allocation

	mu        sync.Mutex // guards what follows
	phase     exchangePhase
	committed bool          // the status, or part of the body, is on its way
	hijacked  bool          // the connection is the handler's
	sawEOF    bool          // the request body has been read to its end
	returned  bool          // the handler has
	outlives  bool          // the handler has been counted by InFlight.outlived
	writing   int           // calls under way in the inner writer
	reading   int           // calls under way in the inner body
	out       chan struct{} // nil unless timeOut waits; closed when such a call ends
	outer     http.Header   // what the inner header was before a 1xx; nil without one
	end       handlerEnd
}

type exchangePhase int

const (
	exchangeRunning exchangePhase = iota
	exchangeFinished
	exchangeExpired
)

// handlerEnd is how a handler's goroutine ended. Neither normally nor in a
// panic means runtime.Goexit.
type handlerEnd struct {
	normal bool
	value  any // of the panic
}

// run is the handler's goroutine.
func (x *exchange) run() {
	var end handlerEnd
	defer func() {
		if !end.normal {
			end.value = recover()
		}
		x.finish(end)
	}()
	x.h.next.ServeHTTP(writerLike(&x.top), &x.req)
	end.normal = true
}

// finish is the end of the handler's goroutine.
func (x *exchange) finish(end handlerEnd) {
	x.mu.Lock()
	x.returned = true
	if x.phase == exchangeRunning {
		x.phase, x.end = exchangeFinished, end
		x.mu.Unlock()
		x.over.Done()
		return
	}
	outlives := x.outlives
	x.mu.Unlock()

	// Nobody is waiting any more.
	if end.value != nil && end.value != http.ErrAbortHandler {
		x.logPanic(end.value)
	}
	if x.req.MultipartForm != nil && x.req.MultipartForm != x.r.MultipartForm {
		// net/http knows only its own *Request's files.
		x.req.MultipartForm.RemoveAll()
	}
	if outlives {
		x.h.inFlight.outlived.add(-1)
	}
}

// expire runs when the time is up.
func (x *exchange) expire() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase == exchangeRunning && !x.hijacked {
		x.phase = exchangeExpired
		x.over.Done()
	}
}
