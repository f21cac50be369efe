package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// The scenarios of the filters of the Kubernetes apiserver that the request
// layer is modelled on. The comments name the tests that they are taken from,
// of k8s.io/apiserver and k8s.io/apimachinery, and say where the outcome
// differs.

// TestTimeout of k8s.io/apiserver/pkg/server/filters: in turn a request in time,
// one that times out, what its handler writes late, and two panics, with a
// recovery outside that answers 500.
func TestKubernetesTimeout(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		respond, crash := make(chan string, 1), make(chan any, 1)
		written, recovered := make(chan error, 1), make(chan any, 1)
		h := within(func(w http.ResponseWriter, r *http.Request) {
			select {
			case s := <-respond:
				_, err := io.WriteString(w, s)
				written <- err
			case v := <-crash:
				panic(v)
			}
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if v := recover(); v != nil {
					recovered <- v
					http.Error(w, "crashed", 500)
				}
			}()
			h.ServeHTTP(w, r)
		}))

		respond <- "in time"
		resp := b.get("/")
		if got := b.body(resp); resp.StatusCode != 200 || got != "in time" {
			b.Errorf("%s %q", resp.Status, got)
		}
		if err := <-written; err != nil {
			b.Error(err)
		}

		if resp := b.get("/", "Accept", "application/json"); resp.StatusCode != 504 || !strings.Contains(b.body(resp), `"status":504`) {
			b.Error(resp.Status)
		}
		respond <- "late"
		if err := <-written; err != http.ErrHandlerTimeout {
			b.Error(err)
		}

		for _, v := range []any{"inner handler panics", http.ErrAbortHandler} {
			crash <- v
			if resp := b.get("/"); resp.StatusCode != 500 {
				b.Errorf("%v: %s", v, resp.Status)
			}
			// There the value of the first has the handler's stack in it.
			if got := <-recovered; got != v {
				b.Errorf("recovered %v, want %v", got, v)
			}
		}
	})
}

// TestTimeoutHeaders, TestTimeoutRequestHeaders and TestTimeoutWithLogging: the
// handler goes on changing the response's header, the request's, and that with
// an access log around it. There the context is cancelled and the answer is
// 504; here a cancellation is not answered, and a deadline passes instead.
func TestKubernetesTimeoutHeaders(t *testing.T) {
	for name, change := range map[string]func(w http.ResponseWriter, r *http.Request){
		"response": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Test", "post") },
		"request":  func(w http.ResponseWriter, r *http.Request) { r.Header.Set("Test", "post") },
	} {
		t.Run(name, func(t *testing.T) {
			end := make(chan struct{})
			var running sync.WaitGroup
			running.Add(1)
			h := new(graceful.RequestTimeout).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer running.Done()
				for {
					select {
					case <-end:
						return
					default:
						change(w, r)
					}
				}
			}))
			lines := make(chan string, 1)
			srv := httptest.NewServer(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), time.Millisecond)
				defer cancel()
				h.ServeHTTP(w, r.WithContext(ctx))
				lines <- fmt.Sprint(r.Method, " ", r.URL, " ", r.Header["Test"], w.Header()["Test"])
			}))
			defer srv.Close()
			req, _ := http.NewRequest("PATCH", srv.URL+"/x", nil)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if line := <-lines; resp.StatusCode != 504 || line != "PATCH /x [] []" {
				t.Errorf("%s, logged %s", resp.Status, line)
			}
			close(end)
			running.Wait()
		})
	}
}

// TestErrConnKilled and TestErrConnKilledHTTP2: the client of a response that is
// aborted gets an error, nothing is logged, and over HTTP/2 the connection goes
// on. There the handler panics by itself.
func TestKubernetesErrConnKilled(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		end := make(chan struct{})
		defer close(end)
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "hello from the handler")
			w.(http.Flusher).Flush()
			<-end
		}))
		for range 2 {
			resp, err := b.client.Do(b.request("GET", "/", nil))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				b.Error("no error")
			}
		}
		if b.log.String() != "" {
			b.Error(b.log)
		}
		if n := b.l.taken(); b.http2 && n != 1 {
			b.Errorf("%d connections", n)
		}
	})
}

// TestParseTimeout and TestWithRequestDeadline of
// k8s.io/apiserver/pkg/endpoints/filters. There more than the maximum is
// answered with 400; here it means the maximum.
func TestKubernetesRequestDeadline(t *testing.T) {
	for _, tt := range []struct {
		query string
		long  bool
		want  time.Duration // 0: no deadline
		code  int
	}{
		{"", false, time.Minute, 200},
		{"?timeout=15s", false, 15 * time.Second, 200},
		{"?timeout=0s", false, time.Minute, 200},
		{"?timeout=", false, time.Minute, 200},
		{"?timeout=10s", true, 0, 200},
		{"?timeout=foo", false, 0, 400},
		{"?timeout=61s", false, time.Minute, 200},
	} {
		for name, wrap := range deadlines(graceful.DeadlineOptions{
			Parameter:   "timeout",
			LongRunning: func(*http.Request) bool { return tt.long },
		}) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				w := httptest.NewRecorder()
				wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					calls++
					d, ok := r.Context().Deadline()
					if ok != (tt.want > 0) || ok && time.Until(d) != tt.want {
						t.Errorf("%s, %s: deadline in %v, %v", name, tt.query, time.Until(d), ok)
					}
				})).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/namespaces"+tt.query, nil))
				if w.Code != tt.code || (calls == 1) != (tt.code == 200) {
					t.Errorf("%s, %s: %d, %d calls", name, tt.query, w.Code, calls)
				}
			})
		}
	}
}

// TestWithRequestDeadlineWithClock: what counts is when the request was
// received, not when it came here.
func TestKubernetesReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, wrap := range deadlines(graceful.DeadlineOptions{
			Received: func(*http.Request) time.Time { return time.Now().Add(-30 * time.Second) },
		}) {
			wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if d, ok := r.Context().Deadline(); !ok || time.Until(d) != 30*time.Second {
					t.Errorf("%s: deadline in %v, %v", name, time.Until(d), ok)
				}
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}
	})
}

// TestWaitGroup and TestWaitGroupAddFail of k8s.io/apimachinery/pkg/util/waitgroup.
func TestKubernetesWaitGroup(t *testing.T) {
	const n = 16
	var first, second graceful.InFlight
	first.Add(n)
	second.Add(n)
	exited := make(chan struct{}, n)
	for range n {
		go func() {
			first.Done()
			second.Wait()
			exited <- struct{}{}
		}()
	}
	first.Wait()
	for range n {
		select {
		case <-exited:
			t.Fatal("Wait returned too soon")
		default:
		}
		second.Done()
	}
	for range n {
		<-exited
	}
	if err := first.Add(1); !errors.Is(err, graceful.ErrDraining) {
		t.Error(err)
	}
}

// TestWithRetryAfter and TestWithWatchTerminationDuringShutdown: which requests are
// served before and while nothing new is admitted. There a refusal is 429, and requests
// of the apiserver to itself are exempt; here it is 503, and Exempt decides.
func TestKubernetesRetryAfter(t *testing.T) {
	type result struct {
		calls                    int
		code                     int
		conn, retryAfter, accept string
	}
	for _, tt := range []struct {
		path, accept string
		waiting      bool
		want         result
	}{
		{"/api/v1/namespaces", "", false, result{1, 200, "", "", ""}},
		{"/api/v1/namespaces", "", true, result{0, 503, "close", "5", "text/plain; charset=utf-8"}},
		{"/metrics?foo=bar", "", true, result{1, 200, "", "", ""}},
		{"/livez?verbose", "", true, result{1, 200, "", "", ""}},
		{"/readyz?verbose", "", true, result{1, 200, "", "", ""}},
		{"/healthz?verbose", "", true, result{1, 200, "", "", ""}},
		{"/loopback", "", true, result{1, 200, "", "", ""}},
		{"/watch", "application/json", false, result{1, 200, "", "", ""}},
		{"/watch", "application/json", true, result{0, 503, "close", "5", "application/json"}},
	} {
		f := graceful.InFlight{
			RetryAfter:  5 * time.Second,
			Exempt:      func(r *http.Request) bool { return graceful.DefaultExempt(r) || r.URL.Path == "/loopback" },
			LongRunning: func(r *http.Request) bool { return r.URL.Path == "/watch" },
		}
		if tt.waiting {
			f.Wait()
		}
		var got result
		h := f.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got.calls++
			if long := r.URL.Path == "/watch"; (graceful.Draining(r.Context()) != nil) != long {
				t.Errorf("%s hears of the drain: %v", tt.path, !long)
			}
		}))
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", tt.path, nil)
		r.Header.Set("Accept", tt.accept)
		h.ServeHTTP(w, r)
		got.code, got.conn, got.retryAfter, got.accept = w.Code, w.Header().Get("Connection"), w.Header().Get("Retry-After"), w.Header().Get("Content-Type")
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s, waiting %v: %s", tt.path, tt.waiting, diff)
		}
		if n := f.Count() + f.LongRunningCount(); n != 0 {
			t.Errorf("%s: %d in flight", tt.path, n)
		}
	}
}
