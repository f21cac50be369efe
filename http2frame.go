package graceful

import "encoding/binary"

// The parts of HTTP/2's framing (RFC 9113, sections 4 and 6) that matter to
// someone who only looks on.
const (
	frameHeaderLen = 9

	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameContinuation = 0x9

	flagEndStream  = 0x1 // on DATA and HEADERS
	flagAck        = 0x1 // on PING
	flagEndHeaders = 0x4 // on HEADERS, PUSH_PROMISE and CONTINUATION

	maxStreamID = 1<<31 - 1
)

// announcement is the first of the two GOAWAYs of RFC 9113, section 6.8 (last
// stream 2^31-1, NO_ERROR: it says "open no more streams" and takes none away)
// and a PING. A client handles them in that order, and answers the PING after
// the last stream that it has opened: one round trip, measured, not guessed.
var announcement = []byte("" +
	"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x7f\xff\xff\xff" + "\x00\x00\x00\x00" +
	"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + pingData)

const pingData = "graceful" // a PING carries 8 bytes

// clientPreface is what an HTTP/2 client says first (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// A frameCursor follows the frames of one direction of an HTTP/2 connection
// through pieces of any size. The zero cursor stands before the first frame.
type frameCursor struct {
	// The frame that the cursor is in or, once that has ended, the one that
	// it has just passed: its header and the first 8 bytes of its payload.
	buf  [frameHeaderLen + 8]byte
	kept int // how much of that payload is in buf

	have  int  // header bytes seen, 9 within the payload, 0 between frames
	left  int  // payload bytes still to come
	block bool // a header block has begun and needs a CONTINUATION
}

// advance moves the cursor through p, but not beyond the end of the frame that
// it is in. It returns how far it went and whether that frame ended there; then
// kind, flags, stream and word tell about it until the next advance.
func (f *frameCursor) advance(p []byte) (n int, ended bool) {
	if f.have < frameHeaderLen {
		n = copy(f.buf[f.have:frameHeaderLen], p)
		f.have += n
		if f.have < frameHeaderLen {
			return n, false
		}
		f.left = int(f.buf[0])<<16 | int(f.buf[1])<<8 | int(f.buf[2])
		f.kept = 0
	}
	k := min(len(p)-n, f.left)
	if f.kept < len(f.buf)-frameHeaderLen {
		f.kept += copy(f.buf[frameHeaderLen+f.kept:], p[n:n+k])
	}
	f.left -= k
	n += k
	if f.left > 0 {
		return n, false
	}
	f.have = 0
	switch f.kind() {
	case frameHeaders, framePushPromise, frameContinuation:
		f.block = f.flags()&flagEndHeaders == 0
	}
	return n, true
}

// boundary reports whether another frame may be put in where the cursor is:
// between two frames, and not within a header block, which RFC 9113, section
// 4.3 wants in one piece.
func (f *frameCursor) boundary() bool { return f.have == 0 && !f.block }

// toBoundary returns how many bytes of p it takes to reach a boundary, and
// len(p) if there is none in it. It does not move the cursor.
func (f *frameCursor) toBoundary(p []byte) int {
	c := *f
	n := 0
	for n < len(p) && !c.boundary() {
		k, _ := c.advance(p[n:])
		n += k
	}
	return n
}

func (f *frameCursor) kind() byte  { return f.buf[3] }
func (f *frameCursor) flags() byte { return f.buf[4] }

func (f *frameCursor) stream() uint32 {
	return binary.BigEndian.Uint32(f.buf[5:]) & maxStreamID
}

// payload returns the beginning of the payload, up to 8 bytes.
func (f *frameCursor) payload() []byte {
	return f.buf[frameHeaderLen : frameHeaderLen+f.kept]
}

// word returns the i-th 32-bit word of the payload, i being 0 or 1.
func (f *frameCursor) word(i int) uint32 {
	if f.kept < 4*(i+1) {
		return 0
	}
	return binary.BigEndian.Uint32(f.buf[frameHeaderLen+4*i:])
}
