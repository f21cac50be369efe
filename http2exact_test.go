package graceful

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"testing/synctest"
)

// A sent frame of TestHTTP2ExactPlace. That no other may follow it is said
// here, by hand, and not read off its bytes: what is tested must not judge.
type sentFrame struct {
	bytes []byte
	open  bool // a header block goes on in the next frame
}

// exactStreams are what servers may send, with everything in it that a follower
// could take for something else.
func exactStreams() map[string][]sentFrame {
	const end = flagEndHeaders
	settings := sentFrame{frame(frameSettings, 0, 0, 0, 3, 0, 0, 0, 9), false}
	whole := func(kind, flags byte, payload ...byte) sentFrame {
		return sentFrame{frame(kind, flags, 1, payload...), false}
	}
	begun := func(kind, flags byte, payload ...byte) sentFrame {
		return sentFrame{frame(kind, flags, 1, payload...), true}
	}
	return map[string][]sentFrame{
		"header blocks in pieces": {
			settings,
			begun(frameHeaders, flagEndStream, 1, 2), begun(frameContinuation, 0), begun(frameContinuation, flagEndStream, 3), whole(frameContinuation, end, 4),
			whole(frameHeaders, end, 1), begun(frameHeaders, 0), whole(frameContinuation, end),
		},
		"promises in pieces": {
			settings,
			begun(framePushPromise, 0, 0, 0, 0, 2, 1), whole(frameContinuation, end, 1),
			whole(framePushPromise, end, 0, 0, 0, 4), begun(framePushPromise, 0, 0, 0, 0, 6), begun(frameContinuation, 0, 5), whole(frameContinuation, end),
			whole(frameHeaders, end|flagEndStream),
		},
		"what opens no header block": {
			{frame(frameSettings, 0, 0), false}, {frame(frameSettings, flagAck, 0), false},
			whole(frameHeaders, end, 7), whole(frameData, 0, 1, 2, 3), whole(frameData, 0), whole(frameData, flagEndStream, 9),
			whole(frameRSTStream, 0, 0, 0, 0, 8), whole(framePing, flagAck, []byte(pingData)...),
			whole(0x8, 0, 0, 0, 1, 0), whole(0xfe, 0xff, 1),
		},
		"data that looks like frames": {
			settings, whole(frameHeaders, end),
			whole(frameData, 0, concat(frame(frameHeaders, 0, 1, 1), goAway(1, 0))...), whole(frameData, flagEndStream, announcement...),
		},
		"lengths of three bytes": {
			settings, whole(frameHeaders, end),
			whole(frameData, 0, make([]byte, 0x010203)...), whole(frameData, 0, make([]byte, 0x0102)...), whole(frameData, flagEndStream),
		},
		"net/http's GOAWAY": {
			settings, whole(frameHeaders, end), {goAway(1, 0), false}, whole(frameData, flagEndStream, 1), {goAway(1, 0), false},
		},
	}
}

// TestHTTP2ExactPlace cuts what a server sends in every place, by the caller's
// writes and by deadlines, and announces in every place, between two writes and
// within one. The announcement comes out in the first place that RFC 9113 allows
// from there on, never behind another GOAWAY, and in one piece; where that is
// and nothing is being written, at once.
func TestHTTP2ExactPlace(t *testing.T) {
	for name, frames := range exactStreams() {
		t.Run(name, func(t *testing.T) {
			x := newExact(frames)
			synctest.Test(t, func(t *testing.T) {
				for i, a := range x.places {
					x.play(t, exactRun{announce: a, pieces: []int{a}})
					x.play(t, exactRun{announce: a, pieces: x.places})
					x.play(t, exactRun{announce: a, deadlines: []int{a}})
					x.play(t, exactRun{announce: a, deadlines: x.places})
					if a > 0 {
						x.play(t, exactRun{announce: a, within: true, pieces: []int{a}})
						x.play(t, exactRun{announce: a, within: true, pieces: x.places})
					}
					if len(x.in) > 1000 {
						continue // so many bytes so many times take seconds
					}
					for _, next := range x.places[i+1:] {
						x.play(t, exactRun{announce: a, pieces: []int{a, next}})
						x.play(t, exactRun{announce: a, pieces: []int{a}, deadlines: []int{next}})
					}
				}
				// The announcement is cut itself, everywhere, twice.
				for _, place := range x.ends {
					for k := range len(announcement) {
						at := []int{place + k, place + (k+len(announcement))/2}
						x.play(t, exactRun{announce: place, pieces: []int{place}, deadlines: at})
						x.play(t, exactRun{announce: place - 1, pieces: []int{place - 1}, deadlines: at})
					}
				}
			})
		})
	}
}

// exact is a sequence of frames and the places in it.
type exact struct {
	in       []byte
	ends     []int // where another frame may stand
	goAwayAt int   // where the first GOAWAY begins
	places   []int // to cut and to announce: all but the inside of large payloads
}

func newExact(frames []sentFrame) *exact {
	x := &exact{goAwayAt: -1}
	for _, f := range frames {
		if f.bytes[3] == frameGoAway && x.goAwayAt < 0 {
			x.goAwayAt = len(x.in)
		}
		for i := range f.bytes {
			if i <= 20 || i >= len(f.bytes)-3 {
				x.places = append(x.places, len(x.in)+i)
			}
		}
		x.in = append(x.in, f.bytes...)
		if !f.open {
			x.ends = append(x.ends, len(x.in))
		}
	}
	x.places = append(x.places, len(x.in))
	if x.goAwayAt < 0 {
		x.goAwayAt = len(x.in)
	}
	return x
}

// An exactRun says how a sequence is written. Its places are offsets.
type exactRun struct {
	announce  int   // made when so much has been written
	within    bool  // made while the Write that gets there is under way
	pieces    []int // where the caller begins another Write
	deadlines []int // where what has come out is cut by a deadline, once each
}

// play writes x.in as r says, and compares.
func (x *exact) play(t *testing.T, r exactRun) {
	tap := new(tapConn)
	deadlines := r.deadlines
	tap.accept = func() int {
		if len(deadlines) > 0 && deadlines[0] >= tap.out.Len() {
			return deadlines[0] - tap.out.Len()
		}
		return len(x.in) + len(announcement)
	}
	c := newHTTP2Conn(tap)

	place := -1 // where the announcement is to be; -1: nowhere
	if i, _ := slices.BinarySearch(x.ends, r.announce); i < len(x.ends) && x.ends[i] <= x.goAwayAt {
		place = x.ends[i]
	}
	told := false
	announce := func(written int) {
		if told || r.within || written < r.announce {
			return
		}
		told = true
		c.announce()
		synctest.Wait()
		if n := tap.out.Len(); place == written && len(deadlines) == 0 && n != written+len(announcement) {
			t.Fatalf("%+v: announced on a quiet connection, but %d bytes are out", r, n)
		}
	}
	written := 0
	write := func(p []byte) {
		if r.within && !told && written+len(p) >= r.announce && len(p) > 0 {
			told = true
			tap.during = func() { tap.during = nil; c.announce() }
		}
		for {
			n, err := c.Write(p)
			written += n
			p = p[n:]
			if err == nil {
				if len(p) > 0 {
					t.Fatalf("%+v: a short write without an error", r)
				}
				return
			}
			if err != os.ErrDeadlineExceeded || len(deadlines) == 0 {
				t.Fatalf("%+v: %v", r, err)
			}
			deadlines = deadlines[1:]
			announce(written)
		}
	}
	announce(0)
	from := 0
	for _, to := range append(slices.Clone(r.pieces), len(x.in)) {
		if to < from {
			continue
		}
		write(x.in[from:to])
		from = to
		announce(written)
	}
	// What a deadline has cut of the announcement goes out with the next write.
	for range 3 {
		for len(deadlines) > 0 && deadlines[0] <= tap.out.Len() {
			deadlines = deadlines[1:]
		}
		c.Write(nil)
	}
	want := x.in
	if place >= 0 {
		want = concat(x.in[:place], announcement, x.in[place:])
	}
	if got := tap.out.Bytes(); !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Fatalf("%+v: want the announcement at %d; %d bytes came out in place of %d, and differ from %d on", r, place, len(got), len(want), i)
	}
}
