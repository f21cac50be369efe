package graceful_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// readyGroup starts a group with a Server for each Health. They do not serve:
// their readiness is that of their Health.
func readyGroup(t *testing.T, healths ...*graceful.Health) *graceful.Group {
	g := &graceful.Group{NoSignalHandling: true}
	for i, h := range healths {
		quit := make(chan struct{})
		srv := &graceful.Server{Server: &http.Server{}, Health: h, ShutdownInitiated: func() { close(quit) }}
		g.Add(string(rune('a'+i)), srv, func() error { <-quit; return nil })
	}
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

func probeGroup(ctx context.Context, h http.Handler) (code int, body string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/readyz", nil))
	return w.Code, w.Body.String()
}

// TestGroupReadyAsksHealth: the group's readiness is all of its members'. It
// used to be whether the application had said that it is ready, without the
// checks and without Health.Shutdown.
func TestGroupReadyAsksHealth(t *testing.T) {
	fails := func(context.Context) error { return errors.New("down") }
	for _, tc := range []struct {
		name string
		do   func(h *graceful.Health)
		want string // in parentheses; "" for ready
	}{
		{"nothing", func(h *graceful.Health) {}, ""},
		{"a check that succeeds", func(h *graceful.Health) {
			h.AddCheck("db", func(context.Context) error { return nil })
		}, ""},
		{"a live check that fails", func(h *graceful.Health) { h.AddLiveCheck("loop", fails) }, ""},
		{"a check that fails", func(h *graceful.Health) { h.AddCheck("db", fails) }, "db"},
		{"a check that panics", func(h *graceful.Health) {
			h.AddCheck("db", func(context.Context) error { panic("boom") })
		}, "db"},
		{"a check that hangs", func(h *graceful.Health) {
			h.AddCheck("db", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}, "db"},
		{"Shutdown", (*graceful.Health).Shutdown, "shutdown"},
		{"SetReady(false)", func(h *graceful.Health) { h.SetReady(false) }, "startup"},
		{"WaitForReady", func(h *graceful.Health) { h.WaitForReady = true }, "startup"},
		{"several", func(h *graceful.Health) {
			h.Shutdown()
			h.SetReady(false)
			h.AddCheck("db", fails)
			h.AddCheck("cache", fails)
		}, "startup, shutdown, db, cache"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &graceful.Health{}
				tc.do(h)
				g := readyGroup(t, &graceful.Health{}, h)
				defer g.Shutdown(t.Context())
				own, _ := probeGroup(t.Context(), h.ReadyHandler())
				code, body := probeGroup(t.Context(), g.ReadyHandler())
				want := "ready\n"
				if tc.want != "" {
					want = "not ready: b (" + tc.want + ")\n"
				}
				if code != own || body != want || g.Ready() != (tc.want == "") {
					t.Errorf("the group's ready handler says %d %q, want %d %q; Ready says %v", code, body, own, want, g.Ready())
				}
			})
		})
	}
}

// TestGroupReadyBlocks: the checks of all members run at once, and a shutdown
// that begins meanwhile is heard of.
func TestGroupReadyBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		a, b := &graceful.Health{}, &graceful.Health{CheckTimeout: 3 * time.Second}
		a.AddCheck("one", hangs)
		b.AddCheck("two", hangs)
		g := readyGroup(t, a, b)
		start := time.Now()
		_, body := probeGroup(t.Context(), g.ReadyHandler())
		if d := time.Since(start); body != "not ready: a (one), b (two)\n" || d != 3*time.Second {
			t.Errorf("%q after %v", body, d)
		}
		synctest.Wait() // a check that has just ended would be joined
		time.AfterFunc(time.Second, func() { g.Stop("test") })
		if _, body := probeGroup(t.Context(), g.ReadyHandler()); body != "shutting down\n" {
			t.Errorf("%q of a probe in which the shutdown began", body)
		}
		g.Wait()
	})
}

// TestGroupReadyByAnother: a probe that comes by a server outside the group,
// which is shutting down, leaves the Health of the members as it is.
func TestGroupReadyByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := &graceful.Group{NoSignalHandling: true}
		var ctx context.Context // one whose Draining is closed
		other.Go("worker", func(c context.Context) error { ctx = c; return nil })
		other.Run(t.Context())
		<-graceful.Draining(ctx)

		g := readyGroup(t, &graceful.Health{})
		defer g.Shutdown(t.Context())
		if code, body := probeGroup(context.WithoutCancel(ctx), g.ReadyHandler()); code != 200 {
			t.Errorf("%d %q", code, body)
		}
		if !g.Ready() {
			t.Error("it stays unready")
		}
	})
}
