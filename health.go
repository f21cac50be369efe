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

// A Health answers the probes of an orchestrator: ReadyHandler whether the
// process should be sent requests, LiveHandler whether it should be left
// alive. The zero value is ready for use; a Health must not be copied, and
// its fields must not change once a handler of it serves. All methods may be
// called concurrently.
//
// It is unready from the first moment of a shutdown, ShutdownDelay included:
// a Server of this package tells it, and so does the context of a probe that
// such a server serves. Under a plain http.Server call Shutdown, or have it
// called: RegisterOnShutdown(h.Shutdown).
type Health struct {
	// WaitForReady keeps it unready until SetReady(true) is called: an
	// application that has caches to fill says so when it has. False: ready
	// from the start.
	WaitForReady bool

	// CheckTimeout is how long a check may take, for those without a Timeout
	// of their own. Zero means 1 s, the default timeout of a Kubernetes probe.
	CheckTimeout time.Duration

	// CheckMaxAge is how long the result of a check answers further probes,
	// for those without a MaxAge of their own. Zero means 1 s; negative means
	// that only probes which arrive while the check runs share its result.
	CheckMaxAge time.Duration

	// CheckChanged, if not nil, is called when a check begins to fail, with
	// its error, and when it succeeds again, with nil. This is the place to
	// log the errors that the answers withhold. Calls for one check come one
	// at a time and in order, and its probes wait for them.
	CheckChanged func(name string, err error)

	// RetryAfter is what Handler tells a client that came too early, in
	// whole seconds, rounded up. Zero means 1 s.
	RetryAfter time.Duration

	// Exempt reports whether Handler lets a request through even before the
	// application is ready. Nil means DefaultExempt.
	Exempt func(*http.Request) bool

	// ShowErrors makes the answers say why a check failed. Probes are often
	// open to anybody, and errors often say too much: by default the answers
	// give only the check's name.
	ShowErrors bool

	said     atomic.Int32 // what SetReady was told: 0 nothing, 1 ready, 2 unready
	shutdown atomic.Bool

	mu          sync.Mutex // guards ready, live: replaced, never changed in place
	ready, live []*check
}

// A HealthCheck is a condition of readiness or liveness, for Health.Add.
type HealthCheck struct {
	// Name is what the answers call it. "startup" and "shutdown" are taken,
	// and two checks of the same probe must not share a name.
	Name string

	// Check returns nil if all is well. Its context ends when its time is
	// over. It runs on a goroutine of its own and never twice at once: probes
	// that arrive meanwhile wait for the same run. A panic counts as an error.
	Check func(context.Context) error

	// Live makes it a condition of liveness instead of readiness. While it
	// fails the orchestrator restarts the process, so it should detect what a
	// restart heals: a deadlock, but not a database that is away.
	Live bool

	// WarnOnly keeps the answer at 200 while this check fails; the failure is
	// listed in the answer as a warning. It is for dependencies without which
	// the process can still do some of its work.
	WarnOnly bool

	// Timeout is how long it may take. A run that takes longer has failed,
	// whatever it returns, and keeps the check failed until it has returned.
	// Zero means Health.CheckTimeout.
	Timeout time.Duration

	// MaxAge is how long its result, good or bad, answers further probes, so
	// that many probes do not become many queries to a database. Zero means
	// Health.CheckMaxAge; negative means not at all.
	MaxAge time.Duration
}

// Add adds a check. It panics if the name is empty or taken, or Check is nil.
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

// AddCheck is Add(HealthCheck{Name: name, Check: f}): the process is unready
// while f returns an error.
func (h *Health) AddCheck(name string, f func(context.Context) error) {
	h.Add(HealthCheck{Name: name, Check: f})
}

// AddLiveCheck is Add(HealthCheck{Name: name, Check: f, Live: true}): the
// process wants to be restarted while f returns an error.
func (h *Health) AddLiveCheck(name string, f func(context.Context) error) {
	h.Add(HealthCheck{Name: name, Check: f, Live: true})
}

// SetReady says that the application is ready, or is not: for WaitForReady,
// or to step out of the rotation for a while.
func (h *Health) SetReady(ready bool) {
	if ready {
		h.said.Store(1)
	} else {
		h.said.Store(2)
	}
}

// Shutdown makes it unready, for good. It does not change what LiveHandler and
// Handler do.
func (h *Health) Shutdown() { h.shutdown.Store(true) }

// Alive returns nil if no check of liveness fails, and otherwise their errors
// with their names. It is LiveHandler for callers in the process, such as
// SystemdWatchdog. It waits for the checks until ctx ends.
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

// ReadyHandler answers 200 if the process should be sent requests, and 503
// with the names of what is against it otherwise. Beside the checks that were
// added these are "startup" (the application is not ready yet) and
// "shutdown".
//
// Of the query, verbose lists all checks also when all is well; exclude=name,
// repeated if need be, leaves one out; format=json, or an Accept header that
// prefers JSON, asks for JSON with all checks in the form of
// draft-inadarei-api-health-check, where the status is pass, warn or fail and
// time is when the check last ran. format=text asks for text.
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
// probe with 503. It blocks until all checks have returned, or are over their time.
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

// LiveHandler answers 200 unless a check of liveness fails: a shutdown is no
// reason to be killed. It understands the same queries as ReadyHandler.
func (h *Health) LiveHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		checks := h.live
		h.mu.Unlock()
		h.answer(w, r, nil, checks)
	})
}

// Handler returns a handler that answers requests which come before the
// application is ready with 503 and Retry-After, and hands all others to
// next: a client that is too early should come again, and not believe a 404
// from a mux that is not complete. A shutdown changes nothing here: what
// still comes is still served.
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
	if said := h.said.Load(); said == 2 || said == 0 && h.WaitForReady {
		return errNotReady
	}
	return nil
}

// shuttingDown returns an error once the shutdown has begun. ctx is the
// probe's: the server that it came by may be one that is shutting down.
func (h *Health) shuttingDown(ctx context.Context) error {
	select {
	case <-Draining(ctx):
		h.shutdown.Store(true) // so that probes by another server see it too
	default:
	}
	if h.shutdown.Load() {
		return errShuttingDown
	}
	return nil
}

// answer runs the checks, all at once, and writes builtin's results and theirs.
func (h *Health) answer(w http.ResponseWriter, r *http.Request, builtin []checkResult, checks []*check) {
	query := r.URL.Query()
	excluded := make(map[string]bool) // whether a check has that name
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
			unknown = append(unknown, fmt.Sprintf("%q is no check, and was not excluded", name))
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
	w.Write(body) // an error here is the client's: it has gone
}

// asText lists the results as the Kubernetes apiserver does, if something
// failed or verbose is true.
func (h *Health) asText(status string, results []checkResult, unknown []string, verbose bool) []byte {
	var b strings.Builder
	last := "ok"
	if status == "fail" {
		last = "failed"
	}
	if status != "fail" && !verbose {
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

// reason is what an answer may say about err.
func (h *Health) reason(err error) string {
	if h.ShowErrors || err == errNotReady || err == errShuttingDown {
		return err.Error()
	}
	return "reason withheld"
}

// A checkResult is what an answer says about one check.
type checkResult struct {
	name     string
	err      error
	warnOnly bool
	excluded bool
	at       time.Time     // when it was found
	took     time.Duration // how long that took
}

// A check is a HealthCheck with its latest run.
type check struct {
	HealthCheck

	mu  sync.Mutex // guards run
	run *checkRun  // under way or over; nil before the first
}

// A checkRun is one run of a check.
type checkRun struct {
	ctx   context.Context // the check's; ends when its time is over
	began time.Time
	late  error         // the error of a run that took longer
	done  chan struct{} // closed when the fields below are set

	err   error
	ended time.Time
}

// startAll returns the runs of checks, nil for those that exclude is true of.
func (h *Health) startAll(ctx context.Context, checks []*check, exclude func(name string) bool) []*checkRun {
	runs := make([]*checkRun, len(checks))
	for i, c := range checks {
		if exclude == nil || !exclude(c.Name) {
			runs[i] = h.start(ctx, c)
		}
	}
	return runs
}

// start returns c's run: the one under way, else the last one if it is recent
// enough, else a new one. A run goes on when the probe that began it has gone,
// for others may have joined it.
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
		defer cancel() // last: wait takes the end of ctx for lateness
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

// wait returns the run's result, once it is known or ctx has ended.
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
