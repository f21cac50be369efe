package graceful

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful/internal/http2wire"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// The types and flags of frames, as bytes.
const (
	frameData         = byte(http2wire.Data)
	frameHeaders      = byte(http2wire.Headers)
	frameRSTStream    = byte(http2wire.RSTStream)
	frameSettings     = byte(http2wire.Settings)
	framePushPromise  = byte(http2wire.PushPromise)
	framePing         = byte(http2wire.Ping)
	frameGoAway       = byte(http2wire.GoAway)
	frameContinuation = byte(http2wire.Continuation)

	flagEndStream  = byte(http2wire.EndStream)
	flagAck        = byte(http2wire.Ack)
	flagEndHeaders = byte(http2wire.EndHeaders)
)

var announcement = http2wire.Announcement

const pingData = "graceful" // of the announcement's PING

// A followed is a connection that speaks HTTP/2, as its server reads and writes
// it, without a server.
type followed struct{ *http2Conn }

// follow has nc followed from behind the client's preface. grace is the least
// time between the two GOAWAYs.
func follow(nc net.Conn, grace time.Duration) followed {
	_, c := track(newManager(drainRules{grace: grace}), nc, nil, nil)
	return followed{c.followHTTP2(true)}
}

func (f followed) Read(p []byte) (int, error)  { return f.c.Read(p) }
func (f followed) Write(p []byte) (int, error) { return f.c.Write(p) }

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

func (t *tapConn) SetWriteDeadline(time.Time) error { return nil }

// A clocked is a connection that notes when its final GOAWAY comes out and when
// it is closed.
type clocked struct {
	tapConn
	began time.Time

	mu     sync.Mutex // guards what follows
	final  time.Duration
	closed time.Duration
}

func (c *clocked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 17 && p[3] == frameGoAway {
		c.final = time.Since(c.began)
	}
	return c.tapConn.Write(p)
}

func (c *clocked) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == 0 {
		c.closed = time.Since(c.began)
	}
	return nil
}

// TestHTTP2Farewell plays a client that never closes, and looks when the final
// GOAWAY comes and when the connection is cut, to the nanosecond. 0 is never.
func TestHTTP2Farewell(t *testing.T) {
	const (
		ms    = time.Millisecond
		grace = 100 * ms
		deaf  = http2AckWait + http2UnackedLinger
	)
	settings := frame(frameSettings, 0, 0)
	request := frame(frameHeaders, flagEndStream|flagEndHeaders, 1)
	half := frame(frameHeaders, flagEndStream, 1)
	reset := frame(frameRSTStream, 0, 1, 0, 0, 0, 8)
	ack := frame(framePing, flagAck, 0, []byte(pingData)...)
	for name, tc := range map[string]struct {
		play          func(f followed, read func([]byte))
		final, closed time.Duration
	}{
		"deaf": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.leave()
		}, http2AckWait, deaf},
		"acknowledged within the grace": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.leave()
			time.Sleep(30 * ms)
			read(ack)
		}, grace, grace + http2Linger},
		"acknowledged after the grace": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.leave()
			time.Sleep(700 * ms)
			read(ack)
		}, 700 * ms, 700*ms + http2Linger},
		"with the end of the last stream": {func(f followed, read func([]byte)) {
			f.Write(settings)
			read(request)
			f.leave()
			time.Sleep(0)
			read(ack)
			time.Sleep(5 * time.Second)
			read(reset)
		}, 5 * time.Second, 5*time.Second + http2Linger},
		"deaf, with the end of the last stream": {func(f followed, read func([]byte)) {
			f.Write(settings)
			read(request)
			f.leave()
			time.Sleep(5 * time.Second)
			read(reset)
		}, 5 * time.Second, 5*time.Second + http2UnackedLinger},
		"a stream that crosses the first GOAWAY": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.leave()
			time.Sleep(50 * ms)
			read(concat(request, ack))
			time.Sleep(time.Second)
			read(reset)
		}, 1050 * ms, 1050*ms + http2Linger},
		"half a header block is no stream": {func(f followed, read func([]byte)) {
			f.Write(settings)
			read(half)
			f.leave()
		}, http2AckWait, deaf},
		"never with a stream": {func(f followed, read func([]byte)) {
			f.Write(settings)
			read(request)
			f.leave()
			read(ack)
		}, 0, 0},
		"SETTINGS that come late": {func(f followed, read func([]byte)) {
			f.leave()
			time.Sleep(300 * ms)
			f.Write(settings)
			read(ack)
		}, 400 * ms, 400*ms + http2Linger},
		"no SETTINGS": {func(f followed, read func([]byte)) { f.leave() }, 0, deaf},
		"the server was first": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.Write(goAway(0, 0))
			f.leave()
		}, 0, grace + http2Linger},
		"not asked to leave": {func(f followed, read func([]byte)) {
			f.Write(settings)
			read(ack)
		}, 0, 0},
		"closed by the server": {func(f followed, read func([]byte)) {
			f.Write(settings)
			f.leave()
			read(ack)
			f.stop()
		}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nc := &clocked{began: time.Now()}
				f := follow(nc, grace)
				tc.play(f, func(b []byte) {
					synctest.Wait()
					nc.incoming.Write(b)
					f.Read(make([]byte, len(b)))
				})
				time.Sleep(time.Minute)
				nc.mu.Lock()
				defer nc.mu.Unlock()
				if name == "the server was first" {
					nc.final = 0 // that was the server's
				}
				if nc.final != tc.final || nc.closed != tc.closed {
					t.Errorf("final GOAWAY at %v, want %v; closed at %v, want %v", nc.final, tc.final, nc.closed, tc.closed)
				}
				f.stop()
			})
		})
	}
}

// TestHTTP2StuckWriter: a client that does not read keeps every writer from
// writing, the farewell's as well. The connection is cut all the same, and not
// later.
func TestHTTP2StuckWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, nc := net.Pipe()
		defer peer.Close()
		f := follow(nc, 0)
		written := make(chan error, 1)
		go func() {
			_, err := f.Write(frame(frameSettings, 0, 0))
			written <- err
		}()
		synctest.Wait()
		began := time.Now()
		f.leave()
		if d := time.Since(began); d != 0 {
			t.Errorf("leave took %v", d)
		}
		if err := <-written; err == nil {
			t.Error("the write succeeded")
		}
		if d := time.Since(began); d != http2AckWait+http2UnackedLinger {
			t.Errorf("cut after %v", d)
		}
		f.stop()
	})
}

// TestHTTP2AnnounceBehindAWrite: the announcement follows the write that is in
// progress.
func TestHTTP2AnnounceBehindAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, nc := net.Pipe()
		f := follow(nc, time.Hour)
		go f.Write(frame(frameSettings, 0, 0))
		synctest.Wait() // blocked
		f.leave()
		buf := make([]byte, 100)
		n, _ := peer.Read(buf)
		m, _ := peer.Read(buf[n:])
		want := concat(frame(frameSettings, 0, 0), announcement)
		if diff := cmp.Diff(want, buf[:n+m]); diff != "" {
			t.Error(diff)
		}
		peer.Close()
		nc.Close()
		f.stop()
	})
}

// TestHTTP2AfterTheEnd: once the final GOAWAY has named the last stream, nothing
// reaches the server, and nothing of the server's goes out.
func TestHTTP2AfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tap := new(tapConn)
		f := follow(tap, 0)
		buf := make([]byte, 100)
		f.Write(frame(frameSettings, 0, 0))
		tap.incoming.Write(concat(frame(frameHeaders, flagEndStream|flagEndHeaders, 1), frame(framePing, flagAck, 0, []byte(pingData)...)))
		f.Read(buf)
		f.leave()
		synctest.Wait()
		tap.incoming.Write(frame(framePing, flagAck, 0, []byte(pingData)...))
		f.Read(buf)
		if tap.eof {
			t.Fatal("closed with a stream open")
		}
		f.Write(frame(frameHeaders, flagEndStream|flagEndHeaders, 1))
		synctest.Wait()
		if !tap.eof || !bytes.HasSuffix(tap.out.Bytes(), http2wire.FinalGoAway(1)) {
			t.Fatalf("closed: %v; the last bytes are %q", tap.eof, tap.out.Bytes())
		}
		// What comes too late is of no use, and no error either.
		sent := tap.out.Len()
		if n, err := f.Write(frame(framePing, flagAck, 0, make([]byte, 8)...)); n != 17 || err != nil || tap.out.Len() != sent {
			t.Errorf("Write after the end: %d, %v, and %d bytes came out", n, err, tap.out.Len()-sent)
		}
		tap.incoming.Write(frame(frameHeaders, flagEndStream|flagEndHeaders, 3))
		if n, err := f.Read(buf); n != 0 || err == nil {
			t.Errorf("the server was shown %q, %v", buf[:n], err)
		}
		f.stop()
	})
}

// TestHTTP2EndsBetweenFrames: the last stream may end by the client's doing while
// a frame is half written. Our side is not closed before the rest of it is out.
func TestHTTP2EndsBetweenFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tap := new(tapConn)
		f := follow(tap, 0)
		f.Write(frame(frameSettings, 0, 0))
		tap.incoming.Write(concat(
			frame(frameHeaders, flagEndHeaders, 1),
			frame(framePing, flagAck, 0, []byte(pingData)...),
			frame(frameRSTStream, 0, 1, 0, 0, 0, 8)))
		f.Read(make([]byte, 9))
		f.leave()
		synctest.Wait()
		f.Read(make([]byte, 17))
		ping := frame(framePing, flagAck, 0, make([]byte, 8)...)
		f.Write(ping[:10])
		f.Read(make([]byte, 13))
		synctest.Wait()
		if f.streams.Open() != 0 || tap.eof {
			t.Fatalf("%d streams; closed within a frame: %v", f.streams.Open(), tap.eof)
		}
		f.Write(ping[10:])
		synctest.Wait()
		if !tap.eof {
			t.Error("not closed behind the frame")
		}
		f.stop()
	})
}

// TestHTTP2CutOverTLS: a *tls.Conn would try for 5 s to write an alert to a client
// that does not read.
func TestHTTP2CutOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, server := net.Pipe()
		config, trust := traffic.ServerTLS(), traffic.ClientTLS()
		config.SessionTicketsDisabled, trust.ServerName = true, "localhost"
		tc := tls.Server(server, config)
		done := make(chan error, 1)
		go func() { done <- tls.Client(peer, trust).Handshake() }()
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		f := follow(tc, 0)
		began := time.Now()
		f.leave()
		for b := make([]byte, 100); ; {
			if _, err := peer.Read(b); err != nil {
				break
			}
		}
		if d := time.Since(began); d != http2AckWait+http2UnackedLinger {
			t.Errorf("closed after %v", d)
		}
		f.stop()
	})
}

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
	c := follow(tap, maxGrace)

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
		c.leave()
		synctest.Wait()
		if n := tap.out.Len(); place == written && len(deadlines) == 0 && n != written+len(announcement) {
			t.Fatalf("%+v: announced on a quiet connection, but %d bytes are out", r, n)
		}
	}
	written := 0
	write := func(p []byte) {
		if r.within && !told && written+len(p) >= r.announce && len(p) > 0 {
			told = true
			tap.during = func() { tap.during = nil; c.leave() }
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
		c := follow(tap, maxGrace)
		written := 0 // by announce's time
		announce := func() {
			written = tap.out.Len()
			c.leave()
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
			if !c.out.Boundary() || len(c.unsent) > 0 {
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

// A sink is a connection that costs nothing: it is asked for the same bytes again
// and again.
type sink struct {
	net.Conn
	in []byte
	at int
}

func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

func (s *sink) Read(p []byte) (int, error) {
	n := copy(p, s.in[s.at:])
	s.at = (s.at + n) % len(s.in)
	return n, nil
}

// followedRequest returns a function that has a request and its response pass a
// connection, as net/http reads and writes them, and the connection.
func followedRequest() (pass func(), f followed) {
	request := frame(frameHeaders, flagEndStream|flagEndHeaders, 0, make([]byte, 30)...)
	header := frame(frameHeaders, flagEndHeaders, 0, make([]byte, 50)...)
	response := concat(header, frame(frameData, flagEndStream, 0, make([]byte, 100)...))
	f = follow(&sink{in: request}, 0)
	buf := make([]byte, 30)
	stream := uint32(1)
	return func() {
		for _, b := range [][]byte{request, response, response[len(header):]} {
			binary.BigEndian.PutUint32(b[5:], stream)
		}
		stream += 2
		f.Read(buf[:9])
		f.Read(buf)
		f.Write(response)
	}, f
}

// TestHTTP2FollowedAllocatesNothing: following its frames costs a request no
// allocation, and leaves no stream behind.
func TestHTTP2FollowedAllocatesNothing(t *testing.T) {
	pass, f := followedRequest()
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
	if n := f.streams.Open(); n != 0 || f.streams.Highest() == 0 {
		t.Errorf("%d streams are open, the highest is %d: the test does not do what it says", n, f.streams.Highest())
	}
}

// BenchmarkHTTP2Followed is what following its frames adds to one request.
func BenchmarkHTTP2Followed(b *testing.B) {
	pass, _ := followedRequest()
	b.ReportAllocs()
	for b.Loop() {
		pass()
	}
}
