package deadline

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// An exchange is one request and its response. The handler runs on a goroutine of
// its own, while the goroutine on which net/http serves the request waits:
//
//	running ──handler returns, panics──▶ finished: net/http's goroutine completes the response
//	   └────deadline, cancellation─────▶ expired: the handler is cut off, net/http's goroutine answers
//
// The handler's goroutine calls the inner ResponseWriter and body only between
// enter and leave. Once the exchange has expired and these calls have returned,
// only net/http's goroutine uses the inner ResponseWriter and body. It does not
// read the handler's request then, which the handler may be changing.
type exchange struct {
	cfg  *Config
	w    http.ResponseWriter // the inner ResponseWriter
	r    *http.Request       // the outer handler's request
	req  *http.Request       // the handler's request
	top  guarded             // the handler's ResponseWriter, without optional methods
	body guardedBody
	ctx  requestContext
	over chan struct{} // closed when the exchange has finished

	respHeader http.Header // the handler's response header

	reqHeader http.Header // the handler's copy of the request's header
	reqURL    url.URL     // and of its URL

	// Read from r before the handler starts.
	accept       []string // the Accept header
	late         Late
	major, minor int   // the protocol's version
	hasBody      bool  // the request has a body
	length       int64 // the body's length; -1 if unknown
	hasForm      bool  // an outer handler has parsed the request's multipart form

	mu        sync.Mutex // guards what follows
	phase     exchangePhase
	committed bool          // the status, or part of the body, was written
	hijacked  bool          // the handler has hijacked the connection
	read      int64         // how many bytes of the request body have been read
	sawEOF    bool          // all of the request body has been read
	returned  bool          // the handler has returned
	outlives  bool          // the handler was reported to Outlived
	writing   int           // calls under way in the inner writer
	reading   int           // calls under way in the inner body
	out       chan struct{} // nil unless awaitCalls waits; closed when such a call ends
	outer     http.Header   // the inner header from before a 1xx; nil without one
	end       handlerEnd
}

type exchangePhase int

const (
	exchangeRunning exchangePhase = iota
	exchangeFinished
	exchangeExpired
)

// handlerEnd is how a handler's goroutine ended. If normal is false and value is
// nil, the handler has called runtime.Goexit.
type handlerEnd struct {
	normal bool // the handler returned
	value  any  // the value of its panic
}

func newExchange(cfg *Config, w http.ResponseWriter, r *http.Request, deadline time.Time) *exchange {
	x := &exchange{cfg: cfg, w: w, r: r, over: make(chan struct{})}
	x.top = guarded{x, w}
	x.ctx.parent, x.ctx.deadline, x.ctx.timedOut = r.Context(), deadline, cfg.timedOut

	x.accept = r.Header["Accept"]
	x.late = Late{r.Context(), r.Method, r.RequestURI, r.RemoteAddr}
	x.major, x.minor = r.ProtoMajor, r.ProtoMinor
	x.hasBody, x.hasForm, x.length = hasBody(r), r.MultipartForm != nil, r.ContentLength

	x.respHeader = http.Header{}
	if outer := w.Header(); len(outer) > 0 {
		x.respHeader = outer.Clone()
	}
	shallow := *r
	shallow.URL = nil // copied into reqURL below, which saves an allocation
	x.req = shallow.Clone(&x.ctx)
	if r.URL != nil {
		x.reqURL = *r.URL
		x.req.URL = &x.reqURL
	}
	x.reqHeader = x.req.Header // the handler may replace it in req
	if x.hasBody {
		x.body = guardedBody{x, r.Body}
		x.req.Body = &x.body
	}
	return x
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
	x.cfg.Next.ServeHTTP(writerLike(&x.top), x.req)
	end.normal = true
}

// finish is called at the end of the handler's goroutine.
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

	// The exchange has expired, and net/http's goroutine does not wait any more.
	if end.value != nil && end.value != http.ErrAbortHandler && x.cfg.LatePanic != nil {
		x.cfg.LatePanic(x.late, end.value)
	}
	if f := x.req.MultipartForm; f != nil && !x.hasForm {
		f.RemoveAll() // net/http knows only the files of its own request
	}
	if outlives {
		x.cfg.Outlived(-1)
	}
}

// wait blocks until the handler has ended, and reports true, or until the exchange
// has expired, and reports false.
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
				// The parent ends now, too. If that is the context of an outer
				// RequestTimeout, it would have to abort a response begun here.
				continue
			}
		case <-parentEnded:
			parentEnded = nil
			why = contextParentEnded
		}
		if x.cfg.Grace > 0 && !ended(x.ctx.state.Load()) {
			if x.ctx.finish(why) {
				timer.Reset(x.cfg.Grace)
				deadline, parentEnded = timer.C, nil
			}
			continue
		}
		if x.expire(why) {
			return false
		}
	}
}

// expire makes the exchange expire, and reports whether it did. It does not if the
// exchange has finished, if the connection was hijacked, or if the reason is a
// deadline that was lifted.
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
	// The handler is cut off before its context ends, because an inner
	// RequestTimeout would begin to answer when its context ends.
	x.phase = exchangeExpired
	x.ctx.finish(why)
	return true
}

// The methods of gate.

func (x *exchange) header(http.ResponseWriter) http.Header { return x.respHeader }

func (x *exchange) requestInfo() (context.Context, int) { return x.late.Context, x.major }

func (x *exchange) enter(w http.ResponseWriter, call callKind) verdict {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return tooLate
	}
	if v := judge(call, x.committed, x.hijacked); v != pass {
		return v
	}
	switch {
	case call == callInterim:
		// It sends the header, which may still change afterwards.
		if x.outer == nil {
			x.outer = maps.Clone(w.Header())
			if x.outer == nil {
				x.outer = http.Header{}
			}
		}
		syncHeader(w.Header(), x.respHeader)
	case call.commits() && !x.committed:
		x.committed = true
		syncHeader(w.Header(), x.respHeader)
		if isEventStream(x.respHeader) {
			x.ctx.lift()
		}
	}
	x.writing++
	return pass
}

// leave ends a call that enter began. If the exchange has expired meanwhile, the
// error of the interrupted call becomes http.ErrHandlerTimeout.
func (x *exchange) leave(err error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.writing--
	x.callEndedLocked()
	if x.phase == exchangeExpired && err != nil {
		return http.ErrHandlerTimeout
	}
	return err
}

func (x *exchange) callEndedLocked() {
	if x.out != nil {
		close(x.out)
		x.out = nil
	}
}

func (x *exchange) control(w http.ResponseWriter, do func(*http.ResponseController) error) error {
	x.mu.Lock() // so that the exchange does not expire during do
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return http.ErrHandlerTimeout
	}
	return do(http.NewResponseController(w))
}

func (x *exchange) hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	x.mu.Lock()
	committed := x.committed
	x.mu.Unlock()
	if committed {
		// net/http flushes in Hijack, which may block, so it is flushed here, without
		// the lock.
		g := guarded{x, w}
		if err := g.FlushError(); err == http.ErrHandlerTimeout {
			return nil, nil, err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return nil, nil, http.ErrHandlerTimeout
	}
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err == nil {
		x.hijacked = true
		x.ctx.lift()
	}
	return conn, buf, err
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

const (
	// lingerTime is how long, after a 504, the rest of an HTTP/1 request is
	// still read (as net/http's rstAvoidanceDelay).
	lingerTime = 500 * time.Millisecond

	// http1Rest is how much of the rest net/http reads by itself.
	http1Rest = 256 << 10

	// readWait is how long, after a 504, a Read of the handler's may go on before
	// it is interrupted. It returns by itself if the client is sending.
	readWait = 10 * time.Millisecond

	// http2CallTime is how long an expired HTTP/2 stream waits for a call of
	// its handler that the stream's deadlines do not free: a write while the
	// client does not read the connection.
	http2CallTime = time.Second
)

// complete ends an exchange whose handler has ended in time. It repeats the
// handler's panic or runtime.Goexit on net/http's goroutine.
func (x *exchange) complete() {
	switch {
	case x.hijacked:
	case !x.committed:
		syncHeader(x.w.Header(), x.respHeader)
	case x.hasTrailers():
		maps.Copy(x.w.Header(), x.respHeader)
	}
	x.handBack()
	switch {
	case x.end.value != nil:
		panic(x.end.value)
	case !x.end.normal:
		runtime.Goexit()
	}
}

// handBack copies what the handler has changed in its request to the outer
// handler's. Only changes are written, because an outer handler's goroutine may
// read the rest.
func (x *exchange) handBack() {
	form := x.r.MultipartForm
	HandBack(x.r, x.req)
	if x.hasForm {
		x.r.MultipartForm = form // the handler has a copy
	}
	h := x.r.Header
	for k, v := range x.reqHeader {
		if was, ok := h[k]; !ok || !slices.Equal(was, v) {
			h[k] = v
		}
	}
	if len(h) > len(x.reqHeader) {
		maps.DeleteFunc(h, func(k string, _ []string) bool { _, ok := x.reqHeader[k]; return !ok })
	}
	if x.r.URL != nil && *x.r.URL != x.reqURL {
		*x.r.URL = x.reqURL
	}
}

// syncHeader makes the header inner equal to h, deletions included. The values
// are shared.
func syncHeader(inner, h http.Header) {
	if len(inner) > 0 {
		for k := range inner {
			if _, ok := h[k]; !ok {
				delete(inner, k)
			}
		}
	}
	for k, v := range h {
		inner[k] = v
	}
}

// hasTrailers reports whether the handler's header may have fields that
// net/http sends after the body.
func (x *exchange) hasTrailers() bool {
	for k := range x.respHeader {
		if k == "Trailer" || strings.HasPrefix(k, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// timeOut answers or aborts an exchange that has expired, while the handler may go
// on.
func (x *exchange) timeOut() {
	gone := !errors.Is(x.ctx.Err(), context.DeadlineExceeded) && !errors.Is(context.Cause(&x.ctx), context.DeadlineExceeded)

	x.mu.Lock()
	if x.cfg.Outlived != nil && !x.returned {
		x.outlives = true
		x.cfg.Outlived(1)
	}
	abort := gone || x.committed || x.writing > 0
	unread := x.hasBody && !x.sawEOF
	// If an HTTP/1 client has more to send than net/http reads after a response,
	// net/http's close would reset the connection, probably before the client has
	// read the response.
	much := x.major < 2 && unread && max(x.length, x.read) > http1Rest
	x.mu.Unlock()

	answerFirst := x.major >= 2 || much // before the handler's Read has returned
	if abort || !answerFirst {
		x.interrupt(abort && unread)
	}
	if abort {
		if x.closeDelimited() {
			x.reset()
		}
		panic(http.ErrAbortHandler)
	}

	h := x.w.Header()
	if x.outer != nil {
		clear(h)
		maps.Copy(h, x.outer)
	}
	rc := http.NewResponseController(x.w)
	if unread && x.major < 2 {
		// Otherwise net/http reads the rest first, which may never come.
		h.Set("Connection", "close")
		if !much {
			rc.SetReadDeadline(time.Now().Add(lingerTime))
		}
	}
	x.cfg.Answer(x.w, x.accept)
	if !answerFirst || !x.hasBody {
		return
	}

	// net/http uses the body when this returns, so the handler's Read has to have
	// returned. If data comes, it returns by itself. Interrupting it breaks a chunked
	// body for the reading below, and over HTTP/2 makes net/http reset the stream
	// if there is more data. So the response is sent before.
	sent := rc.Flush() == nil
	if !sent || !x.awaitCalls(true, readWait) {
		x.interrupt(false)
	}
	if much && sent && rc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		io.Copy(io.Discard, x.body.inner)
	}
}

// interrupt makes the calls that are under way in the inner writer and in the
// inner body return, and waits for them. With unread, later reads from an HTTP/1
// connection fail as well, even if no call is reading now.
func (x *exchange) interrupt(unread bool) {
	rc := http.NewResponseController(x.w)
	x.mu.Lock()
	writing, reading := x.writing > 0, x.reading > 0
	x.mu.Unlock()
	if writing {
		rc.SetWriteDeadline(aLongTimeAgo)
	}
	if reading || unread && x.major < 2 {
		// If the deadline cannot be set, the Read may never return.
		reading = rc.SetReadDeadline(aLongTimeAgo) == nil && reading
	}
	if x.major < 2 {
		// Without limit, because two goroutines that use one HTTP/1 connection would
		// corrupt the response.
		x.awaitCalls(reading, 0)
	} else {
		x.awaitCalls(reading, http2CallTime)
	}
}

// awaitCalls blocks until no call is under way in the inner writer and, with
// reading, in the inner body. It reports false after most, unless that is zero.
func (x *exchange) awaitCalls(reading bool, most time.Duration) bool {
	var timeout <-chan time.Time
	for {
		x.mu.Lock()
		if x.writing == 0 && (!reading || x.reading == 0) {
			x.mu.Unlock()
			return true
		}
		out := make(chan struct{})
		x.out = out
		x.mu.Unlock()
		if most > 0 && timeout == nil {
			t := time.NewTimer(most)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-out:
		case <-timeout:
			return false
		}
	}
}

// closeDelimited reports whether the response's body may end with the connection
// (RFC 9112, section 6.3). Closing the connection would then look like the end of a
// complete response.
func (x *exchange) closeDelimited() bool {
	return x.major < 2 && (x.major < 1 || x.minor < 1 || x.w.Header().Get("Transfer-Encoding") == "identity")
}

// reset closes the connection with a TCP reset, so that the client sees an error
// instead of the body's end. If it cannot, the panic that follows closes the
// connection.
func (x *exchange) reset() {
	rc := http.NewResponseController(x.w)
	rc.SetWriteDeadline(aLongTimeAgo) // since Hijack flushes
	conn, _, err := rc.Hijack()
	if err != nil {
		return
	}
	socket := x.cfg.Socket(conn)
	if t, ok := socket.(interface{ SetLinger(sec int) error }); ok {
		t.SetLinger(0)
	}
	socket.Close() // first, since a tls.Conn's Close sends an alert
	conn.Close()   // for wrappers that count connections
}
