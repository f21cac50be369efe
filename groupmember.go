package graceful

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// GroupMember is what Group.Add takes: *Server and *Listener.
type GroupMember interface {
	// Shutdown drains; when ctx ends first it closes what is left and returns
	// ctx's error. The group calls it once, with a context that ends a little
	// before the share of the servers does (and at once on a kill). Whatever
	// BeforeShutdown says does not count: the group has decided. The member's
	// own Timeout may end it earlier, counted from this call.
	Shutdown(ctx context.Context) error

	// joinGroup is called once, by Add, before anything is served. From then
	// on the member behaves as if NoSignalHandling were set and ShutdownDelay
	// 0, whatever its fields say. It panics if the member serves already, has
	// been stopped, or belongs to a group.
	joinGroup()

	// startInGroup is called at most once, by Group.Start, and only if Add
	// was given no serve functions. It binds what the member's fields say and
	// serves in the background, as Start does; an error means that nothing
	// has been started. wait blocks until serving is over and returns what
	// Serve would have: nil for a stop that was asked for. A member that can
	// not serve by itself (a Listener whose Accept is another's to call)
	// returns an error that says that Add needs a serve function.
	startInGroup() (wait func() error, err error)

	// beginDelay is called once, at the first moment of the group's shutdown,
	// and returns at once. The member enters the delaying phase with no end of
	// its own: unready, Draining closed, Connection: close on HTTP/1
	// responses, everything still served until Shutdown is called, which
	// always follows. It also comes when the member has stopped by itself
	// (then it does nothing), and when a serve function has been called but
	// has not got to serving (then it is remembered). A member that the group
	// has not started gets neither this call nor Shutdown.
	beginDelay()

	// unready returns the names of the checks for which the member's ready
	// handler would answer 503 to a probe with the context ctx, or "" if it
	// would answer 200. It blocks as long as those checks do, and may be
	// called at any time and from any goroutine.
	unready(ctx context.Context) string

	// groupSummary is what GroupReport says beside the member's name, one
	// line without its end ("12 in flight, 40 idle, 1 killed"), or "". It may
	// be called at any time and from any goroutine.
	groupSummary() string
}

// ShutdownThenClose returns a shutdown function for Group.Server from a server
// like *http.Server, whose Shutdown leaves the connections that it has waited
// for in vain open when ctx ends: then it calls Close, and returns ctx's error.
// It also calls Close when Shutdown panics.
func ShutdownThenClose(srv interface {
	Shutdown(context.Context) error
	io.Closer
}) func(context.Context) error {
	return func(ctx context.Context) error {
		returned := false
		defer func() {
			if !returned {
				srv.Close()
			}
		}()
		err := srv.Shutdown(ctx)
		returned = true
		if ctx.Err() != nil && err != nil {
			if cerr := srv.Close(); cerr != nil && !errors.Is(cerr, http.ErrServerClosed) {
				err = errors.Join(err, cerr)
			}
		}
		return err
	}
}

// StopThenKill returns a shutdown function for Group.Server from a server
// whose graceful stop knows no context, like *grpc.Server: it calls stop, and
// when ctx ends before stop has returned, kill, which has to make it return:
//
//	g.Server("grpc", func() error { return s.Serve(l) },
//		graceful.StopThenKill(s.GracefulStop, s.Stop))
//
// It then returns ctx's error. It also calls kill when stop panics, as grpc-go's
// GracefulStop does beside ServeHTTP.
func StopThenKill(stop, kill func()) func(context.Context) error {
	return func(ctx context.Context) error {
		end := make(chan error, 1)
		spawn(func() error { stop(); return nil }, func(err error) { end <- err })
		select {
		case err := <-end:
			if err != nil {
				kill()
			}
			return err
		case <-ctx.Done():
		}
		kill()
		return errors.Join(ctx.Err(), <-end)
	}
}

// Ready reports whether the group has been started, has not begun to shut down,
// and every server added by Add is ready, which is when its ReadyHandler would
// answer 200. The checks of Server.Health run for that, of all servers at once:
// Ready blocks until they have returned, at most for Health.CheckTimeout.
func (g *Group) Ready() bool { return g.unready(context.Background()) == "" }

// ReadyHandler answers readiness probes: 200 while Ready says true, otherwise
// 503 and, as text, which servers are not ready and the names of the checks
// that fail. Responses are not to be cached.
func (g *Group) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		body := "ready"
		if why := g.unready(r.Context()); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			body = why
		}
		io.WriteString(w, body+"\n")
	})
}

// unready says why the group is not ready, or "".
func (g *Group) unready(ctx context.Context) string {
	if why := g.notRunning(); why != "" {
		return why
	}
	// No server is added once the group has been started.
	failing := make([]string, len(g.servers))
	var wg sync.WaitGroup
	for i, t := range g.servers {
		if t.member != nil {
			wg.Go(func() { failing[i] = t.member.unready(ctx) })
		}
	}
	wg.Wait()
	// A shutdown may have begun while a check ran.
	if why := g.notRunning(); why != "" {
		return why
	}
	var not []string
	for i, t := range g.servers {
		if failing[i] != "" {
			not = append(not, fmt.Sprintf("%s (%s)", t.name, failing[i]))
		}
	}
	if not != nil {
		return "not ready: " + strings.Join(not, ", ")
	}
	return ""
}

// notRunning says why the group itself is not ready, or "".
func (g *Group) notRunning() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.reason != "":
		return "shutting down"
	case g.state < groupRunning:
		return "starting"
	}
	return ""
}
