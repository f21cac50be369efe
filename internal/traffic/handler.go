package traffic

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Handler answers every Kind and keeps a ledger of what it executed. Its zero
// value is ready to use.
type Handler struct {
	// Draining, if not nil, returns a channel that is closed when the server
	// begins to shut down (graceful.Draining). WebSockets then say farewell, and
	// event streams end.
	Draining func(context.Context) <-chan struct{}

	mu      sync.Mutex     // guards ran
	ran     map[string]int // how often each id was executed
	doubled int
}

// Executed returns how many requests were executed: those whose body had come
// completely, and which were about to be answered.
func (h *Handler) Executed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ran)
}

// Doubled returns how many requests were executed again.
func (h *Handler) Doubled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.doubled
}

// Unacknowledged returns how many of the requests that res counts as lost were
// executed all the same: the ones that are not safe to repeat.
func (h *Handler) Unacknowledged(res *Result) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, id := range res.LostIDs() {
		if h.ran[id] > 0 {
			n++
		}
	}
	return n
}

func (h *Handler) execute(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ran == nil {
		h.ran = make(map[string]int)
	}
	h.ran[id]++
	if h.ran[id] > 1 {
		h.doubled++
	}
}

// ServeHTTP answers with the request's id, the length of its body and the sum
// over it. In the query, work asks it to work for that long first, and pieces
// and every ask for a streamed answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		h.serveWebSocket(w, r)
		return
	}
	if r.Header.Get("Accept") == eventStreamType {
		h.serveEvents(w, r)
		return
	}
	if r.Header.Get("Content-Type") == "application/grpc" {
		h.serveGRPC(w, r)
		return
	}
	id := r.Header.Get(IDHeader)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if len(body) > 0 && !strings.HasPrefix(string(body), id+" ") {
		http.Error(w, "the body belongs to another request", http.StatusBadRequest)
		return
	}
	q := r.URL.Query()
	if work, _ := time.ParseDuration(q.Get("work")); work > 0 {
		pause(r.Context(), work)
	}
	h.execute(id)
	w.Header().Set(IDHeader, id)
	n, _ := strconv.Atoi(q.Get("pieces"))
	every, _ := time.ParseDuration(q.Get("every"))
	for i := range min(n, 10_000) {
		io.WriteString(w, piece(id, i))
		http.NewResponseController(w).Flush()
		pause(r.Context(), every)
	}
	io.WriteString(w, answerTo(id, string(body)))
}

// serveWebSocket echoes every message. When the server drains it says farewell
// and goes on echoing until the client closes: so nothing that crosses the
// farewell is lost.
func (h *Handler) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	var draining <-chan struct{}
	if h.Draining != nil {
		draining = h.Draining(r.Context())
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + AcceptKey(r.Header.Get("Sec-WebSocket-Key")) + "\r\n\r\n")
	if rw.Flush() != nil {
		return
	}
	out := &lockedConn{Conn: conn}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-draining:
			writeFrame(out, opText, []byte(farewell), false)
		case <-done:
		}
	})
	h.echo(out, rw.Reader)
	close(done)
	wg.Wait()
}

func (h *Handler) echo(out *lockedConn, br *bufio.Reader) {
	for {
		op, payload, err := readFrame(br)
		if err != nil {
			return
		}
		switch op {
		case opText:
			h.execute(string(payload))
			err = writeFrame(out, opText, payload, false)
		case opPing:
			err = writeFrame(out, opPong, payload, false)
		case opClose:
			writeFrame(out, opClose, payload, false)
			return
		}
		if err != nil {
			return
		}
	}
}

// A lockedConn lets the echo and the farewell write whole frames in turn.
type lockedConn struct {
	net.Conn
	mu sync.Mutex
}

func (c *lockedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Conn.Write(p)
}
