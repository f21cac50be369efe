package http2wire

import (
	"encoding/binary"
	"testing"
)

func frame(t FrameType, f Flags, stream uint32, payload ...byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), byte(t), byte(f)}
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// TestStreams feeds both directions, byte by byte, and looks which streams are
// taken to be open.
func TestStreams(t *testing.T) {
	const client, server = true, false
	const end = EndStream | EndHeaders
	type step struct {
		from  bool
		frame []byte
		open  int
	}
	for name, steps := range map[string][]step{
		"request and response": {
			{client, frame(Headers, end, 1), 1},
			{server, frame(Headers, EndHeaders, 1), 1},
			{server, frame(Data, 0, 1, 1, 2, 3), 1},
			{server, frame(Data, EndStream, 1), 0},
		},
		"with bodies and trailers": {
			{client, frame(Headers, EndHeaders, 1), 1},
			{client, frame(Data, 0, 1, 1), 1},
			{client, frame(Headers, end, 1), 1},
			{server, frame(Headers, EndHeaders, 1), 1},
			{server, frame(Headers, end, 1), 0},
		},
		"a response header in pieces ends with the last": {
			{client, frame(Headers, end, 1), 1},
			{server, frame(Headers, EndStream, 1), 1},
			{server, frame(Continuation, EndHeaders, 1), 0},
		},
		"a request header in pieces begins with the last": {
			{client, frame(Headers, EndStream, 1), 0},
			{client, frame(Continuation, 0, 1), 0},
			{client, frame(Continuation, EndHeaders, 1), 1},
			{server, frame(Headers, end, 1), 0},
		},
		"a response before the request's end": {
			{client, frame(Headers, EndHeaders, 1), 1},
			{server, frame(Headers, end, 1), 1},
			{server, frame(RSTStream, 0, 1, 0, 0, 0, 0), 0},
			{client, frame(Data, EndStream, 1), 0},
		},
		"reset by the client": {
			{client, frame(Headers, EndHeaders, 1), 1},
			{client, frame(Headers, end, 3), 2},
			{client, frame(RSTStream, 0, 1, 0, 0, 0, 8), 1},
		},
		"push": {
			{client, frame(Headers, end, 1), 1},
			{server, frame(PushPromise, EndHeaders, 1, 0, 0, 0, 2), 2},
			{server, frame(Headers, end, 1), 1},
			{server, frame(Headers, end, 2), 0},
		},
		"beyond the server's GOAWAY": {
			{client, frame(Headers, end, 1), 1},
			{client, frame(Headers, end, 3), 2},
			{server, FinalGoAway(1), 1},
			{client, frame(Headers, end, 5), 1},
			{server, frame(Headers, end, 1), 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s Streams
			var in, out Cursor
			in.Skip(len(Preface))
			in.Advance([]byte(Preface))
			for i, step := range steps {
				c, note := &out, s.Out
				if step.from == client {
					c, note = &in, s.In
				}
				for _, b := range step.frame {
					if _, ended := c.Advance([]byte{b}); ended {
						note(c)
					}
				}
				if !c.Boundary() && step.open == s.Open() && c.have != 0 {
					t.Errorf("step %d ends within a frame", i)
				}
				if n := s.Open(); n != step.open {
					t.Errorf("after step %d: %d streams open, want %d", i, n, step.open)
				}
			}
		})
	}
}

// TestHighest: the final GOAWAY names the last stream whose header block has come
// whole.
func TestHighest(t *testing.T) {
	var s Streams
	var in Cursor
	for _, f := range [][]byte{
		frame(Headers, EndStream|EndHeaders, 1), frame(Headers, EndStream|EndHeaders, 7), frame(Headers, EndStream, 9),
	} {
		in.Advance(f)
		s.In(&in)
	}
	if s.Highest() != 7 {
		t.Errorf("highest is %d, want 7: the header block of 9 has not come", s.Highest())
	}
	var c Cursor
	if c.Advance(FinalGoAway(7)); c.word(0) != 7 || c.word(1) != 0 || c.Type() != GoAway {
		t.Errorf("the GOAWAY names %d", c.word(0))
	}
}

// TestAnnouncementAck: the acknowledgement is told from the client's own PINGs.
func TestAnnouncementAck(t *testing.T) {
	for _, tc := range []struct {
		frame []byte
		want  bool
	}{
		{frame(Ping, Ack, 0, []byte(pingData)...), true},
		{frame(Ping, 0, 0, []byte(pingData)...), false},
		{frame(Ping, Ack, 0, []byte("gracious")...), false},
		{frame(Settings, Ack, 0, []byte(pingData)...), false},
		{frame(Ping, Ack, 0, []byte("grace")...), false},
	} {
		var c Cursor
		if c.Advance(tc.frame); c.AnnouncementAck() != tc.want {
			t.Errorf("%q: %v", tc.frame, !tc.want)
		}
	}
}
