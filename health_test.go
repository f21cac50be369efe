package graceful_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

type answer struct {
	Code int
	Body string
}

func probe(h http.Handler, target string) answer {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return answer{w.Code, w.Body.String()}
}

func TestHealth(t *testing.T) {
	sick := errors.New("secret")
	fail := func(context.Context) error { return sick }
	fine := func(context.Context) error { return nil }
	for name, tt := range map[string]struct {
		h      *graceful.Health
		do     func(h *graceful.Health)
		target string
		ready  answer
		live   answer
	}{
		"zero": {ready: answer{200, "ok\n"}, live: answer{200, "ok\n"}},
		"verbose": {
			do:     func(h *graceful.Health) { h.AddCheck("db", fine); h.AddLiveCheck("loop", fine) },
			target: "?verbose",
			ready:  answer{200, "[+]startup ok\n[+]shutdown ok\n[+]db ok\nok\n"},
			live:   answer{200, "[+]loop ok\nok\n"},
		},
		"failing": {
			do:    func(h *graceful.Health) { h.AddCheck("db", fail); h.AddCheck("disk", fine) },
			ready: answer{503, "[+]startup ok\n[+]shutdown ok\n[-]db failed: reason withheld\n[+]disk ok\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
		"why": {
			h:     &graceful.Health{ShowErrors: true},
			do:    func(h *graceful.Health) { h.AddCheck("db", fail); h.AddLiveCheck("loop", fail) },
			ready: answer{503, "[+]startup ok\n[+]shutdown ok\n[-]db failed: secret\nfailed\n"},
			live:  answer{503, "[-]loop failed: secret\nfailed\n"},
		},
		"excluded": {
			do:     func(h *graceful.Health) { h.AddCheck("db", fail) },
			target: "?exclude=db&exclude=nobody&verbose",
			ready:  answer{200, "[+]startup ok\n[+]shutdown ok\n[+]db excluded\n[?]exclude=\"nobody\": there is no such check\nok\n"},
			live:   answer{200, "[?]exclude=\"db\": there is no such check\n[?]exclude=\"nobody\": there is no such check\nok\n"},
		},
		"warning": {
			do: func(h *graceful.Health) {
				h.Add(graceful.HealthCheck{Name: "mail", Check: fail, WarnOnly: true})
				h.Add(graceful.HealthCheck{Name: "gc", Check: fail, WarnOnly: true, Live: true})
			},
			ready: answer{200, "[+]startup ok\n[+]shutdown ok\n[!]mail warning: reason withheld\nok\n"},
			live:  answer{200, "[!]gc warning: reason withheld\nok\n"},
		},
		"warning and failing": {
			do: func(h *graceful.Health) {
				h.Add(graceful.HealthCheck{Name: "mail", Check: fail, WarnOnly: true})
				h.AddCheck("db", fail)
			},
			ready: answer{503, "[+]startup ok\n[+]shutdown ok\n[!]mail warning: reason withheld\n[-]db failed: reason withheld\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
		"starting": {
			h:     &graceful.Health{WaitForReady: true},
			ready: answer{503, "[-]startup failed: the application is not ready\n[+]shutdown ok\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
		"started": {
			h:     &graceful.Health{WaitForReady: true},
			do:    func(h *graceful.Health) { h.SetReady(true) },
			ready: answer{200, "ok\n"},
			live:  answer{200, "ok\n"},
		},
		"resting": {
			do:    func(h *graceful.Health) { h.SetReady(false) },
			ready: answer{503, "[-]startup failed: the application is not ready\n[+]shutdown ok\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
		"shutdown": {
			do:    func(h *graceful.Health) { h.Shutdown(); h.SetReady(true) },
			ready: answer{503, "[+]startup ok\n[-]shutdown failed: the server is shutting down\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
		"panicking": {
			h:     &graceful.Health{ShowErrors: true},
			do:    func(h *graceful.Health) { h.AddCheck("db", func(context.Context) error { panic("oops") }) },
			ready: answer{503, "[+]startup ok\n[+]shutdown ok\n[-]db failed: panic: oops\nfailed\n"},
			live:  answer{200, "ok\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := tt.h
			if h == nil {
				h = new(graceful.Health)
			}
			ready, live := h.ReadyHandler(), h.LiveHandler()
			if tt.do != nil {
				tt.do(h)
			}
			for range 2 {
				if diff := cmp.Diff([]answer{tt.ready, tt.live}, []answer{probe(ready, "/"+tt.target), probe(live, "/"+tt.target)}); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// A check that hangs has failed after its time, and holds one goroutine,
// however many probes come: those that come later fail at once.
func TestHealthHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := graceful.Health{CheckTimeout: 2 * time.Second, ShowErrors: true}
		var runs atomic.Int32
		end := make(chan struct{})
		h.AddCheck("stubborn", func(ctx context.Context) error {
			runs.Add(1)
			if d, _ := ctx.Deadline(); time.Until(d) != 2*time.Second {
				t.Errorf("deadline in %v", time.Until(d))
			}
			<-end
			return nil
		})
		ready := h.ReadyHandler()
		failed := answer{503, "[+]startup ok\n[+]shutdown ok\n[-]stubborn failed: not done within 2s\nfailed\n"}
		for _, takes := range []time.Duration{2 * time.Second, 0, 0} {
			start := time.Now()
			if diff := cmp.Diff(failed, probe(ready, "/")); diff != "" {
				t.Error(diff)
			}
			if d := time.Since(start); d != takes {
				t.Errorf("after %v, want %v", d, takes)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs", n)
		}
		close(end)
		synctest.Wait()
		// The run returned nil, but too late: that result is kept like any other.
		if diff := cmp.Diff(failed, probe(ready, "/")); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Second)
		if got := probe(ready, "/"); got.Code != 200 || runs.Load() != 2 {
			t.Error(got, runs.Load())
		}
	})
}

// A check's own Timeout and MaxAge come before the Health's.
func TestHealthCheckLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := graceful.Health{CheckTimeout: time.Hour, CheckMaxAge: time.Hour, ShowErrors: true}
		h.Add(graceful.HealthCheck{
			Name: "slow",
			Check: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			},
			Timeout: 30 * ms,
		})
		var runs atomic.Int32
		h.Add(graceful.HealthCheck{
			Name:   "fresh",
			Check:  func(context.Context) error { runs.Add(1); return nil },
			MaxAge: -1,
		})
		for i, takes := range []time.Duration{30 * ms, 0} {
			start := time.Now()
			want := answer{503, "[+]startup ok\n[+]shutdown ok\n[-]slow failed: not done within 30ms\n[+]fresh ok\nfailed\n"}
			if diff := cmp.Diff(want, probe(h.ReadyHandler(), "/")); diff != "" {
				t.Error(diff)
			}
			if d := time.Since(start); d != takes {
				t.Errorf("after %v, want %v", d, takes)
			}
			if n := int(runs.Load()); n != i+1 {
				t.Errorf("%d runs of the check without a MaxAge, want %d", n, i+1)
			}
		}
	})
}

// A storm of probes is one query: those that come while it runs share it, and
// those that come within MaxAge have its result, good or bad.
func TestHealthProbeStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h graceful.Health
		var runs atomic.Int32
		var sick atomic.Bool
		h.Add(graceful.HealthCheck{
			Name: "db",
			Check: func(context.Context) error {
				runs.Add(1)
				time.Sleep(100 * ms)
				if sick.Load() {
					return errors.New("away")
				}
				return nil
			},
			MaxAge: 5 * time.Second,
		})
		ready := h.ReadyHandler()
		storm := func(code int, takes time.Duration, wantRuns int32) {
			t.Helper()
			start := time.Now()
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					if got := probe(ready, "/"); got.Code != code {
						t.Error(got)
					}
				})
			}
			wg.Wait()
			if d := time.Since(start); d != takes {
				t.Errorf("after %v, want %v", d, takes)
			}
			if n := runs.Load(); n != wantRuns {
				t.Errorf("%d runs, want %d", n, wantRuns)
			}
		}
		storm(200, 100*ms, 1)
		storm(200, 0, 1)
		sick.Store(true)
		time.Sleep(5*time.Second - 1)
		storm(200, 0, 1)
		time.Sleep(time.Nanosecond)
		storm(503, 100*ms, 2)
		sick.Store(false)
		storm(503, 0, 2)
		time.Sleep(5 * time.Second)
		storm(200, 100*ms, 3)
	})
}

// The run goes on when the probe that began it has gone.
func TestHealthProbeGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h graceful.Health
		h.AddCheck("db", func(ctx context.Context) error {
			select {
			case <-time.After(500 * ms):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
		defer cancel()
		w := httptest.NewRecorder()
		h.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		if w.Code != 503 {
			t.Error(w.Code)
		}
		start := time.Now()
		if got := probe(h.ReadyHandler(), "/"); got.Code != 200 || time.Since(start) != 400*ms {
			t.Error(got, time.Since(start))
		}
	})
}

// Alive is LiveHandler's verdict without HTTP.
func TestHealthAlive(t *testing.T) {
	var h graceful.Health
	dead := errors.New("deadlocked")
	h.AddCheck("db", func(context.Context) error { return errors.New("away") })
	h.Add(graceful.HealthCheck{Name: "gc", Live: true, WarnOnly: true, Check: func(context.Context) error { return dead }})
	if err := h.Alive(t.Context()); err != nil {
		t.Error(err)
	}
	h.AddLiveCheck("loop", func(context.Context) error { return dead })
	if err := h.Alive(t.Context()); !errors.Is(err, dead) || err.Error() != "loop: deadlocked" {
		t.Error(err)
	}
}

// Each change of a check is told once, whether or not the answers show it.
func TestHealthCheckChanged(t *testing.T) {
	var got []string
	h := graceful.Health{
		CheckMaxAge:  -1,
		CheckChanged: func(name string, err error) { got = append(got, fmt.Sprint(name, ": ", err)) },
	}
	var err error
	h.AddCheck("db", func(context.Context) error {
		if err != nil && err.Error() == "exit" {
			runtime.Goexit()
		}
		return err
	})
	for _, err = range []error{nil, errors.New("away"), errors.New("still away"), nil, nil, errors.New("exit")} {
		probe(h.ReadyHandler(), "/")
	}
	want := []string{"db: away", "db: <nil>", "db: the check called runtime.Goexit"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// JSON is in the form of draft-inadarei-api-health-check, for a client that
// asks for it; text for one that asks for that; and otherwise as Accept says.
func TestHealthJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := graceful.Health{ShowErrors: true}
		h.AddCheck("db", func(context.Context) error { time.Sleep(1500 * time.Microsecond); return nil })
		h.Add(graceful.HealthCheck{
			Name:     "mail",
			WarnOnly: true,
			Check:    func(context.Context) error { return errors.New("queue full") },
		})
		body := func(code int, target, accept string) string {
			t.Helper()
			r := httptest.NewRequest("GET", target, nil)
			r.Header.Set("Accept", accept)
			w := httptest.NewRecorder()
			h.ReadyHandler().ServeHTTP(w, r)
			isJSON := w.Header().Get("Content-Type") == "application/json"
			if w.Code != code || isJSON != strings.HasPrefix(w.Body.String(), "{") || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s, Accept: %s: %d, %v", target, accept, w.Code, w.Header())
			}
			return w.Body.String()
		}
		want := `{
  "status": "warn",
  "notes": [
    "exclude=\"queue\": there is no such check",
    "startup was excluded"
  ],
  "checks": {
    "db": [
      {
        "status": "pass",
        "time": "2000-01-01T00:00:00.0015Z",
        "observedValue": 1.5,
        "observedUnit": "ms"
      }
    ],
    "mail": [
      {
        "status": "warn",
        "time": "2000-01-01T00:00:00Z",
        "observedValue": 0,
        "observedUnit": "ms",
        "output": "queue full"
      }
    ],
    "shutdown": [
      {
        "status": "pass",
        "time": "2000-01-01T00:00:00Z",
        "observedValue": 0,
        "observedUnit": "ms"
      }
    ]
  }
}
`
		if diff := cmp.Diff(want, body(200, "/?format=json&exclude=startup&exclude=queue", "text/plain")); diff != "" {
			t.Error(diff)
		}
		for accept, isJSON := range map[string]bool{
			"": false, "*/*": false, "text/plain, application/json": false,
			"application/json": true, "application/health+json, */*": true,
		} {
			if got := body(200, "/", accept); isJSON != strings.HasPrefix(got, "{") {
				t.Errorf("Accept: %s: %s", accept, got)
			}
			if got := body(200, "/?format=text", accept); !strings.HasSuffix(got, "[!]mail warning: queue full\nok\n") {
				t.Errorf("format=text with Accept: %s: %s", accept, got)
			}
		}
		h.AddCheck("disk", func(context.Context) error { return errors.New("full") })
		var doc struct {
			Status string
			Checks map[string][]struct{ Status, Output string }
		}
		if err := json.Unmarshal([]byte(body(503, "/", "application/json")), &doc); err != nil {
			t.Fatal(err)
		}
		if disk := doc.Checks["disk"]; doc.Status != "fail" || len(disk) != 1 || disk[0].Status != "fail" || disk[0].Output != "full" {
			t.Errorf("%+v", doc)
		}
	})
}

// The checks of one probe run together.
func TestHealthChecksTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h graceful.Health
		for _, name := range []string{"a", "b", "c"} {
			h.AddCheck(name, func(context.Context) error { time.Sleep(time.Second - 1); return nil })
		}
		start := time.Now()
		if got := probe(h.ReadyHandler(), "/"); got.Code != 200 || time.Since(start) != time.Second-1 {
			t.Error(got, time.Since(start))
		}
	})
}

func TestHealthCheckNames(t *testing.T) {
	fine := func(context.Context) error { return nil }
	for _, name := range []string{"", "startup", "shutdown", "twice"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q: no panic", name)
				}
			}()
			var h graceful.Health
			h.AddCheck("twice", fine)
			h.AddCheck(name, fine)
		}()
	}
	var h graceful.Health
	h.AddCheck("both", fine)
	h.AddLiveCheck("both", fine)
	defer func() {
		if recover() == nil {
			t.Error("a check without a function: no panic")
		}
	}()
	h.AddCheck("nil", nil)
}

// Too early is not "not found"; probes are answered all the same.
func TestHealthHandler(t *testing.T) {
	h := graceful.Health{WaitForReady: true, RetryAfter: 3 * time.Second}
	mux := http.NewServeMux()
	mux.Handle("/livez", h.LiveHandler())
	mux.Handle("/readyz", h.ReadyHandler())
	handler := h.Handler(mux)
	codes := func() (codes [3]int) {
		for i, path := range []string{"/livez", "/readyz", "/missing"} {
			codes[i] = probe(handler, path).Code
		}
		return codes
	}
	if got := codes(); got != [3]int{200, 503, 503} {
		t.Error(got)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if got := w.Header().Get("Retry-After"); got != "3" {
		t.Error(got)
	}
	h.SetReady(true)
	if got := codes(); got != [3]int{200, 200, 404} {
		t.Error(got)
	}
	h.Shutdown()
	if got := codes(); got != [3]int{200, 503, 404} {
		t.Error(got)
	}
}

// A plain http.Server tells it through RegisterOnShutdown.
func TestHealthPlainServer(t *testing.T) {
	withBench(t, false, func(b *bench) {
		var h graceful.Health
		b.server.RegisterOnShutdown(h.Shutdown)
		b.serve(h.ReadyHandler())
		if resp := b.get("/"); resp.StatusCode != 200 {
			b.Error(resp.Status)
		}
		b.client.CloseIdleConnections()
		b.server.Shutdown(b.Context())
		synctest.Wait()
		if got := probe(h.ReadyHandler(), "/"); got.Code != 503 {
			b.Error(got)
		}
	})
}
