package graceful

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// frame returns the bytes of an HTTP/2 frame.
func frame(kind, flags byte, stream uint32, payload ...byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// goAway returns a GOAWAY of net/http's.
func goAway(last uint32, code byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, last)
	return frame(frameGoAway, 0, 0, append(p, 0, 0, 0, code)...)
}

// A tapConn records what is written to it. It takes as many bytes at a time as
// accept says, and fails with a timeout when there were more.
type tapConn struct {
	net.Conn // nil: nothing else is called
	out      bytes.Buffer
	accept   func() int
	during   func() // called within Write
	incoming bytes.Buffer
	eof      bool // CloseWrite was called
}

func (t *tapConn) Write(p []byte) (int, error) {
	if t.during != nil {
		t.during()
	}
	if t.accept != nil {
		if n := t.accept(); n < len(p) {
			t.out.Write(p[:n])
			return n, os.ErrDeadlineExceeded
		}
	}
	return t.out.Write(p)
}

func (t *tapConn) Read(p []byte) (int, error) { return t.incoming.Read(p) }
func (t *tapConn) CloseWrite() error          { t.eof = true; return nil }
func (t *tapConn) Close() error               { return nil }

// insertedAt finds the announcement in out, which is otherwise in; -1 if it is
// not there.
func insertedAt(t *testing.T, in, out []byte) int {
	t.Helper()
	if bytes.Equal(in, out) {
		return -1
	}
	if len(out) != len(in)+len(announcement) {
		t.Fatalf("%d bytes out for %d in", len(out), len(in))
	}
	i := 0
	for i < len(in) && in[i] == out[i] {
		i++
	}
	// The frame behind it may begin as it does.
	for ; i >= 0; i-- {
		if bytes.HasPrefix(out[i:], announcement) && bytes.Equal(out[i+len(announcement):], in[i:]) {
			return i
		}
	}
	t.Fatalf("out is not in and an announcement:\n%s", cmp.Diff(in, out))
	return 0
}

// boundaries returns where another frame may stand in a sequence of whole
// frames, by reading RFC 9113 a second time; and where the first GOAWAY begins,
// or the length of b.
func boundaries(b []byte) (at map[int]bool, goAwayAt int) {
	at, goAwayAt = make(map[int]bool), len(b)
	for i := 0; i < len(b); {
		size := int(b[i])<<16 | int(b[i+1])<<8 | int(b[i+2])
		kind, flags := b[i+3], b[i+4]
		if kind == frameGoAway && goAwayAt == len(b) {
			goAwayAt = i
		}
		i += 9 + size
		unfinished := (kind == frameHeaders || kind == framePushPromise) && flags&flagEndHeaders == 0
		for unfinished && i < len(b) {
			size = int(b[i])<<16 | int(b[i+1])<<8 | int(b[i+2])
			unfinished = b[i+4]&flagEndHeaders == 0
			i += 9 + size
		}
		if !unfinished {
			at[i] = true
		}
	}
	return at, goAwayAt
}

// framesFrom makes frames that a server might send out of arbitrary bytes.
func framesFrom(data []byte) []byte {
	next := func() byte {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return b
	}
	out := frame(frameSettings, 0, 0, bytes.Repeat([]byte{7}, 6*int(next()%4))...)
	for len(data) > 0 {
		kind := next() % 10
		flags := next()
		size := int(next())
		if size > 250 {
			size = (size - 250) * 5000 // larger than any buffer
		}
		stream := uint32(next())
		switch kind {
		case frameContinuation:
			kind = frameData
		case frameGoAway:
			out = append(out, goAway(stream, flags)...)
			continue
		}
		out = append(out, frame(kind, flags, stream, make([]byte, size)...)...)
		if kind == frameHeaders || kind == framePushPromise {
			for flags&flagEndHeaders == 0 {
				flags = next()
				if len(data) == 0 {
					flags = flagEndHeaders
				}
				out = append(out, frame(frameContinuation, flags, stream, make([]byte, int(next()))...)...)
			}
		}
	}
	return out
}

// FuzzHTTP2Conn writes frames in pieces of any size to a connection that takes
// them in pieces of any size, and announces at any moment: between two writes
// or within one. What comes out is what went in and one announcement, in a
// place where a frame may be, behind the SETTINGS and before any GOAWAY.
func FuzzHTTP2Conn(f *testing.F) {
	f.Add([]byte{1, 0, 1, 5, 1, 9, 0, 0, 3}, []byte{3, 9, 1}, uint8(1), true)
	f.Add([]byte{0, 1, 0, 20, 1, 0, 30, 4, 9, 7, 0, 1, 0, 6, 0, 8, 0}, []byte{200, 8}, uint8(2), false)
	f.Add([]byte{2, 0, 1, 255, 1, 1, 4, 3, 3, 7, 0, 0, 3, 0, 1, 1, 1}, []byte{}, uint8(0), true)
	f.Add([]byte{}, []byte{1}, uint8(4), false)
	f.Fuzz(func(t *testing.T, data, cuts []byte, when uint8, within bool) {
		if len(data) > 400 {
			t.Skip() // large enough is large enough
		}
		in := framesFrom(data)
		i := 0
		cut := func() int {
			if len(cuts) == 0 {
				return len(in)
			}
			n := int(cuts[i%len(cuts)])
			i++
			if n > 200 {
				n *= 100
			}
			return n
		}
		tap := &tapConn{accept: func() int { return max(cut(), i%2) }}
		c := newHTTP2Conn(tap)
		written := 0 // by announce's time
		announce := func() {
			written = tap.out.Len()
			c.announce()
			synctest.Wait() // a connection that is quiet is told at once
		}
		synctest.Test(t, func(t *testing.T) {
			pieces := 0
			if when == 0 {
				announce()
			}
			for rest := in; len(rest) > 0; {
				piece := rest[:min(max(cut(), 1), len(rest))]
				rest = rest[len(piece):]
				pieces++
				now := pieces == int(when)
				if now && within {
					tap.during = func() { tap.during = nil; announce() }
				}
				for len(piece) > 0 { // as net/http does after a timeout
					n, _ := c.Write(piece)
					piece = piece[n:]
				}
				if now && !within {
					announce()
				}
			}
			if int(when) > pieces {
				announce()
			}
			for range 100 { // what a timeout has cut goes out with the next write
				c.Write(nil)
			}
			if !c.out.boundary() || len(c.rest) > 0 {
				t.Fatalf("ends within a frame: %+v", c.out)
			}
		})
		at, goAwayAt := boundaries(in)
		switch place := insertedAt(t, in, tap.out.Bytes()); {
		case place >= 0:
			if !at[place] || place > goAwayAt || place < written && !within {
				t.Fatalf("announced at %d, which is no place for it; GOAWAY at %d, asked at %d", place, goAwayAt, written)
			}
		case goAwayAt == len(in):
			t.Fatal("not announced")
		}
	})
}

// TestHTTP2StreamsFollowed feeds both directions and looks which streams are
// taken to be open.
func TestHTTP2StreamsFollowed(t *testing.T) {
	const client, server = true, false
	type step struct {
		from  bool
		frame []byte
		open  int
	}
	end := byte(flagEndStream | flagEndHeaders)
	for name, steps := range map[string][]step{
		"request and response": {
			{client, frame(frameHeaders, end, 1), 1},
			{server, frame(frameHeaders, flagEndHeaders, 1), 1},
			{server, frame(frameData, 0, 1, 1, 2, 3), 1},
			{server, frame(frameData, flagEndStream, 1), 0},
		},
		"with bodies and trailers": {
			{client, frame(frameHeaders, flagEndHeaders, 1), 1},
			{client, frame(frameData, 0, 1, 1), 1},
			{client, frame(frameHeaders, end, 1), 1},
			{server, frame(frameHeaders, flagEndHeaders, 1), 1},
			{server, frame(frameHeaders, end, 1), 0},
		},
		"a header block in pieces ends with the last": {
			{client, frame(frameHeaders, end, 1), 1},
			{server, frame(frameHeaders, flagEndStream, 1), 1},
			{server, frame(frameContinuation, flagEndHeaders, 1), 0},
		},
		"an answer before the request's end": {
			{client, frame(frameHeaders, flagEndHeaders, 1), 1},
			{server, frame(frameHeaders, end, 1), 1},
			{server, frame(frameRSTStream, 0, 1, 0, 0, 0, 0), 0},
			{client, frame(frameData, flagEndStream, 1), 0},
		},
		"reset by the client": {
			{client, frame(frameHeaders, flagEndHeaders, 1), 1},
			{client, frame(frameHeaders, end, 3), 2},
			{client, frame(frameRSTStream, 0, 1, 0, 0, 0, 8), 1},
		},
		"push": {
			{client, frame(frameHeaders, end, 1), 1},
			{server, frame(framePushPromise, flagEndHeaders, 1, 0, 0, 0, 2), 2},
			{server, frame(frameHeaders, end, 1), 1},
			{server, frame(frameHeaders, end, 2), 0},
		},
		"beyond the final GOAWAY": {
			{client, frame(frameHeaders, end, 1), 1},
			{client, frame(frameHeaders, end, 3), 2},
			{server, goAway(1, 0), 1},
			{client, frame(frameHeaders, end, 5), 1},
			{server, frame(frameHeaders, end, 1), 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tap := new(tapConn)
			c := newHTTP2Conn(tap)
			for i, s := range steps {
				if s.from == client {
					tap.incoming.Write(s.frame)
					for b := make([]byte, 1); tap.incoming.Len() > 0; {
						c.Read(b)
					}
				} else {
					c.Write(s.frame)
				}
				if n := c.streamCount(); n != s.open {
					t.Errorf("after step %d: %d streams open, want %d", i, n, s.open)
				}
			}
		})
	}
}

// TestHTTP2AnnounceDoesNotWait: a peer that reads nothing holds up a write for
// as long as it likes, but not whoever announces.
func TestHTTP2AnnounceDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, nc := net.Pipe()
		c := newHTTP2Conn(nc)
		go c.Write(frame(frameSettings, 0, 0))
		synctest.Wait() // blocked

		began := time.Now()
		c.announce()
		if d := time.Since(began); d != 0 {
			t.Errorf("announce took %v", d)
		}
		buf := make([]byte, 100)
		n, _ := peer.Read(buf)
		m, _ := peer.Read(buf[n:])
		want := concat(frame(frameSettings, 0, 0), announcement)
		if diff := cmp.Diff(want, buf[:n+m]); diff != "" {
			t.Error(diff)
		}
		peer.Close()
		nc.Close()
	})
}

// TestHTTP2EndsWithTheLastStream: net/http waits for a second after its GOAWAY
// and the last stream.
func TestHTTP2EndsWithTheLastStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tap := new(tapConn)
		c := newHTTP2Conn(tap)
		c.Write(frame(frameSettings, 0, 0))
		tap.incoming.Write(frame(frameHeaders, flagEndStream|flagEndHeaders, 1))
		c.Read(make([]byte, 100))
		c.finish()
		c.Write(goAway(1, 0))
		synctest.Wait()
		if tap.eof {
			t.Fatal("closed with a stream open")
		}
		c.Write(frame(frameHeaders, flagEndStream|flagEndHeaders, 1))
		synctest.Wait()
		if !tap.eof {
			t.Error("not closed when the last stream ended")
		}
		// What comes too late is of no use, and no error either.
		sent := tap.out.Len()
		if n, err := c.Write(frame(framePing, flagAck, 0, make([]byte, 8)...)); n != 17 || err != nil || tap.out.Len() != sent {
			t.Errorf("Write after the end: %d, %v, and %d bytes came out", n, err, tap.out.Len()-sent)
		}
		c.stop()
	})
}
