package graceful

// openStreams knows from the frames of a connection which of its streams are
// open. It is one step ahead of net/http for what comes in, and for what goes
// out it counts only what has been written: no stream left here means that
// every response is with the kernel.
type openStreams struct {
	open    map[uint32]streamEnds
	highest uint32 // of the streams that the client has opened

	// The final GOAWAY, once it is out.
	final  bool
	failed bool   // it carried an error: net/http is about to hang up
	last   uint32 // streams above it will not be served

	ending uint32 // the stream whose last header block is going out; 0: none
}

// streamEnds says which of its directions a stream has ended.
type streamEnds uint8

const (
	endedIn streamEnds = 1 << iota
	endedOut
)

// in notes the frame from the client that f has just passed.
func (s *openStreams) in(f *frameCursor) {
	id := f.stream()
	switch f.kind() {
	case frameHeaders:
		// A second HEADERS on a stream are its trailers.
		if id%2 == 1 && id > s.highest {
			s.highest = id
			if !s.final || id <= s.last {
				s.set(id, 0)
			}
		}
		if f.flags()&flagEndStream != 0 {
			s.end(id, endedIn)
		}
	case frameData:
		if f.flags()&flagEndStream != 0 {
			s.end(id, endedIn)
		}
	case frameRSTStream:
		delete(s.open, id)
	}
}

// out notes the frame to the client that f has just passed.
func (s *openStreams) out(f *frameCursor) {
	id := f.stream()
	switch f.kind() {
	case frameHeaders, frameContinuation:
		if f.kind() == frameHeaders && f.flags()&flagEndStream != 0 {
			s.ending = id
		}
		if !f.block && s.ending != 0 {
			s.end(s.ending, endedOut)
			s.ending = 0
		}
	case frameData:
		if f.flags()&flagEndStream != 0 {
			s.end(id, endedOut)
		}
	case frameRSTStream:
		delete(s.open, id)
	case framePushPromise:
		s.set(f.word(0)&maxStreamID, endedIn)
	case frameGoAway:
		s.final = true
		s.failed = s.failed || f.word(1) != 0
		s.last = f.word(0) & maxStreamID
		for id := range s.open {
			if id%2 == 1 && id > s.last {
				delete(s.open, id)
			}
		}
	}
}

func (s *openStreams) set(id uint32, e streamEnds) {
	if s.open == nil {
		s.open = make(map[uint32]streamEnds)
	}
	s.open[id] = e
}

// end notes that one direction of stream id is over. A response that ends
// before its request is followed by a RST_STREAM or by the request's end.
func (s *openStreams) end(id uint32, e streamEnds) {
	was, ok := s.open[id]
	switch {
	case !ok:
	case was|e == endedIn|endedOut:
		delete(s.open, id)
	default:
		s.open[id] = was | e
	}
}
