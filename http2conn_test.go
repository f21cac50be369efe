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
