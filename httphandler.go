package graceful

import (
	"io"
	"net/http"
)

// serveHTTP is the outermost handler.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	h, _ := r.Context().Value(httpConnKey{}).(*httpConn)
	switch {
	case h == nil:
		// The caller's ConnContext returned a context that isn't derived
		// from the one it was given.
		if r.ProtoMajor == 1 && s.life.shutting.Load() {
			w.Header().Set("Connection", "close")
		}
		s.handle(w, r)
	case r.ProtoMajor == 1:
		if h.c.beyond.serve(r.ContentLength) {
			h.c.flags.Or(flagVague) // before it is seen to have come here
		}
		h.enter(r)
		if s.life.shutting.Load() {
			// Before the handler runs, for its header may go out at any
			// moment after that.
			w.Header().Set("Connection", "close")
			h.c.sayFarewell()
		}
		s.handle(w, r)
		h.leave() // after a panic the connection is closed anyway
	default:
		if !h.c.has(flagStreams) {
			h.c.flags.Or(flagStreams)
		}
		s.streamCount.Add(1)
		h.begin(r)
		defer func() {
			h.end(r)
			s.streamCount.Add(-1)
		}()
		s.handle(w, r)
	}
}

// enter and leave are for a request of HTTP/1, begin and end for those of HTTP/2.
// A mutex in enter would be two locked operations more in every request, for a
// report that hardly ever comes.
func (h *httpConn) enter(r *http.Request) {
	if h.c.has(flagReported) {
		h.mu.Lock() // waits until the last one was read
		defer h.mu.Unlock()
	}
	h.last = lineOf(r)
	h.c.flags.Or(flagInHandler)
}

func (h *httpConn) leave() { h.c.flags.And(^uint32(flagInHandler)) }

func (h *httpConn) begin(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams = make(map[*http.Request]requestLine)
	}
	h.streams[r] = lineOf(r)
}

func (h *httpConn) end(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, r)
}

// handle calls the handler, or what net/http has in its place.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if r.RequestURI == "*" && r.Method == http.MethodOptions && !s.Server.DisableGeneralOptionsHandler {
		answerOptions(w, r)
		return
	}
	s.side.handler.ServeHTTP(w, r)
}

// answerOptions answers "OPTIONS *", which asks about the server as a whole,
// as net/http does: with nothing, after a body of at most 4 KiB was read.
func answerOptions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	if r.ContentLength != 0 {
		io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	}
}
