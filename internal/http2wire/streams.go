package http2wire

// Streams follows which streams of a connection are open. It sees incoming frames
// before the server does, and outgoing frames when they were written. So when no
// stream is open, every response was passed to the kernel.
//
// A stream is open from the end of its first header block on. Until then no frame
// of another stream can come, and the server has no request.
type Streams struct {
	open    map[uint32]ends
	highest uint32 // of the streams that the client has opened

	coming    uint32 // the stream whose first header block is being received; 0: none
	comingEnd bool   // its request ends with that block
	ending    uint32 // the stream whose last header block is being written; 0: none

	// From the server's own GOAWAY, once it was written.
	final  bool   // it was written
	failed bool   // it had an error
	last   uint32 // streams above it are not served
}

// ends is the set of directions in which a stream has ended.
type ends uint8

const (
	endedIn ends = 1 << iota
	endedOut
)

// Open returns how many streams are open.
func (s *Streams) Open() int { return len(s.open) }

// OpenUpTo returns how many of the client's streams up to id, and of the streams
// that the server has promised, are open.
func (s *Streams) OpenUpTo(id uint32) int {
	n := 0
	for open := range s.open {
		if open <= id || open%2 == 0 {
			n++
		}
	}
	return n
}

// Highest returns the highest stream that the client has opened, and 0 if it
// has opened none.
func (s *Streams) Highest() uint32 { return s.highest }

// Final reports whether a GOAWAY that names a last stream has gone out.
func (s *Streams) Final() bool { return s.final }

// Failed reports whether that GOAWAY carried an error: the server is about to
// close the connection.
func (s *Streams) Failed() bool { return s.failed }

// Matters reports whether In has an effect for the frame that c has passed.
func Matters(c *Cursor) bool {
	switch c.Type() {
	case Headers, Continuation, RSTStream:
		return true
	case Data:
		return c.Flags()&EndStream != 0
	}
	return false
}

// In updates s for the frame from the client that c has passed.
func (s *Streams) In(c *Cursor) {
	id := c.Stream()
	switch c.Type() {
	case Headers:
		end := c.Flags()&EndStream != 0
		if id%2 == 1 && id > s.highest {
			s.coming, s.comingEnd = id, end
		} else if end { // trailers
			s.end(id, endedIn)
		}
		s.blockEnded(c)
	case Continuation:
		s.blockEnded(c)
	case Data:
		if c.Flags()&EndStream != 0 {
			s.end(id, endedIn)
		}
	case RSTStream:
		delete(s.open, id)
	}
}

// blockEnded opens the stream whose first header block c has passed completely.
func (s *Streams) blockEnded(c *Cursor) {
	id := s.coming
	if id == 0 || c.block {
		return
	}
	s.coming, s.highest = 0, id
	if s.final && id > s.last {
		return
	}
	s.set(id, 0)
	if s.comingEnd {
		s.end(id, endedIn)
	}
}

// Out updates s for the frame to the client that c has passed.
func (s *Streams) Out(c *Cursor) {
	id := c.Stream()
	switch c.Type() {
	case Headers, Continuation:
		if c.Type() == Headers && c.Flags()&EndStream != 0 {
			s.ending = id
		}
		if !c.block && s.ending != 0 {
			s.end(s.ending, endedOut)
			s.ending = 0
		}
	case Data:
		if c.Flags()&EndStream != 0 {
			s.end(id, endedOut)
		}
	case RSTStream:
		delete(s.open, id)
	case PushPromise:
		s.set(c.word(0)&maxStreamID, endedIn)
	case GoAway:
		s.final = true
		s.failed = s.failed || c.word(1) != 0
		s.last = c.word(0) & maxStreamID
		for id := range s.open {
			if id%2 == 1 && id > s.last {
				delete(s.open, id)
			}
		}
	}
}

func (s *Streams) set(id uint32, e ends) {
	if s.open == nil {
		s.open = make(map[uint32]ends)
	}
	s.open[id] = e
}

// end ends one direction of the stream id. A response that ends before its request
// is followed by a RST_STREAM or by the request's end.
func (s *Streams) end(id uint32, e ends) {
	was, ok := s.open[id]
	switch {
	case !ok:
	case was|e == endedIn|endedOut:
		delete(s.open, id)
	default:
		s.open[id] = was | e
	}
}
