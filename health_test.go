package graceful_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
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
			ready:  answer{200, "[+]startup ok\n[+]shutdown ok\n[+]db excluded\n[?]\"nobody\" is no check, and was not excluded\nok\n"},
			live:   answer{200, "[?]\"db\" is no check, and was not excluded\n[?]\"nobody\" is no check, and was not excluded\nok\n"},
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

// A check that hangs has failed after CheckTimeout, and holds one goroutine,
// however many probes come.
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
		h.AddCheck("obedient", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Nanosecond); return ctx.Err() })
		ready := h.ReadyHandler()
		for range 3 {
			start := time.Now()
			want := answer{503, "[+]startup ok\n[+]shutdown ok\n[-]stubborn failed: not done in time: context deadline exceeded\n[+]obedient excluded\nfailed\n"}
			if diff := cmp.Diff(want, probe(ready, "/?exclude=obedient")); diff != "" {
				t.Error(diff)
			}
			if d := time.Since(start); d != 2*time.Second {
				t.Errorf("after %v", d)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs", n)
		}
		if got := probe(ready, "/?exclude=stubborn"); got.Code != 503 {
			t.Error(got)
		}
		close(end)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if got := probe(ready, "/?exclude=obedient"); got.Code != 200 {
			t.Error(got)
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
	for _, name := range []string{"", "startup", "shutdown", "twice"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q: no panic", name)
				}
			}()
			var h graceful.Health
			h.AddCheck("twice", nil)
			h.AddCheck(name, nil)
		}()
	}
	var h graceful.Health
	h.AddCheck("both", nil)
	h.AddLiveCheck("both", nil)
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
