package graceful

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// ErrDraining is what InFlight.Add returns once a Wait has begun.
var ErrDraining = errors.New("graceful: draining, nothing new is admitted")

// An InFlight counts the requests, or any other work, that a shutdown has to
// wait for. Unlike a sync.WaitGroup it may be added to while somebody waits:
// then it refuses. The zero value is ready for use; an InFlight must not be
// copied, and its fields must not change once it is in use. All methods may
// be called concurrently.
//
// It works under any http.Server. Under a Server of this package, which
// waits for its requests by itself, it adds numbers for a dashboard and the
// pace at which long-running requests are released.
type InFlight struct {
	// LongRunning reports, before its handler is called, whether a request has
	// no end of its own. Handler counts such requests apart, and those that
	// turn out to have none: see Handler. Nil means DefaultLongRunning.
	LongRunning func(*http.Request) bool

	// Exempt reports whether a request is served even while draining. It is
	// then not counted: probes that never cease do not hold up a Wait. Nil
	// means DefaultExempt.
	Exempt func(*http.Request) bool

	// RetryAfter is what a refused client is told to wait, in whole seconds,
	// rounded up. Zero means 1 s.
	RetryAfter time.Duration

	// Refused writes the answer to a refused request. Retry-After,
	// Connection: close and X-Content-Type-Options: nosniff are set when it
	// is called. Nil means 503 and one line of text, or JSON for a client
	// that asks for that.
	Refused http.Handler

	// ReleaseWindow is the time over which the long-running requests are
	// released when the server shuts down, so that their clients do not all
	// reconnect at once. Zero means 5 s, negative means all at once.
	ReleaseWindow time.Duration

	// ReleaseRate is the least number of long-running requests that are
	// released per second: a few of them need less than ReleaseWindow. Zero
	// or less means 200.
	ReleaseRate float64

	requests counter // answered, or added by Add and done
	outlived gauge   // handlers whose request a RequestTimeout has answered
	long     longRunning
}

// Add counts n more in flight. While nothing waits it always succeeds; once
// Wait, WaitContext, WaitHandlers or WaitLongRunning has begun, n > 0 is
// refused with ErrDraining, for good, also after the count has reached zero.
// A negative n is as many calls of Done; 0 does nothing.
func (f *InFlight) Add(n int) error {
	if n <= 0 {
		f.done(-n)
		return nil
	}
	_, err := f.requests.add(n)
	return err
}

// Done counts one less in flight. It panics if there is none.
func (f *InFlight) Done() { f.done(1) }

func (f *InFlight) done(n int) {
	if n > 0 && !f.requests.done(f.requests.pick(), n) {
		panic("graceful: InFlight.Done without Add")
	}
}

// Count returns how many are in flight: requests that Handler has let in and
// that are not yet answered, long-running ones excepted, and what Add has
// added. While requests come and go it may be off by those that are just
// then doing so.
func (f *InFlight) Count() int { return int(max(0, f.requests.sum())) }

// Handlers returns how many handlers have not returned: Count, and those
// whose request a RequestTimeout with this InFlight has answered over their
// heads.
func (f *InFlight) Handlers() int { return f.Count() + f.outlived.count() }

// LongRunningCount returns how many long-running requests Handler has let in
// and not yet released.
func (f *InFlight) LongRunningCount() int { return f.long.count() }

// Wait refuses whatever is added from now on and blocks until the count is
// zero. Any number of Waits may run at once; one that comes later returns at
// once when the count is zero. It does not wait for long-running requests:
// these are told, by Draining, and WaitLongRunning waits for them.
func (f *InFlight) Wait() { f.WaitContext(context.Background()) }

// WaitContext is Wait, but gives up when ctx is done, and then returns its
// error. What was begun is not undone: Add goes on refusing.
func (f *InFlight) WaitContext(ctx context.Context) error {
	return await(ctx, f.drain())
}

// WaitHandlers is WaitContext, but waits also for handlers that go on after
// their request has been answered.
func (f *InFlight) WaitHandlers(ctx context.Context) error {
	if err := await(ctx, f.drain()); err != nil {
		return err
	}
	return await(ctx, f.outlived.reached())
}

// drain closes the doors and returns a channel that closes when the count is
// zero.
func (f *InFlight) drain() <-chan struct{} {
	zero := f.requests.close()
	f.long.drain()
	return zero
}

// await blocks until ch is closed, or is nil, and returns nil, or until ctx
// is done, and returns its error. Of both it prefers ch.
func await(ctx context.Context, ch <-chan struct{}) error {
	if ch == nil {
		return nil
	}
	select {
	case <-ch:
		return nil
	default:
	}
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Handler returns a handler that counts each request for as long as next
// serves it, and refuses new ones with 503 once a Wait has begun. A
// long-running request is counted apart; when the server is shutting down, it
// is held for its turn after next has returned. Place it outside of a
// RequestTimeout to count requests until they are answered.
//
// A request that asks to switch protocols (HTTP/1's Upgrade, CONNECT) and whose
// connection is then hijacked is long-running from the hijack on. The hijack is
// noticed in the ResponseWriter that next gets: calling the Hijack method of a
// writer that was unwrapped from it is not noticed.
func (f *InFlight) Handler(next http.Handler) http.Handler { return f.handler(next) }

func (f *InFlight) handler(next http.Handler) *inFlightHandler {
	h := &inFlightHandler{f: f, next: next, longRunning: f.LongRunning, exempt: f.Exempt}
	if h.longRunning == nil {
		h.longRunning = DefaultLongRunning
	}
	if h.exempt == nil {
		h.exempt = DefaultExempt
	}
	return h
}

// serverHandler is Handler for the Server that f belongs to: its connections
// know of any hijack, and tell f by hijacked.
func (f *InFlight) serverHandler(next http.Handler) http.Handler {
	h := f.handler(next)
	h.ofServer = true
	return h
}

type inFlightHandler struct {
	f           *InFlight
	next        http.Handler
	longRunning func(*http.Request) bool
	exempt      func(*http.Request) bool
	ofServer    bool
}

func (h *inFlightHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.longRunning(r) {
		if draining, ok := h.f.long.add(); ok {
			h.serveLong(w, r, draining)
		} else {
			h.serveDraining(w, r)
		}
		return
	}
	s, err := h.f.requests.add(1)
	if err != nil {
		h.serveDraining(w, r)
		return
	}
	if h.ofServer {
		if c, ok := r.Context().Value(httpConnKey{}).(*httpConn); ok && r.ProtoMajor == 1 {
			h.serveOn(c, w, r, s)
			return
		}
	}
	if mayHijack(r) {
		h.serveUpgrade(w, r, s)
		return
	}
	// On the same shard: on another one it would be a detour.
	defer h.f.requests.done(s, 1)
	h.next.ServeHTTP(w, r)
}

// serveDraining serves r, which is not counted, if it is exempt, and else
// refuses it.
func (h *inFlightHandler) serveDraining(w http.ResponseWriter, r *http.Request) {
	if h.exempt(r) {
		h.next.ServeHTTP(w, r)
	} else {
		h.refuse(w, r)
	}
}

// serveLong serves r, which has been added to the long-running requests.
func (h *inFlightHandler) serveLong(w http.ResponseWriter, r *http.Request, draining <-chan struct{}) {
	inner := withDraining(r, draining)
	defer h.f.long.release(inner.Context(), h.f.ReleaseWindow, h.f.ReleaseRate)
	defer handBack(r, inner)
	h.next.ServeHTTP(w, inner)
}

// withDraining returns r with a context in which Draining finds that channel,
// or r if it finds a server's there.
func withDraining(r *http.Request, draining <-chan struct{}) *http.Request {
	ctx := r.Context()
	if Draining(ctx) != nil {
		return r
	}
	return r.WithContext(context.WithValue(ctx, drainingKey{}, draining))
}

// serveOn serves r, which is counted in s and came on the Server's connection c.
func (h *inFlightHandler) serveOn(c *httpConn, w http.ResponseWriter, r *http.Request, s *shard) {
	c.counted.Store(s)
	defer func() {
		if c.counted.Swap(nil) != nil {
			h.f.requests.done(s, 1)
		} else {
			h.f.long.release(r.Context(), h.f.ReleaseWindow, h.f.ReleaseRate)
		}
	}()
	h.next.ServeHTTP(w, r)
}

// hijacked makes the request in progress on c, if f counts it, a long-running
// one.
func (f *InFlight) hijacked(c *httpConn) {
	if s := c.counted.Swap(nil); s != nil {
		f.long.force()
		f.requests.done(s, 1)
	}
}

// mayHijack reports whether the client asks to switch protocols in a way that
// needs a hijack.
func mayHijack(r *http.Request) bool {
	return r.ProtoMajor == 1 && (r.Method == http.MethodConnect ||
		len(r.Header["Upgrade"]) > 0 && hasToken(r.Header["Connection"], "upgrade"))
}

// serveUpgrade serves r, which is counted in s and may be hijacked.
func (h *inFlightHandler) serveUpgrade(w http.ResponseWriter, r *http.Request, s *shard) {
	u := &upgradeWriter{ResponseWriter: w, f: h.f, counted: s}
	inner := withDraining(r, h.f.long.told())
	defer func() {
		handBack(r, inner)
		if u.end() {
			h.f.long.release(inner.Context(), h.f.ReleaseWindow, h.f.ReleaseRate)
		}
	}()
	h.next.ServeHTTP(u, inner)
}

// An upgradeWriter notices a hijack. It has the methods that net/http's writer
// for HTTP/1 has; http.ResponseController finds the others by Unwrap.
type upgradeWriter struct {
	http.ResponseWriter
	f *InFlight

	mu      sync.Mutex // guards counted
	counted *shard     // where f counts the request; nil once it is long-running, or over
}

func (w *upgradeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *upgradeWriter) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

func (w *upgradeWriter) ReadFrom(src io.Reader) (int64, error) {
	return io.Copy(w.ResponseWriter, src)
}

func (w *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.counted != nil {
			w.f.long.force()
			w.f.requests.done(w.counted, 1)
			w.counted = nil
		}
	}
	return conn, buf, err
}

// end counts the request as done, or reports that it is long-running.
func (w *upgradeWriter) end() (long bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counted == nil {
		return true
	}
	w.f.requests.done(w.counted, 1)
	w.counted = nil
	return false
}

func (h *inFlightHandler) refuse(w http.ResponseWriter, r *http.Request) {
	const reason = "the server is shutting down, please try again"
	if h.f.Refused == nil {
		refuse(w, r, h.f.RetryAfter, reason)
		return
	}
	setRefusalHeader(w.Header(), h.f.RetryAfter)
	h.f.Refused.ServeHTTP(w, r)
}

// WaitLongRunning refuses whatever is added from now on, tells the
// long-running requests by Draining, and blocks until the last of them has
// been released. It sets the pace: those n that there are leave over
// ReleaseWindow, or faster if that were less than ReleaseRate, each when its
// handler has returned and its turn has come. When ctx is done it returns
// ctx's error, and what is left is released without waiting.
func (f *InFlight) WaitLongRunning(ctx context.Context) error {
	f.drain()
	return f.long.wait(ctx, f.ReleaseWindow, f.ReleaseRate)
}
