package graceful

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Health answers the probes of an orchestrator, such as Kubernetes.
// ReadyHandler says whether the process should get requests, LiveHandler whether
// it should be restarted. The zero value is ready for use. A Health must not be
// copied, and its fields must not change once a handler of it serves. All methods
// may be called concurrently.
//
// It is unready once the shutdown of its Server has begun, ShutdownDelay
// included. It is also unready once it has answered a probe that was served by
// another Server of this package that is shutting down. With a plain http.Server,
// call RegisterOnShutdown(h.Shutdown).
type Health struct {
	// WaitForReady makes the Health unready until SetReady(true) is called, for
	// example because the application has to fill caches first. If it is false,
	// the Health is ready from the start.
	WaitForReady bool

	// CheckTimeout is how long a check without a Timeout of its own may take. Zero
	// and negative mean 1 s, the default timeout of a Kubernetes probe.
	CheckTimeout time.Duration

	// CheckMaxAge is how long the result of a check without a MaxAge of its own
	// answers further probes. Zero means 1 s. Negative means that only probes that
	// arrive while the check runs share its result.
	CheckMaxAge time.Duration

	// CheckChanged, if not nil, is called when a check begins to fail, with
	// its error, and when it succeeds again, with nil. It can log the errors,
	// which the responses do not contain by default. The calls for one check come
	// one at a time and in order, and the check's probes wait for them.
	CheckChanged func(name string, err error)

	// RetryAfter is the Retry-After header of the requests that Handler refuses, in
	// whole seconds, rounded up. Zero and negative mean 1 s.
	RetryAfter time.Duration

	// Exempt reports whether Handler serves a request even before the
	// application is ready. Nil means DefaultExempt.
	Exempt func(*http.Request) bool

	// ShowErrors puts the errors of failed checks into the responses. By default
	// the responses have only the names of the checks, because errors may contain
	// internals and probes are often accessible to all clients.
	ShowErrors bool

	setReady atomic.Int32 // the last SetReady: 0 none, 1 ready, 2 unready
	shutdown atomic.Bool

	mu          sync.Mutex // guards ready, live: replaced, never changed in place
	ready, live []*check
}

// A HealthCheck is a condition of readiness or liveness, for Health.Add.
type HealthCheck struct {
	// Name is the check's name in the responses. The names "startup" and
	// "shutdown" are reserved. Two checks of the same probe must not have the same
	// name.
	Name string

	// Check returns nil if the condition holds. Its context ends after Timeout. It
	// runs on a goroutine of its own, and not concurrently with itself: probes that
	// arrive while it runs wait for its result. A panic counts as an error.
	Check func(context.Context) error

	// Live makes the check a condition of liveness instead of readiness. The
	// orchestrator restarts the process while the check fails, so it should detect
	// what a restart repairs, such as a deadlock, but not a database that cannot
	// be reached.
	Live bool

	// WarnOnly keeps the status at 200 while this check fails. The failure is
	// listed in the response as a warning. It is for dependencies without which
	// the process can still do some of its work.
	WarnOnly bool

	// Timeout is how long a run of the check may take. A run that takes longer
	// counts as failed, whatever it returns, also until it returns. Zero and
	// negative mean Health.CheckTimeout.
	Timeout time.Duration

	// MaxAge is how long a result, success or failure, answers further probes, so
	// that frequent probes do not cause as many queries to a database, for
	// example. Zero means Health.CheckMaxAge. Negative means that only probes that
	// arrive while the check runs share its result.
	MaxAge time.Duration
}

// Add adds a check, also while probes are answered. It panics if the name is empty,
// reserved or used, or if Check is nil.
func (h *Health) Add(hc HealthCheck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := &h.ready
	if hc.Live {
		to = &h.live
	}
	taken := func(c *check) bool { return c.Name == hc.Name }
	if hc.Name == "" || hc.Name == "startup" || hc.Name == "shutdown" || slices.ContainsFunc(*to, taken) {
		panic(fmt.Sprintf("graceful: health check name %q is empty or taken", hc.Name))
	}
	if hc.Check == nil {
		panic(fmt.Sprintf("graceful: health check %q has no function", hc.Name))
	}
	*to = append(slices.Clip(*to), &check{HealthCheck: hc})
}

// AddCheck calls Add(HealthCheck{Name: name, Check: f}). The process is unready
// while f returns an error.
func (h *Health) AddCheck(name string, f func(context.Context) error) {
	h.Add(HealthCheck{Name: name, Check: f})
}

// AddLiveCheck calls Add(HealthCheck{Name: name, Check: f, Live: true}). The
// orchestrator should restart the process while f returns an error.
func (h *Health) AddLiveCheck(name string, f func(context.Context) error) {
	h.Add(HealthCheck{Name: name, Check: f, Live: true})
}

// SetReady sets whether the application is ready: true ends the wait of
// WaitForReady, false makes the Health unready until SetReady(true), for example to
// take the process out of a load balancer for a while.
func (h *Health) SetReady(ready bool) {
	if ready {
		h.setReady.Store(1)
	} else {
		h.setReady.Store(2)
	}
}

// Shutdown makes the Health unready. That cannot be undone. It has no effect on
// LiveHandler and Handler.
func (h *Health) Shutdown() { h.shutdown.Store(true) }

// Alive returns nil if no check of liveness fails, and otherwise their errors,
// each with the check's name, joined with errors.Join. It is for callers in the
// process, such as SystemdWatchdog. It blocks until the checks have returned; a
// check that has not returned when ctx ends fails with ctx's error.
func (h *Health) Alive(ctx context.Context) error {
	h.mu.Lock()
	checks := h.live
	h.mu.Unlock()
	var failed []error
	for i, run := range h.startAll(ctx, checks, nil) {
		if _, _, err := run.wait(ctx); err != nil && !checks[i].WarnOnly {
			failed = append(failed, fmt.Errorf("%s: %w", checks[i].Name, err))
		}
	}
	return errors.Join(failed...)
}

// ReadyHandler returns a handler for readiness probes. It answers 200 if the
// process should get requests, and otherwise 503. If a check fails, or warns, the
// response lists the checks. Besides those that were added there are two: "startup"
// fails while the application is not ready, and "shutdown" once a shutdown has begun.
//
// The request's query changes the response. verbose lists all checks, also if none
// fails. exclude=name, which may be repeated, leaves the named check out.
// format=json gives JSON with all checks in the form of
// draft-inadarei-api-health-check, where the status is pass, warn or fail and time
// is when the check last ran; format=text gives text. Without format, JSON is given
// if the Accept header prefers it.
func (h *Health) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		h.mu.Lock()
		checks := h.ready
		h.mu.Unlock()
		h.answer(w, r, []checkResult{
			{name: "startup", err: h.startup(r.Context()), at: now},
			{name: "shutdown", err: h.shuttingDown(r.Context()), at: now},
		}, checks)
	})
}

// failing returns the names of the checks for which ReadyHandler would answer a
// probe with 503. It blocks until all checks have returned or timed out.
func (h *Health) failing(ctx context.Context) []string {
	var names []string
	if h.startup(ctx) != nil {
		names = append(names, "startup")
	}
	if h.shuttingDown(ctx) != nil {
		names = append(names, "shutdown")
	}
	h.mu.Lock()
	checks := h.ready
	h.mu.Unlock()
	for i, run := range h.startAll(ctx, checks, nil) {
		if _, _, err := run.wait(ctx); err != nil && !checks[i].WarnOnly {
			names = append(names, checks[i].Name)
		}
	}
	return names
}

// LiveHandler returns a handler for liveness probes. It answers 503 if a check of
// liveness fails, and otherwise 200, also during a shutdown, so that the
// orchestrator does not kill the process meanwhile. It has the same query
// parameters as ReadyHandler.
func (h *Health) LiveHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		checks := h.live
		h.mu.Unlock()
		h.answer(w, r, nil, checks)
	})
}

// Handler returns a handler that answers requests with 503 and Retry-After while
// the application is not ready, and passes all others to next. So a client retries
// instead of getting a 404, for example, from a mux that is not complete. Requests
// are served during a shutdown as well.
func (h *Health) Handler(next http.Handler) http.Handler {
	exempt := h.Exempt
	if exempt == nil {
		exempt = DefaultExempt
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.startup(r.Context()) != nil && !exempt(r) {
			w.Header().Set("Retry-After", retrySeconds(h.RetryAfter))
			writeError(w, r, http.StatusServiceUnavailable, "the server is starting, please try again")
			return
		}
		next.ServeHTTP(w, r)
	})
}

var (
	errNotReady     = errors.New("the application is not ready")
	errShuttingDown = errors.New("the server is shutting down")
)

// startup returns why the application is not ready, or nil.
func (h *Health) startup(context.Context) error {
	if set := h.setReady.Load(); set == 2 || set == 0 && h.WaitForReady {
		return errNotReady
	}
	return nil
}

// shuttingDown returns an error once the shutdown has begun, either h's or that of
// the server that serves the probe with the context ctx.
func (h *Health) shuttingDown(ctx context.Context) error {
	select {
	case <-ShutdownBegun(ctx):
		h.shutdown.Store(true) // for probes that another server serves
	default:
	}
	if h.shutdown.Load() {
		return errShuttingDown
	}
	return nil
}

// answer runs the checks concurrently, and writes the results of builtin and
// checks.
func (h *Health) answer(w http.ResponseWriter, r *http.Request, builtin []checkResult, checks []*check) {
	query := r.URL.Query()
	excluded := make(map[string]bool) // by name: whether there is such a check
	for _, name := range query["exclude"] {
		excluded[name] = false
	}
	exclude := func(name string) bool {
		_, ok := excluded[name]
		if ok {
			excluded[name] = true
		}
		return ok
	}
	runs := h.startAll(r.Context(), checks, exclude)
	results := builtin
	for i := range results {
		results[i].excluded = exclude(results[i].name)
	}
	for i, c := range checks {
		res := checkResult{name: c.Name, warnOnly: c.WarnOnly, excluded: runs[i] == nil}
		if run := runs[i]; run != nil {
			res.at, res.took, res.err = run.wait(r.Context())
		}
		results = append(results, res)
	}
	var unknown []string
	for _, name := range query["exclude"] {
		if !excluded[name] {
			unknown = append(unknown, fmt.Sprintf("exclude=%q: there is no such check", name))
		}
	}

	status := "pass"
	for _, res := range results {
		switch {
		case res.excluded || res.err == nil:
		case !res.warnOnly:
			status = "fail"
		case status == "pass":
			status = "warn"
		}
	}
	asJSON := wantsJSON(r.Header["Accept"])
	if query.Has("format") {
		asJSON = query.Get("format") == "json"
	}
	var body []byte
	header := w.Header()
	if asJSON {
		header.Set("Content-Type", "application/json")
		body = h.asJSON(status, results, unknown)
	} else {
		header.Set("Content-Type", "text/plain; charset=utf-8")
		body = h.asText(status, results, unknown, query.Has("verbose"))
	}
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	if status == "fail" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	w.Write(body) // an error means that the client has disconnected
}

// asText renders the results as the Kubernetes apiserver does: as a list if a
// check failed or warns, or verbose is true, and otherwise as one line.
func (h *Health) asText(status string, results []checkResult, unknown []string, verbose bool) []byte {
	var b strings.Builder
	last := "ok"
	if status == "fail" {
		last = "failed"
	}
	if status == "pass" && !verbose {
		return []byte(last + "\n")
	}
	for _, res := range results {
		switch {
		case res.excluded:
			fmt.Fprintf(&b, "[+]%s excluded\n", res.name)
		case res.err == nil:
			fmt.Fprintf(&b, "[+]%s ok\n", res.name)
		case res.warnOnly:
			fmt.Fprintf(&b, "[!]%s warning: %s\n", res.name, h.reason(res.err))
		default:
			fmt.Fprintf(&b, "[-]%s failed: %s\n", res.name, h.reason(res.err))
		}
	}
	for _, note := range unknown {
		fmt.Fprintf(&b, "[?]%s\n", note)
	}
	b.WriteString(last + "\n")
	return []byte(b.String())
}

// asJSON renders the results in the form of draft-inadarei-api-health-check-06,
// in which a name may have several measurements: here it is always one.
func (h *Health) asJSON(status string, results []checkResult, unknown []string) []byte {
	type measurement struct {
		Status string    `json:"status"`
		Time   time.Time `json:"time"`
		Value  float64   `json:"observedValue"`
		Unit   string    `json:"observedUnit"`
		Output string    `json:"output,omitempty"`
	}
	doc := struct {
		Status string                   `json:"status"`
		Notes  []string                 `json:"notes,omitempty"`
		Checks map[string][]measurement `json:"checks"`
	}{status, unknown, make(map[string][]measurement)}
	for _, res := range results {
		if res.excluded {
			doc.Notes = append(doc.Notes, res.name+" was excluded")
			continue
		}
		m := measurement{
			Status: "pass",
			Time:   res.at.UTC(),
			Value:  float64(res.took.Microseconds()) / 1000,
			Unit:   "ms",
		}
		if res.err != nil {
			m.Status, m.Output = "fail", h.reason(res.err)
			if res.warnOnly {
				m.Status = "warn"
			}
		}
		doc.Checks[res.name] = []measurement{m}
	}
	body, _ := json.MarshalIndent(doc, "", "  ") // cannot fail: a time.Now is within RFC 3339's years
	return append(body, '\n')
}

// reason returns the text for err in a response.
func (h *Health) reason(err error) string {
	if h.ShowErrors || err == errNotReady || err == errShuttingDown {
		return err.Error()
	}
	return "reason withheld"
}

// A checkResult is the result of one check for a response.
type checkResult struct {
	name     string
	err      error
	warnOnly bool
	excluded bool
	at       time.Time     // when the check ended
	took     time.Duration // how long it took
}

// A check is a HealthCheck with its latest run.
type check struct {
	HealthCheck

	mu  sync.Mutex // guards run
	run *checkRun  // the latest, under way or over; nil before the first
}

// A checkRun is one run of a check.
type checkRun struct {
	ctx   context.Context // passed to Check; ends after the timeout
	began time.Time
	late  error         // the error of a run that took longer
	done  chan struct{} // closed when the fields below are set

	err   error
	ended time.Time
}

// startAll returns the runs of checks, nil for those that exclude reports true
// for.
func (h *Health) startAll(ctx context.Context, checks []*check, exclude func(name string) bool) []*checkRun {
	runs := make([]*checkRun, len(checks))
	for i, c := range checks {
		if exclude == nil || !exclude(c.Name) {
			runs[i] = h.start(ctx, c)
		}
	}
	return runs
}

// start returns the run of c that is under way, or the last one if it is recent
// enough, or a new one. A run goes on when the probe that began it is cancelled,
// because other probes may wait for it.
func (h *Health) start(ctx context.Context, c *check) *checkRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.run
	if before != nil {
		select {
		case <-before.done:
			if maxAge := orDefault(c.MaxAge, orDefault(h.CheckMaxAge, time.Second)); time.Since(before.ended) < maxAge {
				return before
			}
		default:
			return before
		}
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = h.CheckTimeout
	}
	if timeout <= 0 {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	run := &checkRun{
		ctx:   ctx,
		began: time.Now(),
		late:  fmt.Errorf("not done within %s", timeout),
		done:  make(chan struct{}),
	}
	c.run = run
	go func() {
		defer cancel() // last, since wait takes the end of ctx for a timeout
		defer close(run.done)
		defer func() { // deferred for checks that call runtime.Goexit
			if wasWell := before == nil || before.err == nil; wasWell != (run.err == nil) && h.CheckChanged != nil {
				h.CheckChanged(c.Name, run.err)
			}
		}()
		run.call(c.Check)
	}()
	return run
}

// orDefault returns d, or the default if d is zero.
func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// call runs f and sets err and ended.
func (r *checkRun) call(f func(context.Context) error) {
	err := errors.New("the check called runtime.Goexit")
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		if r.ctx.Err() != nil {
			err = r.late
		}
		r.err, r.ended = err, time.Now()
	}()
	err = f(r.ctx)
}

// wait waits for the run's end, its timeout, or the end of ctx, and returns the
// result.
func (r *checkRun) wait(ctx context.Context) (at time.Time, took time.Duration, err error) {
	select {
	case <-r.done:
	case <-r.ctx.Done():
	case <-ctx.Done():
	}
	select {
	case <-r.done:
		return r.ended, r.ended.Sub(r.began), r.err
	default:
	}
	err = ctx.Err()
	if r.ctx.Err() != nil {
		err = r.late
	}
	now := time.Now()
	return now, now.Sub(r.began), err
}
