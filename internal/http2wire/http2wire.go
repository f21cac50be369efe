// Package http2wire follows the frames of an HTTP/2 connection: where another frame
// may be inserted, and which streams are open. It has the two GOAWAY frames with
// which a server shuts a connection down (RFC 9113, section 6.8). It does no I/O
// and does not depend on net/http.
package http2wire

import "encoding/binary"

// Preface is what an HTTP/2 client sends first (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// A FrameType is the type of a frame (RFC 9113, section 6).
type FrameType byte

// The types of frames that this package interprets.
const (
	Data         FrameType = 0x0
	Headers      FrameType = 0x1
	RSTStream    FrameType = 0x3
	Settings     FrameType = 0x4
	PushPromise  FrameType = 0x5
	Ping         FrameType = 0x6
	GoAway       FrameType = 0x7
	Continuation FrameType = 0x9
)

// Flags are the flags of a frame. What a bit means depends on the frame's type.
type Flags byte

const (
	EndStream  Flags = 0x1 // on Data and Headers
	Ack        Flags = 0x1 // on Settings and Ping
	EndHeaders Flags = 0x4 // on Headers, PushPromise and Continuation
)

const (
	headerLen   = 9
	maxStreamID = 1<<31 - 1
)

// Announcement is a GOAWAY whose last stream is 2^31-1, followed by a PING. The
// GOAWAY asks the client to open no more streams; streams that the client opens
// nevertheless are served. A client handles the two frames in order, so its
// acknowledgement of the PING comes after the last stream that it opens.
var Announcement = []byte("" +
	"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x7f\xff\xff\xff" + "\x00\x00\x00\x00" +
	"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + pingData)

const pingData = "graceful" // the payload of a PING has 8 bytes

// FinalGoAway returns a GOAWAY with the last stream that is served.
func FinalGoAway(last uint32) []byte {
	b := []byte("\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00")
	binary.BigEndian.PutUint32(b[headerLen:], last)
	return b
}

// A Cursor follows the frames of one direction of a connection, which is read or
// written in pieces of any size. The zero Cursor is before the first frame.
type Cursor struct {
	// The header and the first 8 bytes of the payload of the current frame or,
	// between two frames, of the last one.
	buf  [headerLen + 8]byte
	kept int // how many bytes of that payload are in buf

	have  int  // how many bytes of the header were seen; 0 between frames
	left  int  // how many bytes of the payload are still to come
	block bool // a header block has begun and needs a CONTINUATION
	skip  int  // how many bytes to skip before the next frame
}

// Advance moves the cursor through p, but not beyond the end of the current frame.
// It returns how many bytes of p it consumed, and whether the frame ended there. If
// so, the other methods describe that frame until the next Advance.
func (c *Cursor) Advance(p []byte) (n int, ended bool) {
	if c.skip > 0 {
		n = min(c.skip, len(p))
		c.skip -= n
		return n, false
	}
	if c.have < headerLen {
		n = copy(c.buf[c.have:headerLen], p)
		c.have += n
		if c.have < headerLen {
			return n, false
		}
		c.left = int(c.buf[0])<<16 | int(c.buf[1])<<8 | int(c.buf[2])
		c.kept = 0
	}
	k := min(len(p)-n, c.left)
	if c.kept < len(c.buf)-headerLen {
		c.kept += copy(c.buf[headerLen+c.kept:], p[n:n+k])
	}
	c.left -= k
	n += k
	if c.left > 0 {
		return n, false
	}
	c.have = 0
	switch c.Type() {
	case Headers, PushPromise, Continuation:
		c.block = c.Flags()&EndHeaders == 0
	}
	return n, true
}

// Skip makes the cursor skip the next n bytes, which are not part of a frame.
func (c *Cursor) Skip(n int) { c.skip = n }

// Boundary reports whether another frame may be inserted here: between two frames,
// but not within a header block (RFC 9113, section 4.3).
func (c *Cursor) Boundary() bool { return c.have == 0 && !c.block }

// ToBoundary returns how many bytes of p come before the next boundary, and len(p)
// if there is no boundary in p. It does not move the cursor.
func (c *Cursor) ToBoundary(p []byte) int {
	ahead := *c
	n := 0
	for n < len(p) && !ahead.Boundary() {
		k, _ := ahead.Advance(p[n:])
		n += k
	}
	return n
}

// Type returns the type of the frame.
func (c *Cursor) Type() FrameType { return FrameType(c.buf[3]) }

// Flags returns the flags of the frame.
func (c *Cursor) Flags() Flags { return Flags(c.buf[4]) }

// Stream returns the identifier of the frame's stream.
func (c *Cursor) Stream() uint32 {
	return binary.BigEndian.Uint32(c.buf[5:]) & maxStreamID
}

// AnnouncementAck reports whether the frame is the client's acknowledgement of
// the PING in Announcement.
func (c *Cursor) AnnouncementAck() bool {
	return c.Type() == Ping && c.Flags()&Ack != 0 && string(c.buf[headerLen:headerLen+c.kept]) == pingData
}

// word returns the i-th 32-bit word of the payload, i being 0 or 1.
func (c *Cursor) word(i int) uint32 {
	if c.kept < 4*(i+1) {
		return 0
	}
	return binary.BigEndian.Uint32(c.buf[headerLen+4*i:])
}
