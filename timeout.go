package graceful

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"
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
	return &timeoutHandler{
		limit:    newLimit((*DeadlineOptions)(t), next),
		grace:    max(0, t.Grace),
		timedOut: canceledWith(ErrRequestTimeout),
		inFlight: t.InFlight,
	}
}

type timeoutHandler struct {
	limit
	grace    time.Duration
	timedOut context.Context // see requestContext
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

	x := &exchange{h: h, w: w, r: r, over: make(chan struct{})}
	x.note()
	x.top = guarded{x, w}
	x.ctx.parent, x.ctx.deadline, x.ctx.timedOut = r.Context(), deadline, h.timedOut
	defer x.ctx.finish(contextOver)
	x.respHeader = http.Header{}
	if outer := w.Header(); len(outer) > 0 {
		x.respHeader = outer.Clone()
	}
	shallow := *r
	shallow.URL = nil // copied here, which saves an allocation
	x.req = shallow.Clone(&x.ctx)
	if r.URL != nil {
		x.reqURL = *r.URL
		x.req.URL = &x.reqURL
	}
	x.reqHeader = x.req.Header // the handler may replace it in req
	if hasBody(r) {
		x.body = guardedBody{x, r.Body}
		x.req.Body = &x.body
	}
	go x.run()
	if x.wait(left) {
		x.complete()
	} else {
		x.timeOut()
	}
}

const timeoutReason = "the server did not answer in time"

// An exchange is one request and its answer, between the goroutine that
// net/http serves it on and the one that the handler runs on:
//
//	running ──handler returns, panics──▶ finished: net/http's goroutine goes on with the response
//	   └────deadline, cancellation─────▶ expired: the handler is cut off, net/http's goroutine answers
//
// Whichever comes first releases net/http's goroutine, which was waiting. The
// handler's goroutine reaches the inner ResponseWriter and body only through
// enter and leave, so that once the exchange has expired, and all are out,
// they are net/http's goroutine's alone. From then on net/http's goroutine
// reads nothing of the request that the handler has.
type exchange struct {
	h    *timeoutHandler
	w    http.ResponseWriter // as it came
	r    *http.Request       // as it came
	req  *http.Request       // as the handler sees it
	top  guarded             // what the handler writes to, less the optional methods
	body guardedBody
	ctx  requestContext
	over chan struct{} // closed when the exchange has finished

	respHeader http.Header // as the handler sees it

	reqHeader http.Header // the copies that the handler was given
	reqURL    url.URL

	// Noted before the handler starts.
	accept       []string // of the request
	method       string
	target       string
	remoteAddr   string
	major, minor int  // of the protocol
	hasBody      bool // the request
	hasForm      bool // an outer handler has parsed the request's multipart form

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

func (x *exchange) note() {
	r := x.r
	x.accept = r.Header["Accept"]
	x.method, x.target, x.remoteAddr = r.Method, r.RequestURI, r.RemoteAddr
	x.major, x.minor = r.ProtoMajor, r.ProtoMinor
	x.hasBody, x.hasForm = hasBody(r), r.MultipartForm != nil
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
	x.h.next.ServeHTTP(writerLike(&x.top), x.req)
	end.normal = true
}

// finish is the end of the handler's goroutine.
func (x *exchange) finish(end handlerEnd) {
	x.mu.Lock()
	x.returned = true
	if x.phase == exchangeRunning {
		x.phase, x.end = exchangeFinished, end
		x.mu.Unlock()
		close(x.over)
		return
	}
	outlives := x.outlives
	x.mu.Unlock()

	// net/http's goroutine has gone on without this one.
	if end.value != nil && end.value != http.ErrAbortHandler {
		x.logPanic(end.value)
	}
	if f := x.req.MultipartForm; f != nil && !x.hasForm {
		f.RemoveAll() // net/http knows only the files of its own request
	}
	if outlives {
		x.h.inFlight.outlived.add(-1)
	}
}

// wait blocks until the handler has come to its end, and reports true, or the
// exchange has expired.
func (x *exchange) wait(left time.Duration) bool {
	timer := time.NewTimer(left)
	defer timer.Stop()
	deadline, parentEnded := timer.C, x.ctx.parent.Done()
	why := uint32(contextTimedOut)
	for {
		select {
		case <-x.over:
			return true
		case <-deadline:
			deadline = nil
			if d, ok := x.ctx.parent.Deadline(); ok && !d.After(x.ctx.deadline) && !ended(x.ctx.state.Load()) {
				// The parent ends now, too. If it is another RequestTimeout's, an
				// answer begun here would be one that the other has to abort.
				continue
			}
		case <-parentEnded:
			parentEnded = nil
			why = contextParentEnded
		}
		if x.h.grace > 0 && !ended(x.ctx.state.Load()) {
			if x.ctx.finish(why) {
				timer.Reset(x.h.grace)
				deadline, parentEnded = timer.C, nil
			}
			continue
		}
		if x.expire(why) {
			return false
		}
	}
}

// expire ends the exchange. It does not if the exchange has finished, if the
// connection is the handler's, or if that is because of a deadline that has
// been lifted. It reports whether the exchange has expired.
func (x *exchange) expire(why uint32) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.phase != exchangeRunning:
		return false
	case x.hijacked, why == contextTimedOut && x.ctx.state.Load() == contextLifted:
		x.ctx.finish(why)
		return false
	}
	// The handler is cut off before its context ends: if it is another
	// RequestTimeout, it would begin to answer.
	x.phase = exchangeExpired
	x.ctx.finish(why)
	return true
}
