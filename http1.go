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

// An http1Conn is what the goroutine that serves a connection of HTTP/1 knows of
// what it reads and writes. It says the farewell of HTTP/1: once the shutdown has
// begun, every response says "Connection: close" in the header that goes out,
// whatever net/http and the handler have composed, and the connection ends with
// it.
//
// It belongs to that goroutine, and to those that the handler lets write. Once
// the connection is hijacked it is not changed any more.
type http1Conn struct {
	// What has come of the next request when a response is out is in net/http's
	// buffer, and not seen as it is read. net/http waits for four bytes before it
	// looks at a request, and sets a read deadline before and behind that wait. So
	// four bytes were there if a second deadline is set with nothing read, and
	// fewer if it asks for less than the buffer's size: buffer is the most that a
	// Read of a request has asked for.
	buffer    int32
	deadlines uint8 // that were set since the response

	// preface is how much of HTTP/2's preface has come, and -1 when the
	// connection does not begin so or is not asked for it.
	preface int8

	blank uint8 // how many CR and LF were read last, up to maxBlank
	began bool  // the final response to the request in progress has begun
	last  bool  // and says that it is the connection's last

	// interim: a response of the kind 1xx has begun, and its header has not ended.
	interim bool
}

// net/http ignores line ends before a request, up to the four bytes that it waits
// for.
const maxBlank = 3

// enterRead notes that net/http asks for up to size bytes.
func (h *http1Conn) enterRead(c *conn, size int) {
	switch c.load().state() {
	case connNew, connReceiving:
		h.learn(size)
	case connIdle, connEnding:
		if c.multiplexes() {
			return
		}
		if h.buffer-int32(size) > int32(h.blank) {
			c.begun() // the beginning of a request came with the one before it
		}
		h.learn(size)
	}
}

// learn notes that net/http's buffer has room for size bytes. Its size is a power
// of two. Less is asked for at the beginning of a connection that may turn out to
// be HTTP/2: the preface, and then what there is room for behind as much.
func (h *http1Conn) learn(size int) {
	if int32(size) > h.buffer {
		h.buffer = 1 << bits.Len32(uint32(size-1))
	}
}

// deadlineSet notes that net/http has set a read deadline.
func (h *http1Conn) deadlineSet(c *conn) {
	if s := c.load().state(); s != connIdle && s != connEnding || c.multiplexes() {
		return
	}
	if h.deadlines++; h.deadlines == 2 {
		c.begun()
	}
}

// received notes that p was read into a buffer of the given size.
func (h *http1Conn) received(c *conn, p []byte, size int) {
	state := c.load().state()
	if state == connHijacked {
		return // it may be read by several goroutines
	}
	h.countBlank(p)
	switch {
	case state == connActive:
		// While a handler runs net/http reads ahead, one byte at a time, to see
		// whether the client goes away.
		if size == 1 && h.blank == 0 && !c.has(flagAhead) {
			c.set(flagAhead)
		}
	case h.preface >= 0 && h.prefaceEnds(c, p), c.has(flagForeign):
	case state == connNew || int(h.blank) < len(p):
		c.begun()
	}
}

// countBlank notes how many CR and LF have come last.
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
// connection's beginning. What follows it there is HTTP/2 already.
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

// request notes that a request has come.
func (h *http1Conn) request(c *conn) {
	h.began, h.last, h.interim = false, false, false
	if c.has(flagAhead | flagGaveUp) {
		c.unset(flagAhead | flagGaveUp)
	}
}

// response notes that the response is out.
func (h *http1Conn) response() { h.deadlines = 0 }

// lastResponse notes that p is about to be written, or nil for what is not seen.
// It reports whether a final response begins with p that is to be the
// connection's last.
//
// net/http begins every response at the start of a Write: its buffer of 4 KiB is
// flushed behind each response, final or not (server.go). An interim header that
// is longer goes on in the next Writes, the last of which ends with it.
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

// writeFarewell writes p, in which a final response begins, and makes it say that
// the connection ends with it. It returns how much of p was written.
//
// Where p does not begin as a response does, nothing is said, and the connection
// ends as any other that is quiet.
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

// farewellIn reports whether the header of a final response begins with p, and
// what makes it say "Connection: close": field, in the place of the old bytes
// at p[at:]; field is empty if the header says it already.
//
// A header that does not end in p may go on to say keep-alive. Of the two, close
// counts (RFC 9112, section 9.6).
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

// isInterim reports whether a response begins with p that another one to the same
// request follows (1xx).
func isInterim(p []byte) bool {
	return isStatusLine(p) && p[9] == '1' && string(p[9:12]) != "101"
}

// lingerClose is how long the client of a connection that ends with unread bytes
// has to close it. It is net/http's rstAvoidanceDelay.
const lingerClose = 500 * time.Millisecond

// endLast ends a connection whose last response has said close. It is called from
// net/http's hook for StateIdle, on the goroutine that serves the connection, and
// does not return: the panic makes net/http close the connection, as it does
// after its own "Connection: close". io.EOF from the next Read would be too late:
// net/http may have further requests in its buffer, and those must not be served
// (RFC 9112, section 9.6).
//
// If the client has sent more, a close with that unread resets the connection, and
// the reset may overtake the response. So our side is closed first, and the client
// has some time to close its own. Nothing is read meanwhile: a handler that has
// enabled full duplex and left a body unread leaves a Read of net/http's behind.
func (h *http1Conn) endLast(c *conn) {
	if (c.has(flagAhead) || sock.Pending(c.raw)) && closeWrite(c.raw) == nil {
		const step = 5 * time.Millisecond
		for waited := time.Duration(0); waited < lingerClose && !sock.PeerClosed(c.raw); waited += step {
			time.Sleep(step)
		}
	}
	panic(http.ErrAbortHandler)
}
