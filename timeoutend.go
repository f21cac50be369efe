package graceful

import (
	"context"
	"errors"
	"log"
	"maps"
	"net/http"
	"runtime"
	"runtime/debug"
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

	// http2WriterTime is how long an aborted HTTP/2 stream waits for a write
	// that its reset does not free, because nobody reads the connection.
	http2WriterTime = time.Second
)

// complete ends an exchange whose handler has come to its end in time, as if
// it had run here.
func (x *exchange) complete() {
	switch {
	case x.hijacked:
	case !x.committed:
		x.copyHeader(x.w.Header())
	case x.hasTrailers():
		maps.Copy(x.w.Header(), x.header)
	}
	handBack(x.r, &x.req)
	switch {
	case x.end.value != nil:
		panic(x.end.value)
	case !x.end.normal:
		runtime.Goexit()
	}
}

// copyHeader makes the inner header what the handler's is, deletions
// included. The values stay shared.
func (x *exchange) copyHeader(inner http.Header) {
	if len(inner) > 0 {
		for k := range inner {
			if _, ok := x.header[k]; !ok {
				delete(inner, k)
			}
		}
	}
	for k, v := range x.header {
		inner[k] = v
	}
}

// hasTrailers reports whether the handler's header may have fields that
// net/http sends after the body.
func (x *exchange) hasTrailers() bool {
	for k := range x.header {
		if k == "Trailer" || strings.HasPrefix(k, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// timeOut ends an exchange whose time is up, while the handler goes on.
func (x *exchange) timeOut() {
	// Before the request's own context ends, which would then be the cause.
	// The timer in there is due at latest now.
	ctx := x.ctx.real()
	<-ctx.Done()
	gone := !errors.Is(context.Cause(ctx), context.DeadlineExceeded)

	x.mu.Lock()
	if f := x.h.inFlight; f != nil && !x.returned {
		x.outlives = true
		f.outlived.add(1)
	}
	abort := gone || x.committed || x.writing > 0
	unread := x.r.Body != nil && x.r.Body != http.NoBody && !x.sawEOF
	x.mu.Unlock()

	if x.r.ProtoMajor >= 2 {
		x.interrupt(false, http2WriterTime)
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
	if unread && x.r.ProtoMajor < 2 {
		// Without that net/http would first read the rest, which may never
		// come.
		h.Set("Connection", "close")
		http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(lingerTime))
	}
	writeError(x.w, x.r, http.StatusGatewayTimeout, timeoutReason)
}

// interrupt makes the calls that are under way in the inner writer, and over
// HTTP/1 in the inner body, come back, and waits until they have, at most for
// the time given unless it is zero. With unread nothing can be read any more
// even if nobody is reading.
func (x *exchange) interrupt(unread bool, most time.Duration) {
	rc := http.NewResponseController(x.w)
	x.mu.Lock()
	writing, reading := x.writing > 0, x.reading > 0
	x.mu.Unlock()
	if writing {
		rc.SetWriteDeadline(past)
	}
	if x.r.ProtoMajor >= 2 {
		reading = false // the end of the stream frees it
	} else if reading || unread {
		// If this cannot be done, waiting for the reader would be in vain.
		reading = rc.SetReadDeadline(past) == nil && reading
	}

	var timeout <-chan time.Time
	if most > 0 && writing {
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
	return x.r.ProtoMajor < 2 && (!x.r.ProtoAtLeast(1, 1) || x.w.Header().Get("Transfer-Encoding") == "identity")
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
	logf := log.Printf
	if srv, ok := x.r.Context().Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
		logf = srv.ErrorLog.Printf
	}
	logf("graceful: panic serving %s %s for %s after its deadline: %v\n%s",
		x.r.Method, x.r.URL.Path, x.r.RemoteAddr, value, debug.Stack())
}
