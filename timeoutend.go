package graceful

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

const (
	// lingerTime is how long, after a 504, the rest of the request is still
	// read: closing on unread bytes would reset the connection, and the client
	// could lose the answer (as net/http's rstAvoidanceDelay).
	lingerTime = 500 * time.Millisecond

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
	handBack(x.r, x.req)
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
	if f := x.h.inFlight; f != nil && !x.returned {
		x.outlives = true
		f.outlived.add(1)
	}
	abort := gone || x.committed || x.writing > 0
	unread := x.hasBody && !x.sawEOF
	x.mu.Unlock()

	if x.major >= 2 {
		x.interrupt(false, http2CallTime)
	} else {
		// Two goroutines in one HTTP/1 connection would corrupt it, and
		// net/http waits for the handler's Read before it answers.
		x.interrupt(abort && unread, 0)
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
	if unread && x.major < 2 {
		// Without that net/http would first read the rest, which may never
		// come.
		h.Set("Connection", "close")
		http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(lingerTime))
	}
	writeErrorAs(x.w, x.accept, http.StatusGatewayTimeout, timeoutReason)
}

// interrupt makes the calls that are under way in the inner writer and in the
// inner body come back, and waits until they have, at most for the time given
// unless it is zero. With unread nothing can be read any more even if nobody is
// reading.
func (x *exchange) interrupt(unread bool, most time.Duration) {
	rc := http.NewResponseController(x.w)
	x.mu.Lock()
	writing, reading := x.writing > 0, x.reading > 0
	x.mu.Unlock()
	if writing {
		rc.SetWriteDeadline(past)
	}
	if reading || unread {
		// If this cannot be done, waiting for the reader would be in vain.
		reading = rc.SetReadDeadline(past) == nil && reading
	}

	var timeout <-chan time.Time
	if most > 0 && (writing || reading) {
		t := time.NewTimer(most)
		defer t.Stop()
		timeout = t.C
	}
	for {
		x.mu.Lock()
		if x.writing == 0 && (!reading || x.reading == 0) {
			x.mu.Unlock()
			return
		}
		out := make(chan struct{})
		x.out = out
		x.mu.Unlock()
		select {
		case <-out:
		case <-timeout:
			return
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
	socket := socketOf(conn)
	if t, ok := socket.(interface{ SetLinger(sec int) error }); ok {
		t.SetLinger(0)
	}
	socket.Close() // first, or a tls.Conn would say goodbye
	conn.Close()   // whoever counts connections has to hear of it
}

// logPanic logs a panic that comes too late for net/http. It is called while
// the panicking frames are still on the stack.
func (x *exchange) logPanic(value any) {
	logTo := serverLogf(x.ctx.parent)
	logTo("graceful: panic serving %s for %s after its deadline: %s\n%s",
		quote(x.method+" "+x.target), quote(x.remoteAddr), quote(fmt.Sprint(value)), debug.Stack())
}

// serverLogf returns the function with which net/http logs: to the ErrorLog of
// the server in ctx, if there is one.
func serverLogf(ctx context.Context) func(format string, args ...any) {
	if srv, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
		return srv.ErrorLog.Printf
	}
	return log.Printf
}
