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

// ErrDraining is the error of InFlight.Add once a Wait has begun.
var ErrDraining = errors.New("graceful: draining, nothing new is admitted")

// An InFlight counts the requests, or any other work, that a shutdown has to
// wait for. Unlike a sync.WaitGroup, it refuses what is added once a Wait has
// begun. The zero value is ready for use. An InFlight must not be copied, and its
// fields must not change once it is in use. All methods may be called
// concurrently.
//
// It works with any http.Server. A Server of this package waits for its requests
// without it. There, an InFlight adds counts for a dashboard, and releases
// long-running requests one after the other.
type InFlight struct {
	// LongRunning reports, before the handler is called, whether a request is
	// long-running: its handler does not return before the client or the server
	// ends it. Handler counts such requests separately, and hijacked ones as well.
	// Nil means DefaultLongRunning.
	LongRunning func(*http.Request) bool

	// Exempt reports whether a request is served even while draining. Such a
	// request is not counted, so that probes do not prolong a Wait. Nil means
	// DefaultExempt.
	Exempt func(*http.Request) bool

	// RetryAfter is sent to refused clients as the Retry-After header, in whole
	// seconds, rounded up. Zero and negative mean 1 s.
	RetryAfter time.Duration

	// Refused writes the response to a refused request. The headers Retry-After,
	// Connection: close and X-Content-Type-Options: nosniff are set before it is
	// called. Nil means 503 with one line of text, or with JSON if the request's
	// Accept header asks for that.
	Refused http.Handler

	// ReleaseWindow is the time over which the long-running requests are
	// released when the server shuts down, so that their clients do not all
	// reconnect at once. Zero means 5 s, negative means all at once.
	ReleaseWindow time.Duration

	// ReleaseRate is the least number of long-running requests that are
	// released per second, so that the release of a few requests takes less than
	// ReleaseWindow. Zero and negative mean 200.
	ReleaseRate float64

	requests counter.Counter // requests and calls of Add in flight
	outlived counter.Gauge   // handlers that run after a RequestTimeout has answered
	long     longRunning
}

// Add counts n more in flight. Once Wait, WaitContext, WaitHandlers or
// WaitLongRunning has been called, Add counts nothing and returns ErrDraining if
// n > 0, also after the count has reached zero. Before, it returns nil. A
// negative n is the same as -n calls of Done; 0 does nothing.
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

// Count returns how many requests and calls of Add are in flight: requests that
// Handler has admitted and that are not answered yet, without long-running ones,
// and what Add has counted. Requests that begin or end during the call may or may
// not be counted.
func (f *InFlight) Count() int { return int(max(0, f.requests.Sum())) }

// Handlers returns how many handlers have not returned: Count, and the handlers
// that run although a RequestTimeout with this InFlight has answered their
// requests.
func (f *InFlight) Handlers() int { return f.Count() + f.outlived.Count() }

// LongRunningCount returns how many long-running requests Handler has admitted
// and not released.
func (f *InFlight) LongRunningCount() int { return f.long.Count() }

// Wait makes the InFlight refuse new requests and calls of Add, and blocks until
// the count is zero. It may be called repeatedly and concurrently; it returns at
// once if the count is zero. Wait closes the channel that Draining returns for the
// contexts of long-running requests, but does not wait for them; WaitLongRunning
// does.
func (f *InFlight) Wait() { f.WaitContext(context.Background()) }

// WaitContext is like Wait, but returns ctx's error if ctx ends first. New
// requests and calls of Add are still refused then.
func (f *InFlight) WaitContext(ctx context.Context) error {
	return await(ctx, f.drain())
}

// WaitHandlers is like WaitContext, but also waits for the handlers that run
// although a RequestTimeout with this InFlight has answered their requests.
func (f *InFlight) WaitHandlers(ctx context.Context) error {
	if err := await(ctx, f.drain()); err != nil {
		return err
	}
	return await(ctx, f.outlived.Reached())
}

// WaitLongRunning makes the InFlight refuse new requests and calls of Add, closes
// the channel that Draining returns for the contexts of long-running requests, and
// blocks until the last of those requests has been released. A request is released
// when its handler has returned and its turn has come. The turns are spread evenly
// over ReleaseWindow, or closer together if they would come at less than
// ReleaseRate. If ctx ends first, WaitLongRunning returns ctx's error, and the
// remaining requests are released as soon as their handlers return.
func (f *InFlight) WaitLongRunning(ctx context.Context) error {
	f.drain()
	return f.long.wait(ctx, f.ReleaseWindow, f.ReleaseRate)
}

// Handler returns a handler that counts each request while next serves it, and
// refuses new requests with 503 once a Wait has begun. Long-running requests are
// counted separately. While the server shuts down, the return of their handlers
// is delayed until their turn to be released. Put Handler outside of a
// RequestTimeout, so that requests are counted until they are answered.
//
// If a request asks to switch protocols (HTTP/1's Upgrade, CONNECT) and its
// connection is hijacked, it is long-running from then on. Handler sees the hijack
// if next calls Hijack on its ResponseWriter or on an http.ResponseController of
// that, but not if it calls Hijack on a writer that it has got by Unwrap.
func (f *InFlight) Handler(next http.Handler) http.Handler { return f.handler(next) }

// DefaultLongRunning reports whether r is of a kind that usually does not end by
// itself: a WebSocket upgrade (over HTTP/2 an extended CONNECT, RFC 8441), a
// request that accepts text/event-stream, or one for a path below /debug/pprof/.
// InFlight uses it if LongRunning is nil.
//
// Clients choose what they send. Therefore RequestTimeout and RequestDeadline,
// which must not be evaded, do not use it.
func DefaultLongRunning(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/debug/pprof/") ||
		hasToken(r.Header["Upgrade"], "websocket") && hasToken(r.Header["Connection"], "upgrade") ||
		r.Method == http.MethodConnect && hasToken(r.Header[":protocol"], "websocket") ||
		hasToken(r.Header["Accept"], "text/event-stream")
}

// DefaultExempt reports whether r is for a path that should be served during a
// drain as well: /healthz, /livez, /readyz, /metrics, or a path below one of them.
func DefaultExempt(r *http.Request) bool {
	for _, p := range [...]string{"/healthz", "/livez", "/readyz", "/metrics"} {
		if rest, ok := strings.CutPrefix(r.URL.Path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// drain makes f refuse new requests, and returns a channel that is closed when the
// count is zero.
func (f *InFlight) drain() <-chan struct{} {
	zero := f.requests.Close()
	f.long.drain()
	return zero
}

// await waits until ch is closed and returns nil, or until ctx ends and returns
// its error. It returns nil if both are so, and if ch is nil.
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

// serverHandler is Handler for the Server that f belongs to. The Server reports
// hijacks to f by hijacked.
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
	// In the shard that Add used, which is the fastest.
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
	inner := announcing(r, draining)
	defer h.f.long.release(inner.Context(), h.f.ReleaseWindow, h.f.ReleaseRate)
	defer deadline.HandBack(r, inner)
	h.next.ServeHTTP(w, inner)
}

// announcing returns r with a context for which Draining and ShutdownBegun return
// draining. It returns r itself if its context has a server's channels.
func announcing(r *http.Request, draining <-chan struct{}) *http.Request {
	ctx := r.Context()
	if Draining(ctx) != nil {
		return r
	}
	return r.WithContext(withMoments(ctx, moments{draining, draining}))
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

// hijacked counts the request in progress on c as long-running from now on, if f
// counts it.
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
	inner := announcing(r, h.f.long.drainChan())
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
	counted *counter.Shard // where f counts the request; nil once it is long-running or done
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

// longRunning counts the long-running requests, and spreads their release over a
// time when the server shuts down.
type longRunning struct {
	mu       sync.Mutex    // guards what follows
	draining chan struct{} // nil until needed; closed once drain was called
	drained  bool          // draining is closed
	hurry    chan struct{} // nil until interval is set; closed when a Wait's context ended
	hurried  bool          // hurry is closed
	interval time.Duration // between two releases
	turn     time.Time     // the earliest time of the next release

	counter.Gauge
}

// add counts one more request and returns its draining channel. If that is closed
// already, it counts nothing and reports false.
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

// drainChan returns the channel that is closed by drain.
func (l *longRunning) drainChan() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	return l.draining
}

// force counts one more request, also while draining.
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

// setPaceLocked sets interval and the first turn, when it is called first.
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

// release counts one request less. If the server is draining, it first waits for
// the request's turn, until ctx ends or hurry is closed.
func (l *longRunning) release(ctx context.Context, window time.Duration, rate float64) {
	defer l.Gauge.Add(-1)
	l.mu.Lock()
	draining := l.drained
	select {
	case <-ShutdownBegun(ctx): // the server's channel, or l.draining
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
		// A turn that no handler took is lost. Otherwise handlers that all return
		// late would all be released at once.
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

// refuse answers a request with 503, because the server is starting or shutting
// down. Retry-After is retryAfter in whole seconds, rounded up, and 1 if
// retryAfter is not positive. Connection: close makes the client open a new
// connection for its next attempt, which a load balancer can route elsewhere. Over
// HTTP/2 net/http turns Connection: close into a GOAWAY.
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

// writeErrorAs is writeError for a request with the Accept header accept.
func writeErrorAs(w http.ResponseWriter, accept []string, code int, reason string) {
	h := w.Header()
	// An outer handler may have set headers for the response that it expected.
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
	w.Write(body) // an error cannot be reported to the client in another way
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

// hasToken reports whether one of the comma-separated lists in values contains
// token, in any case and with any parameters except q=0.
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
