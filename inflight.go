package graceful

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-121bbccf/graceful/internal/counter"
	"github.com/seed-121bbccf/graceful/internal/deadline"
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

	requests counter.Counter // answered, or added by Add and done
	outlived counter.Gauge   // handlers whose request a RequestTimeout has answered
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
	if _, ok := f.requests.Add(n); !ok {
		return ErrDraining
	}
	return nil
}

// Done counts one less in flight. It panics if there is none.
func (f *InFlight) Done() { f.done(1) }

func (f *InFlight) done(n int) {
	if n > 0 && !f.requests.Done(nil, n) {
		panic("graceful: InFlight.Done without Add")
	}
}

// Count returns how many are in flight: requests that Handler has let in and
// that are not yet answered, long-running ones excepted, and what Add has
// added. While requests come and go it may be off by those that are just
// then doing so.
func (f *InFlight) Count() int { return int(max(0, f.requests.Sum())) }

// Handlers returns how many handlers have not returned: Count, and those
// whose request a RequestTimeout with this InFlight has answered over their
// heads.
func (f *InFlight) Handlers() int { return f.Count() + f.outlived.Count() }

// LongRunningCount returns how many long-running requests Handler has let in
// and not yet released.
func (f *InFlight) LongRunningCount() int { return f.long.Count() }

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
	return await(ctx, f.outlived.Reached())
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

// DefaultLongRunning reports whether r says of itself that it has no end: a
// WebSocket upgrade (over HTTP/2 an extended CONNECT, RFC 8441), a client that
// accepts text/event-stream, and anything below /debug/pprof/. InFlight goes by
// it unless it is told otherwise.
//
// All of that is the client's choice. RequestTimeout and RequestDeadline do
// not go by it.
func DefaultLongRunning(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/debug/pprof/") ||
		hasToken(r.Header["Upgrade"], "websocket") && hasToken(r.Header["Connection"], "upgrade") ||
		r.Method == http.MethodConnect && hasToken(r.Header[":protocol"], "websocket") ||
		hasToken(r.Header["Accept"], "text/event-stream")
}

// DefaultExempt reports whether r asks for one of the places that must go on
// answering whatever the rest of the server does: /healthz, /livez, /readyz
// and /metrics, and what is below them.
func DefaultExempt(r *http.Request) bool {
	for _, p := range [...]string{"/healthz", "/livez", "/readyz", "/metrics"} {
		if rest, ok := strings.CutPrefix(r.URL.Path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// drain closes the doors and returns a channel that closes when the count is
// zero.
func (f *InFlight) drain() <-chan struct{} {
	zero := f.requests.Close()
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
	s, ok := h.f.requests.Add(1)
	if !ok {
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
	// In the same shard, which is the fastest.
	defer h.f.requests.Done(s, 1)
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
	defer deadline.HandBack(r, inner)
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
func (h *inFlightHandler) serveOn(c *httpConn, w http.ResponseWriter, r *http.Request, s *counter.Shard) {
	c.counted.Store(s)
	defer func() {
		if c.counted.Swap(nil) != nil {
			h.f.requests.Done(s, 1)
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
		f.requests.Done(s, 1)
	}
}

// mayHijack reports whether the client asks to switch protocols in a way that
// needs a hijack.
func mayHijack(r *http.Request) bool {
	return r.ProtoMajor == 1 && (r.Method == http.MethodConnect ||
		len(r.Header["Upgrade"]) > 0 && hasToken(r.Header["Connection"], "upgrade"))
}

// serveUpgrade serves r, which is counted in s and may be hijacked.
func (h *inFlightHandler) serveUpgrade(w http.ResponseWriter, r *http.Request, s *counter.Shard) {
	u := &upgradeWriter{ResponseWriter: w, f: h.f, counted: s}
	inner := withDraining(r, h.f.long.told())
	defer func() {
		deadline.HandBack(r, inner)
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

	mu      sync.Mutex     // guards counted
	counted *counter.Shard // where f counts the request; nil once it is long-running, or over
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
			w.f.requests.Done(w.counted, 1)
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
	w.f.requests.Done(w.counted, 1)
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

// longRunning counts the requests without an end, and lets them go at a pace
// when the server shuts down.
type longRunning struct {
	mu       sync.Mutex    // guards what follows
	draining chan struct{} // nil until needed; closed once drain was called
	drained  bool          // draining is closed
	hurry    chan struct{} // nil until the pace is set; closed when a Wait's context ended
	hurried  bool          // hurry is closed
	interval time.Duration // between two releases
	turn     time.Time     // the earliest time of the next release

	counter.Gauge
}

// add counts one more and returns the channel that tells it of a drain, or
// reports that there is one already.
func (l *longRunning) add() (draining <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	if l.drained {
		return l.draining, false
	}
	l.Gauge.Add(1)
	return l.draining, true
}

// told returns the channel that tells of a drain.
func (l *longRunning) told() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	return l.draining
}

// force counts one more even while draining.
func (l *longRunning) force() { l.Gauge.Add(1) }

func (l *longRunning) makeDrainingLocked() {
	if l.draining == nil {
		l.draining = make(chan struct{})
	}
}

func (l *longRunning) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	if !l.drained {
		l.drained = true
		close(l.draining)
	}
}

// setPaceLocked fixes, when first called, how far apart releases are.
func (l *longRunning) setPaceLocked(window time.Duration, rate float64) {
	if l.hurry != nil {
		return
	}
	l.hurry = make(chan struct{})
	if window == 0 {
		window = 5 * time.Second
	}
	if rate <= 0 {
		rate = 200
	}
	if n := l.Count(); n > 0 && window > 0 {
		l.interval = min(window/time.Duration(n), time.Duration(float64(time.Second)/rate))
	}
	l.turn = time.Now()
}

// release counts one less; first, if its server is draining, it waits for
// its turn, unless the client has gone or the time is up.
func (l *longRunning) release(ctx context.Context, window time.Duration, rate float64) {
	defer l.Gauge.Add(-1)
	l.mu.Lock()
	draining := l.drained
	select {
	case <-Draining(ctx): // it may be the server's channel, not ours
		draining = true
	default:
	}
	if !draining || ctx.Err() != nil {
		l.mu.Unlock()
		return
	}
	l.setPaceLocked(window, rate)
	now := time.Now()
	if l.turn.Before(now) {
		// Turns that nobody took are lost. Were they kept, handlers that all
		// return late would all go at once.
		l.turn = now
	}
	wait := l.turn.Sub(now)
	l.turn = l.turn.Add(l.interval)
	hurry := l.hurry
	l.mu.Unlock()

	if wait == 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
	case <-ctx.Done():
	}
}

func (l *longRunning) wait(ctx context.Context, window time.Duration, rate float64) error {
	l.mu.Lock()
	l.setPaceLocked(window, rate)
	l.mu.Unlock()
	err := await(ctx, l.Reached())
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.hurried {
			l.hurried = true
			close(l.hurry)
		}
	}
	return err
}

// refuse answers a request that this process will not serve, because it is
// shutting down: 503, with the seconds after which to come again (rounded
// up; 1 if retryAfter is not positive), on a connection that is then closed,
// so that the next attempt is a new connection and can find somebody else.
// Over HTTP/2 net/http turns Connection: close into a GOAWAY.
func refuse(w http.ResponseWriter, r *http.Request, retryAfter time.Duration, reason string) {
	setRefusalHeader(w.Header(), retryAfter)
	writeError(w, r, http.StatusServiceUnavailable, reason)
}

func setRefusalHeader(h http.Header, retryAfter time.Duration) {
	h.Set("Connection", "close")
	h.Set("Retry-After", retrySeconds(retryAfter))
	h.Set("X-Content-Type-Options", "nosniff")
}

func retrySeconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}

// writeError answers r with code and a short body that says reason: one line of
// text, or JSON if r's Accept header asks for that.
func writeError(w http.ResponseWriter, r *http.Request, code int, reason string) {
	writeErrorAs(w, r.Header["Accept"], code, reason)
}

// writeErrorAs is writeError for a request with that Accept header.
func writeErrorAs(w http.ResponseWriter, accept []string, code int, reason string) {
	h := w.Header()
	// What an outer handler has said about the answer that now is not given.
	h.Del("Content-Encoding")
	h.Del("Etag")
	h.Del("Last-Modified")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	if wantsJSON(accept) {
		h.Set("Content-Type", "application/json")
		body, _ = json.Marshal(struct { // cannot fail
			Status int    `json:"status"`
			Error  string `json:"error"`
		}{code, reason})
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = []byte(reason)
	}
	body = append(body, '\n')
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	w.Write(body) // an error here is the client's loss: there is no other way to tell it
}

// wantsJSON reports whether an Accept header names JSON (application/json or a
// type ending in +json) and does not name text first.
func wantsJSON(accept []string) bool {
	for _, list := range accept {
		for media := range strings.SplitSeq(list, ",") {
			media, params, _ := strings.Cut(media, ";")
			media = strings.ToLower(strings.TrimSpace(media))
			switch {
			case zeroQuality(params):
			case media == "application/json", strings.HasSuffix(media, "+json"):
				return true
			case media == "text/plain", media == "text/html":
				return false
			}
		}
	}
	return false
}

// zeroQuality reports whether the parameters of a media range say q=0: "not
// acceptable" (RFC 9110 12.4.2).
func zeroQuality(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(k), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return err == nil && q == 0
		}
	}
	return false
}

// hasToken reports whether one of the comma-separated lists in values has
// token, whatever its case and its parameters, unless these say q=0.
func hasToken(values []string, token string) bool {
	for _, list := range values {
		for len(list) >= len(token) {
			item, rest, _ := strings.Cut(list, ",")
			item, params, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(item), token) && !zeroQuality(params) {
				return true
			}
			list = rest
		}
	}
	return false
}
