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
	cfg  *Config
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
	late         Late
	major, minor int   // of the protocol
	hasBody      bool  // the request
	length       int64 // of that body; -1 for unknown
	hasForm      bool  // an outer handler has parsed the request's multipart form

	mu        sync.Mutex // guards what follows
	phase     exchangePhase
	committed bool          // the status, or part of the body, is on its way
	hijacked  bool          // the connection is the handler's
	read      int64         // bytes of the request body that have been read
	sawEOF    bool          // all of it has been read
	returned  bool          // the handler has
	outlives  bool          // the handler has been reported to Outlived
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
	shallow.URL = nil // copied here, which saves an allocation
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

// The methods of a gate.

func (x *exchange) header(http.ResponseWriter) http.Header { return x.respHeader }

func (x *exchange) noted() (context.Context, int) { return x.late.Context, x.major }

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
		// It sends the header as it is now, but does not fix it.
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

// leave ends what enter began. If the time ran out meanwhile, the error that
// the interruption has made becomes the one that says so.
func (x *exchange) leave(err error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.writing--
	x.tellOutLocked()
	if x.phase == exchangeExpired && err != nil {
		return http.ErrHandlerTimeout
	}
	return err
}

func (x *exchange) tellOutLocked() {
	if x.out != nil {
		close(x.out)
		x.out = nil
	}
}

func (x *exchange) control(w http.ResponseWriter, do func(*http.ResponseController) error) error {
	x.mu.Lock() // it is done before the deadline, or not at all
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
		// net/http flushes in Hijack, which may block; not under the lock.
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

// past is a deadline that has passed.
var past = time.Unix(1, 0)

const (
	// lingerTime is how long, after a 504, the rest of an HTTP/1 request is
	// still read (as net/http's rstAvoidanceDelay).
	lingerTime = 500 * time.Millisecond

	// http1Rest is how much of the rest net/http reads by itself.
	http1Rest = 256 << 10

	// quietTime is how long, after a 504 to a client that may be sending, a
	// handler that is reading waits for more.
	quietTime = 10 * time.Millisecond

	// http2CallTime is how long an expired HTTP/2 stream waits for a call of
	// its handler that the stream's deadlines do not free: a write while the
	// client does not read the connection.
	http2CallTime = time.Second
)

// complete ends an exchange whose handler has come to its end in time, as if
// it had run here.
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

// handBack gives the outer handler's request what the handler has made of its
// own, as if they had been the same. What is unchanged is not written, for an
// outer handler may be reading it.
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

// syncHeader makes the header inner the same as h, deletions included. The
// values stay shared.
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

// timeOut ends an exchange that has expired, while the handler goes on.
func (x *exchange) timeOut() {
	gone := !errors.Is(x.ctx.Err(), context.DeadlineExceeded) && !errors.Is(context.Cause(&x.ctx), context.DeadlineExceeded)

	x.mu.Lock()
	if x.cfg.Outlived != nil && !x.returned {
		x.outlives = true
		x.cfg.Outlived(1)
	}
	abort := gone || x.committed || x.writing > 0
	unread := x.hasBody && !x.sawEOF
	// An HTTP/1 client that has much more to send than net/http reads after a
	// response would be reset, most likely before it has read the answer.
	much := x.major < 2 && unread && max(x.length, x.read) > http1Rest
	x.mu.Unlock()

	first := x.major >= 2 || much // the answer, before the handler leaves the body
	if abort || !first {
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
		// Without that net/http would first read the rest, which may never
		// come.
		h.Set("Connection", "close")
		if !much {
			rc.SetReadDeadline(time.Now().Add(lingerTime))
		}
	}
	x.cfg.Answer(x.w, x.accept)
	if !first || !x.hasBody {
		return
	}

	// The body is the caller's as soon as this returns, so the handler has to be
	// out of it. While data comes its Read ends by itself. Interrupting it breaks
	// a chunked body for the reading below, and over HTTP/2 has net/http reset
	// the stream if there is more data. So the answer goes out before.
	sent := rc.Flush() == nil
	if !sent || !x.waitOut(true, quietTime) {
		x.interrupt(false)
	}
	if much && sent && rc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		io.Copy(io.Discard, x.body.inner)
	}
}

// interrupt makes the calls that are under way in the inner writer and in the
// inner body come back, and waits until they have. With unread, nothing can be
// read from an HTTP/1 connection from then on even if no call is reading now.
func (x *exchange) interrupt(unread bool) {
	rc := http.NewResponseController(x.w)
	x.mu.Lock()
	writing, reading := x.writing > 0, x.reading > 0
	x.mu.Unlock()
	if writing {
		rc.SetWriteDeadline(past)
	}
	if reading || unread && x.major < 2 {
		// If this cannot be done, waiting for the reader would be in vain.
		reading = rc.SetReadDeadline(past) == nil && reading
	}
	if x.major < 2 {
		// However long it takes: two goroutines in one HTTP/1 connection would
		// corrupt it.
		x.waitOut(reading, 0)
	} else {
		x.waitOut(reading, http2CallTime)
	}
}

// waitOut blocks until no call is under way in the inner writer and, with
// reading, in the inner body, at most for the time given unless it is zero. It
// reports whether they are out.
func (x *exchange) waitOut(reading bool, most time.Duration) bool {
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

// closeDelimited reports whether the body may end with the connection, so
// that closing it would look like a whole answer (RFC 9112 6.3).
func (x *exchange) closeDelimited() bool {
	return x.major < 2 && (x.major < 1 || x.minor < 1 || x.w.Header().Get("Transfer-Encoding") == "identity")
}

// reset closes the connection such that the client sees an error and not an
// end. Without a way to do that, the panic that follows closes it.
func (x *exchange) reset() {
	rc := http.NewResponseController(x.w)
	rc.SetWriteDeadline(past) // for Hijack flushes
	conn, _, err := rc.Hijack()
	if err != nil {
		return
	}
	socket := x.cfg.Socket(conn)
	if t, ok := socket.(interface{ SetLinger(sec int) error }); ok {
		t.SetLinger(0)
	}
	socket.Close() // first, or a tls.Conn would say goodbye
	conn.Close()   // whoever counts connections has to hear of it
}
