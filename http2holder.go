package graceful

import (
	"context"
	"net/http"
	"time"
)

// http2Holder is a server that net/http has configured HTTP/2 on and that does
// nothing but to be shut down: then those connections which were given to its
// serve get the final GOAWAY, and no others.
type http2Holder struct {
	l     *http2Layer
	srv   *http.Server
	serve nextProto

	// Guarded by l.mu:

	conns   map[*http2Conn]bool // whether its client has still to acknowledge
	awaited int                 // how many those are
	newest  time.Time           // when a client was last told
	timer   *time.Timer         // to sweep; nil until it is first set
	swept   bool                // nobody has begun since the last sweep
}

func newHTTP2Holder(l *http2Layer, srv *http.Server) *http2Holder {
	return &http2Holder{
		l:      l,
		srv:    srv,
		serve:  srv.TLSNextProto[protoUnencryptedHTTP2],
		conns:  make(map[*http2Conn]bool),
		newest: time.Now(),
	}
}

// began is called at a connection's first Write: net/http has it among those
// that a Shutdown reaches, and if it has been announced the client is told now.
func (h *http2Holder) began() {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.l.announced {
		h.newest = time.Now()
		h.swept = false
		h.schedule()
	}
}

// await begins to wait for c's acknowledgement. The caller holds l.mu.
func (h *http2Holder) await(c *http2Conn) {
	h.conns[c] = true
	h.awaited++
}

// acked is called when the client of c knows.
func (h *http2Holder) acked(c *http2Conn) {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.conns[c] {
		h.conns[c] = false
		h.awaited--
		h.schedule()
	}
}

// remove forgets c. The caller holds l.mu.
func (h *http2Holder) remove(c *http2Conn) {
	if h.conns[c] {
		h.awaited--
	}
	delete(h.conns, c)
	h.schedule()
}

// schedule sets the timer to the moment at which the final GOAWAY may go out as
// things stand. The caller holds l.mu.
func (h *http2Holder) schedule() {
	if !h.l.finished || h.swept {
		return
	}
	if len(h.conns) == 0 {
		if h.timer != nil {
			h.timer.Stop()
		}
		return
	}
	d := h.due()
	if h.timer == nil {
		h.timer = time.AfterFunc(d, h.sweep)
		return
	}
	h.timer.Reset(d)
}

// due returns how long it is to that moment. The caller holds l.mu.
func (h *http2Holder) due() time.Duration {
	wait := h.l.cfg.grace
	if h.awaited > 0 {
		wait = max(wait, h.l.cfg.patience)
	}
	return wait - time.Since(h.newest)
}

// sweep has net/http send the final GOAWAY. A connection that gets here before
// it has begun is swept again when it does.
func (h *http2Holder) sweep() {
	h.l.mu.Lock()
	if h.due() > 0 {
		h.schedule() // somebody has come in between
		h.l.mu.Unlock()
		return
	}
	h.swept = true
	for c := range h.conns {
		c.finish()
	}
	h.l.mu.Unlock()
	// There is neither a listener nor a connection that this could wait for.
	_ = h.srv.Shutdown(context.Background())
}
