package graceful

import (
	"bytes"
	"testing"
	"testing/synctest"
)

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
	t.Fatal("what came out is not what went in and an announcement in one piece")
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
	// A header block in three pieces, a promise in two and data, byte by byte,
	// announced behind each.
	blocks := []byte{0, 1, 0, 5, 1, 0, 3, 4, 2, 5, 0, 6, 1, 4, 1, 0, 1, 7, 1}
	for when := range uint8(len(framesFrom(blocks))) {
		f.Add(blocks, []byte{1}, when, when%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data, cuts []byte, when uint8, within bool) {
		if len(data) > 400 {
			t.Skip() // large enough is large enough
		}
		in := framesFrom(data)
		if len(in) > 100_000 {
			// 2.5 MB can come of 400 bytes. Byte by byte, under the race
			// detector, that takes 5 s, which looks like a hang.
			t.Skip()
		}
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
