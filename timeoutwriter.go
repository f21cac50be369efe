package graceful

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// enter begins a call into the inner writer, or reports that the handler has
// nothing to say any more. With commit the call is one after which the
// header is fixed.
func (x *exchange) enter(w http.ResponseWriter, commit bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return false
	}
	if commit && !x.committed {
		x.committed = true
		x.copyHeader(w.Header())
	}
	x.writing++
	return true
}

// leave ends what enter began. If the time ran out meanwhile, the error that
// the interruption has made becomes the one that says so.
func (x *exchange) leave(err *error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.writing--
	x.tellOutLocked()
	if x.phase == exchangeExpired && err != nil && *err != nil {
		*err = http.ErrHandlerTimeout
	}
}

func (x *exchange) tellOutLocked() {
	if x.out != nil {
		close(x.out)
		x.out = nil
	}
}

// A guarded is a ResponseWriter that the deadline closes: x's own, or one
// that Unwrap has found below it. It has the methods that every handler may
// call and those that only http.ResponseController looks for; what else the
// inner writer has, writerLike adds.
type guarded struct {
	x *exchange
	w http.ResponseWriter // inner
}

func (g *guarded) Header() http.Header { return g.x.header }

func (g *guarded) WriteHeader(code int) {
	if 100 <= code && code <= 199 && code != http.StatusSwitchingProtocols {
		if !g.enterInformational() {
			return
		}
	} else if !g.x.enter(g.w, 100 <= code && code <= 999) { // others panic below, and fix nothing
		return
	}
	defer g.x.leave(nil)
	g.w.WriteHeader(code)
}

// enterInformational is enter for a 1xx response: it sends the header as it
// is now, but does not fix it.
func (g *guarded) enterInformational() bool {
	x := g.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return false
	}
	if !x.committed {
		if x.outer == nil {
			x.outer = http.Header{}
			for k, v := range g.w.Header() {
				x.outer[k] = v
			}
		}
		x.copyHeader(g.w.Header())
	}
	x.writing++
	return true
}

func (g *guarded) Write(p []byte) (n int, err error) {
	if !g.x.enter(g.w, true) {
		return 0, http.ErrHandlerTimeout
	}
	defer g.x.leave(&err)
	return g.w.Write(p)
}

func (g *guarded) WriteString(s string) (n int, err error) {
	if !g.x.enter(g.w, true) {
		return 0, http.ErrHandlerTimeout
	}
	defer g.x.leave(&err)
	return io.WriteString(g.w, s)
}

func (g *guarded) FlushError() (err error) {
	if !canFlush(g.w) {
		return http.ErrNotSupported
	}
	if !g.x.enter(g.w, true) {
		return http.ErrHandlerTimeout
	}
	defer g.x.leave(&err)
	return http.NewResponseController(g.w).Flush()
}

// canFlush reports whether http.ResponseController finds a way to flush w.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case interface{ FlushError() error }, http.Flusher:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

func (g *guarded) SetReadDeadline(t time.Time) error {
	return g.control(func(rc *http.ResponseController) error { return rc.SetReadDeadline(t) })
}

func (g *guarded) SetWriteDeadline(t time.Time) error {
	return g.control(func(rc *http.ResponseController) error { return rc.SetWriteDeadline(t) })
}

func (g *guarded) EnableFullDuplex() error {
	return g.control((*http.ResponseController).EnableFullDuplex)
}

// control does what does not block, and therefore under the lock: it is done
// before the deadline, or not at all.
func (g *guarded) control(do func(*http.ResponseController) error) error {
	g.x.mu.Lock()
	defer g.x.mu.Unlock()
	if g.x.phase != exchangeRunning {
		return http.ErrHandlerTimeout
	}
	return do(http.NewResponseController(g.w))
}

func (g *guarded) hijack() (net.Conn, *bufio.ReadWriter, error) {
	x := g.x
	x.mu.Lock()
	committed := x.committed
	x.mu.Unlock()
	if committed {
		// net/http flushes in Hijack, which may block; not under the lock.
		if err := g.FlushError(); err == http.ErrHandlerTimeout {
			return nil, nil, err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase != exchangeRunning {
		return nil, nil, http.ErrHandlerTimeout
	}
	conn, buf, err := g.w.(http.Hijacker).Hijack()
	x.hijacked = x.hijacked || err == nil
	return conn, buf, err
}

func (g *guarded) push(target string, opts *http.PushOptions) (err error) {
	if !g.x.enter(g.w, false) {
		return http.ErrHandlerTimeout
	}
	defer g.x.leave(&err)
	return g.w.(http.Pusher).Push(target, opts)
}

// unwrap returns what is below the inner writer, behind the same guard.
func (g *guarded) unwrap() http.ResponseWriter {
	w := g.w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
	if w == nil {
		return nil
	}
	return writerLike(&guarded{g.x, w})
}
