package graceful

import (
	"bytes"
	"math/bits"
	"net/http"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful/internal/http2wire"
	"github.com/seed-121bbccf/graceful/internal/sock"
)

// An http1Conn follows the requests and responses of an HTTP/1 connection. Once
// the shutdown has begun, it makes the header of every response say "Connection:
// close", whatever net/http and the handler have written, and the connection ends
// after that response.
//
// It is used by the goroutine that serves the connection, and by goroutines of the
// handler that write. Once the connection is hijacked it is not changed any more.
type http1Conn struct {
	// When a response has been written, the beginning of the next request may be
	// in net/http's buffer already, because it was read together with the one
	// before. net/http waits until four bytes of a request have come, and sets a
	// read deadline before and after that wait. If a second deadline is set and
	// nothing was read in between, four bytes were in the buffer. If a Read asks
	// for less than the size of the buffer, one to three bytes were. buffer is that
	// size: the most that a Read of a request has asked for.
	buffer    int32
	deadlines uint8 // how many were set since the response

	// preface is how many bytes of HTTP/2's preface have come, and -1 if the
	// connection does not begin with the preface or HTTP/2 is not served on it.
	preface int8

	blank uint8 // how many CR and LF were read last, up to maxBlank
	began bool  // the final response to the request in progress has begun
	last  bool  // that response says "Connection: close"

	// interim: a 1xx response has begun, and its header has not ended.
	interim bool
}

// maxBlank is how many bytes of line ends before a request net/http may have in
// its buffer without a request: it waits for four bytes, and skips line ends.
const maxBlank = 3

// enterRead is called before net/http's Read of up to size bytes.
func (h *http1Conn) enterRead(c *conn, size int) {
	switch c.load().state() {
	case connNew, connReceiving:
		h.learn(size)
	case connIdle, connEnding:
		if c.multiplexes() {
			return
		}
		if h.buffer-int32(size) > int32(h.blank) {
			c.begun() // the beginning of the request is in net/http's buffer
		}
		h.learn(size)
	}
}

// learn derives the size of net/http's buffer, which is a power of two, from a Read
// of size bytes. The first Reads of a connection that may be HTTP/2 ask for less:
// for the preface, and then for the room that it leaves in the buffer.
func (h *http1Conn) learn(size int) {
	if int32(size) > h.buffer {
		h.buffer = 1 << bits.Len32(uint32(size-1))
	}
}

// deadlineSet is called when net/http has set a read deadline.
func (h *http1Conn) deadlineSet(c *conn) {
	if s := c.load().state(); s != connIdle && s != connEnding || c.multiplexes() {
		return
	}
	if h.deadlines++; h.deadlines == 2 {
		c.begun()
	}
}

// received is called when p was read by a Read of up to size bytes.
func (h *http1Conn) received(c *conn, p []byte, size int) {
	state := c.load().state()
	if state == connHijacked {
		return // several goroutines may read
	}
	h.countBlank(p)
	switch {
	case state == connActive:
		// While a handler runs, net/http reads one byte ahead, to detect that the
		// client has disconnected.
		if size == 1 && h.blank == 0 && !c.has(flagAhead) {
			c.set(flagAhead)
		}
	case h.preface >= 0 && h.prefaceEnds(c, p), c.has(flagForeign):
	case state == connNew || int(h.blank) < len(p):
		c.begun()
	}
}

// countBlank updates blank for p, which was read.
func (h *http1Conn) countBlank(p []byte) {
	n := uint8(0)
	for i := len(p) - 1; n < maxBlank; i-- {
		if i < 0 {
			n = min(n+h.blank, maxBlank)
			break
		}
		if p[i] != '\n' && p[i] != '\r' {
			break
		}
		n++
	}
	h.blank = n
}

// prefaceEnds reports whether HTTP/2's preface ends in p, which was read at the
// beginning of the connection. If so, it makes c an HTTP/2 connection and passes it
// the rest of p.
func (h *http1Conn) prefaceEnds(c *conn, p []byte) bool {
	rest := http2wire.Preface[h.preface:]
	n := min(len(p), len(rest))
	if string(p[:n]) != rest[:n] {
		h.preface = -1
		return false
	}
	if h.preface += int8(n); int(h.preface) < len(http2wire.Preface) {
		return false
	}
	h.preface = -1
	c.followHTTP2(true).received(p[n:])
	return true
}

// request is called when net/http has read a request's header.
func (h *http1Conn) request(c *conn) {
	h.began, h.last, h.interim = false, false, false
	if c.has(flagAhead | flagGaveUp) {
		c.unset(flagAhead | flagGaveUp)
	}
}

// response is called when the response was written.
func (h *http1Conn) response() { h.deadlines = 0 }

// lastResponse is called before p is written; p is nil for a write by ReadFrom. It
// reports whether p begins a final response after which the connection is to end.
//
// Every response begins at the start of a Write, because net/http flushes its
// buffer of 4 KiB after each response, interim or final (server.go). An interim
// response whose header is longer takes several Writes; the header ends at the end
// of the last.
func (h *http1Conn) lastResponse(c *conn, p []byte) bool {
	if h.began || c.load().state() != connActive {
		return false
	}
	if h.interim || isInterim(p) {
		const end = "\r\n\r\n"
		h.interim = len(p) >= len(end) && !bytes.HasSuffix(p, []byte(end))
		return false
	}
	h.began = true
	return p != nil && c.m.shutting.Load()
}

// writeFarewell writes p, which begins a final response, and makes its header say
// "Connection: close". It returns how much of p was written.
//
// If p does not begin as a response does, it is written unchanged, and the
// connection is closed later, after its quiet period.
func (h *http1Conn) writeFarewell(c *conn, p []byte) (int, error) {
	at, old, field, ok := farewellIn(p)
	if !ok || c.http.Load().method() == http.MethodConnect {
		return c.raw.Write(p)
	}
	h.last = true
	if field == "" {
		return c.raw.Write(p)
	}
	q := make([]byte, 0, len(p)-old+len(field))
	q = append(append(append(q, p[:at]...), field...), p[at+old:]...)
	n, err := c.raw.Write(q)
	switch {
	case n <= at:
	case n < at+len(field):
		n = at
	default:
		n += old - len(field)
	}
	return n, err
}

// farewellIn reports whether p begins the header of a final response, and how to
// make the header say "Connection: close": by replacing the old bytes from p[at]
// on with field. field is empty if the header says so already.
//
// If the header does not end in p, it may contain keep-alive as well. close takes
// precedence (RFC 9112, section 9.6).
func farewellIn(p []byte) (at, old int, field string, ok bool) {
	const closes = "Connection: close\r\n"
	if !isStatusLine(p) || isInterim(p) || string(p[9:12]) == "101" {
		return 0, 0, "", false
	}
	at = bytes.IndexByte(p, '\n') + 1
	if at == 0 {
		return 0, 0, "", false
	}
	for i := at; ; {
		n := bytes.IndexByte(p[i:], '\n') + 1
		line := bytes.TrimSpace(p[i : i+n])
		if len(line) == 0 { // the end of the header, or of p
			return at, 0, closes, true
		}
		if name, value, _ := strings.Cut(string(line), ":"); strings.EqualFold(name, "Connection") {
			switch value = strings.TrimSpace(value); {
			case strings.EqualFold(value, "close"):
				return 0, 0, "", true
			case strings.EqualFold(value, "keep-alive"):
				return i, n, closes, true
			}
		}
		i += n
	}
}

// isStatusLine reports whether p begins as a status line of HTTP/1 does.
func isStatusLine(p []byte) bool {
	const like = "HTTP/1.x NNN "
	return len(p) >= len(like) && string(p[:7]) == like[:7] && p[8] == ' ' && p[12] == ' '
}

// isInterim reports whether p begins a 1xx response, which another response to the
// same request follows. 101 is not one of them.
func isInterim(p []byte) bool {
	return isStatusLine(p) && p[9] == '1' && string(p[9:12]) != "101"
}

// lingerClose is how long a client has to close its side of a connection that ends
// with unread bytes. It is as long as net/http's rstAvoidanceDelay.
const lingerClose = 500 * time.Millisecond

// endLast ends a connection whose last response has said "Connection: close". It is
// called from net/http's hook for StateIdle, on the goroutine that serves the
// connection, and does not return: its panic makes net/http close the connection,
// as after net/http's own "Connection: close". io.EOF from the next Read would be
// too late, because net/http may have further requests in its buffer, which must
// not be served (RFC 9112, section 9.6).
//
// If the client has sent more, a close would reset the connection, because of the
// unread bytes, and the reset may overtake the response. So the connection is
// half-closed first, and the client has lingerClose to close its side. The bytes
// are not read meanwhile, because a Read of net/http's may be under way, if a
// handler has enabled full duplex and not read the body.
func (h *http1Conn) endLast(c *conn) {
	if (c.has(flagAhead) || sock.Pending(c.raw)) && closeWrite(c.raw) == nil {
		const step = 5 * time.Millisecond
		for waited := time.Duration(0); waited < lingerClose && !sock.PeerClosed(c.raw); waited += step {
			time.Sleep(step)
		}
	}
	panic(http.ErrAbortHandler)
}
