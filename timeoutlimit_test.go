package graceful_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

func TestRequestTimeoutParameter(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"":                           limit,
		"timeout":                    limit,
		"timeout=":                   limit,
		"timeout=3s":                 3 * time.Second,
		"a=%zz&t%69meout=1500ms":     1500 * time.Millisecond,
		"timeout=%32s":               2 * time.Second,
		"timeout=1s&timeout=2s":      time.Second,
		"nottimeout=1s&timeoutnot=2": limit,
		"timeout=0":                  limit,
		"timeout=0s":                 limit,
		"timeout=-3s":                limit,
		"timeout=11s":                limit,
		"timeout=5":                  0,
		"timeout=soon":               0,
		"timeout=%zz":                0,
		"timeout=1s;a=b":             0,
	} {
		t.Run(query, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				for name, h := range map[string]func(http.Handler) http.Handler{
					"RequestTimeout":  (&graceful.RequestTimeout{Max: limit, Parameter: "timeout"}).Handler,
					"RequestDeadline": (&graceful.RequestDeadline{Max: limit, Parameter: "timeout"}).Handler,
				} {
					ran := false
					w := httptest.NewRecorder()
					h(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
						ran = true
						if d, _ := r.Context().Deadline(); d != start.Add(want) {
							t.Errorf("%s: deadline in %v, want %v", name, d.Sub(start), want)
						}
					})).ServeHTTP(w, httptest.NewRequest("GET", "/?"+query, nil))
					if ran != (want > 0) {
						t.Errorf("%s: handler ran: %v", name, ran)
					}
					if want == 0 && (w.Code != 400 || !strings.Contains(w.Body.String(), "timeout must be a duration with its unit")) {
						t.Errorf("%s: %d %q", name, w.Code, w.Body)
					}
				}
			})
		})
	}
}

func TestRequestTimeoutDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for path, want := range map[string]time.Duration{"/?timeout=1s": time.Minute, "/debug/pprof/profile?timeout=x": time.Minute} {
			for _, h := range []func(http.Handler) http.Handler{new(graceful.RequestTimeout).Handler, new(graceful.RequestDeadline).Handler} {
				h(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					d, ok := r.Context().Deadline()
					if ok != (want > 0) || ok && time.Until(d) != want {
						t.Errorf("%s: %v, want %v", path, time.Until(d), want)
					}
				})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
			}
		}
	})
}

func TestRequestTimeoutReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var runs atomic.Int32
		h := (&graceful.RequestTimeout{
			Max:      limit,
			Received: func(*http.Request) time.Time { return start },
		}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs.Add(1)
			<-r.Context().Done()
			time.Sleep(time.Nanosecond)
		}))
		time.Sleep(limit / 2)
		for range 2 { // the second has waited too long to be begun
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			if w.Code != 504 || time.Since(start) != limit {
				t.Errorf("%d after %v", w.Code, time.Since(start))
			}
		}
		time.Sleep(time.Nanosecond)
		if n := runs.Load(); n != 1 {
			t.Errorf("the handler ran %d times", n)
		}
	})
}

func TestRequestTimeoutGrace(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		h := &graceful.RequestTimeout{Max: limit, Grace: time.Second}
		b.serve(h.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			if r.URL.Path == "/slow" {
				time.Sleep(time.Second + 1)
			} else {
				time.Sleep(time.Second - 1)
			}
			w.WriteHeader(http.StatusTeapot)
		})))
		if resp := b.get("/"); resp.StatusCode != http.StatusTeapot {
			b.Error(resp.Status)
		}
		b.elapsed(limit + time.Second - 1)
		b.start = time.Now()
		if resp := b.get("/slow"); resp.StatusCode != 504 {
			b.Error(resp.Status)
		}
		b.elapsed(limit + time.Second)
		time.Sleep(time.Nanosecond)
	})
}
