package graceful

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	// CheckTimeout is how long a probe waits for a check. One that takes
	// longer has failed; its result is used by the next probe if it comes
	// in time for that. Zero means 1 s, the default timeout of a Kubernetes
	// probe.
	CheckTimeout time.Duration

	// RetryAfter is what Handler tells a client that came too early, in
	// whole seconds, rounded up. Zero means 1 s.
	RetryAfter time.Duration

	// Exempt reports whether Handler lets a request through even before the
	// application is ready. Nil means DefaultExempt.
	Exempt func(*http.Request) bool

	// ShowErrors makes the answers say why a check failed. Probes are often
	// open to anybody, and errors often say too much: by default they say
	// only which.
	ShowErrors bool

	said     atomic.Int32 // what SetReady was told: 0 nothing, 1 ready, 2 unready
	shutdown atomic.Bool

	mu          sync.Mutex // guards ready, live: replaced, never changed in place
	ready, live []*check
}

// AddCheck adds a check to readiness: the process is unready while it returns
// an error. Its context ends at CheckTimeout. It may be called by several
// probes in turn, but not by two at once; a check that panics has failed. A
// name is given once only, and "startup" and "shutdown" are taken; misuse
// panics.
func (h *Health) AddCheck(name string, f func(context.Context) error) {
	h.addCheck(&h.ready, name, f)
}

// AddLiveCheck adds a check to liveness: while it returns an error, the
// process wants to be restarted. It should find what a restart heals and
// nothing else, a deadlock but not a database that is away.
func (h *Health) AddLiveCheck(name string, f func(context.Context) error) {
	h.addCheck(&h.live, name, f)
}

func (h *Health) addCheck(to *[]*check, name string, f func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	taken := func(c *check) bool { return c.name == name }
	if name == "" || name == "startup" || name == "shutdown" || slices.ContainsFunc(*to, taken) {
		panic(fmt.Sprintf("graceful: health check name %q is empty or taken", name))
	}
	*to = append(slices.Clip(*to), &check{name: name, f: f})
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

// Shutdown makes it unready, for good. LiveHandler and Handler do not mind.
func (h *Health) Shutdown() { h.shutdown.Store(true) }

var (
	errNotReady     = errors.New("the application is not ready")
	errShuttingDown = errors.New("the server is shutting down")
)

func (h *Health) startup(context.Context) error {
	if said := h.said.Load(); said == 2 || said == 0 && h.WaitForReady {
		return errNotReady
	}
	return nil
}

// shuttingDown takes the context of the probe, for the server that it came
// by may be one that is shutting down.
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

// ReadyHandler answers 200 if the process should be sent requests, and 503
// with the names of what is against it otherwise. Beside the checks that were
// added these are "startup" (the application is not ready yet) and
// "shutdown". ?verbose lists them also when all is well; ?exclude=name,
// repeated if need be, leaves one out.
func (h *Health) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.answer(w, r, h.readyChecks(r.Context()))
	})
}

// readyChecks returns the checks of readiness for a probe with the context ctx.
func (h *Health) readyChecks(ctx context.Context) []*check {
	// These two do not block, and cost nothing to do again.
	builtin := []*check{
		{name: "startup", result: func() error { return h.startup(ctx) }},
		{name: "shutdown", result: func() error { return h.shuttingDown(ctx) }},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(builtin, h.ready...)
}

// failing returns the names of the checks for which ReadyHandler would answer a
// probe with 503. It blocks until all checks have returned, at most for
// CheckTimeout.
func (h *Health) failing(ctx context.Context) []string {
	timeout := h.checkTimeout()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	checks := h.readyChecks(ctx)
	runs := make([]*checkRun, len(checks))
	for i, c := range checks {
		runs[i] = c.start(ctx, timeout)
	}
	var names []string
	for i, run := range runs {
		if run.wait(ctx) != nil {
			names = append(names, checks[i].name)
		}
	}
	return names
}

// checkTimeout returns what CheckTimeout means.
func (h *Health) checkTimeout() time.Duration {
	if h.CheckTimeout <= 0 {
		return time.Second
	}
	return h.CheckTimeout
}

// LiveHandler answers 200 unless a check of AddLiveCheck fails: a shutdown is
// no reason to be killed. It understands the same queries as ReadyHandler.
func (h *Health) LiveHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		checks := h.live
		h.mu.Unlock()
		h.answer(w, r, checks)
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

// answer runs the checks, all at once, and writes what came of it.
func (h *Health) answer(w http.ResponseWriter, r *http.Request, checks []*check) {
	query := r.URL.Query()
	exclude := query["exclude"]
	timeout := h.checkTimeout()
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	runs := make([]*checkRun, len(checks))
	for i, c := range checks {
		if !slices.Contains(exclude, c.name) {
			runs[i] = c.start(ctx, timeout)
		}
	}

	var text strings.Builder
	failed := false
	for i, c := range checks {
		if runs[i] == nil {
			fmt.Fprintf(&text, "[+]%s excluded\n", c.name)
			continue
		}
		switch err := runs[i].wait(ctx); {
		case err == nil:
			fmt.Fprintf(&text, "[+]%s ok\n", c.name)
		case h.ShowErrors || err == errNotReady || err == errShuttingDown:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: %v\n", c.name, err)
		default:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.name)
		}
	}
	for _, name := range exclude {
		if !slices.ContainsFunc(checks, func(c *check) bool { return c.name == name }) {
			fmt.Fprintf(&text, "[?]%q is no check, and was not excluded\n", name)
		}
	}

	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case failed:
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, text.String()+"failed\n")
	case query.Has("verbose"):
		io.WriteString(w, text.String()+"ok\n")
	default:
		io.WriteString(w, "ok\n")
	}
}
