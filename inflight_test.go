package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f graceful.InFlight
		start := time.Now()
		for range 3 {
			if err := f.Add(1); err != nil {
				t.Fatal(err)
			}
		}
		f.Done()
		f.Add(2)
		f.Add(-1)
		f.Add(0)
		if n := f.Count(); n != 3 {
			t.Errorf("count %d", n)
		}

		var waits atomic.Int32
		for range 3 {
			go func() { f.Wait(); waits.Add(1) }()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.WaitContext(ctx); err != context.DeadlineExceeded || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := f.Add(1); err != graceful.ErrDraining {
			t.Errorf("Add while draining: %v", err)
		}
		if err := f.Add(0); err != nil {
			t.Errorf("Add(0) while draining: %v", err)
		}
		if err := f.Add(-2); err != nil {
			t.Errorf("Add(-2) while draining: %v", err)
		}
		synctest.Wait()
		if n := waits.Load(); n != 0 || f.Count() != 1 {
			t.Errorf("%d of 3 Waits returned at a count of %d", n, f.Count())
		}
		f.Done()
		synctest.Wait()
		if n := waits.Load(); n != 3 {
			t.Errorf("%d of 3 Waits returned", n)
		}
		if err := f.Add(1); !errors.Is(err, graceful.ErrDraining) {
			t.Errorf("Add after zero: %v", err)
		}
		// Of a context that is done and a count that is zero the count wins.
		if err := f.WaitContext(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestInFlightTooManyDones(t *testing.T) {
	for name, prepare := range map[string]func(f *graceful.InFlight){
		"none":     func(f *graceful.InFlight) {},
		"afterAdd": func(f *graceful.InFlight) { f.Add(2); f.Done(); f.Done() },
		"drained":  func(f *graceful.InFlight) { f.Add(1); f.Done(); f.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			var f graceful.InFlight
			prepare(&f)
			for range 2 {
				func() {
					defer func() {
						if recover() == nil {
							t.Error("no panic")
						}
					}()
					f.Done()
				}()
			}
			if n := f.Count(); n != 0 {
				t.Errorf("count %d", n)
			}
			if f.Add(1) == nil && f.Count() != 1 {
				t.Errorf("count %d after an Add", f.Count())
			}
		})
	}
}

// What is added on one goroutine is done on another, on any core, while
// several wait: no Done panics, no Wait returns early, and none is left
// waiting.
func TestInFlightConcurrently(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for range 50 {
		var f graceful.InFlight
		var inside atomic.Int64
		var over atomic.Bool // a Wait has returned
		var all, busy sync.WaitGroup
		for range 8 {
			work := make(chan struct{}, 64)
			busy.Add(1)
			all.Go(func() {
				defer close(work)
				for n := 1; ; n++ {
					inside.Add(1) // first, for Wait may return between Add and this
					if err := f.Add(1); err != nil {
						inside.Add(-1)
						return
					}
					work <- struct{}{}
					if n == 500 {
						busy.Done()
					}
				}
			})
			for range 2 {
				all.Go(func() {
					for range work {
						if over.Load() {
							t.Error("Wait returned before a Done")
						}
						inside.Add(-1)
						f.Done()
					}
				})
			}
		}
		for range 3 {
			all.Go(func() {
				busy.Wait()
				f.Wait()
				over.Store(true)
			})
		}
		all.Wait()
		if n, count := inside.Load(), f.Count(); n != 0 || count != 0 {
			t.Errorf("%d inside, a count of %d", n, count)
		}
	}
}

func TestInFlightHandler(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		f := graceful.InFlight{RetryAfter: 1500 * time.Millisecond}
		end := make(chan struct{})
		b.serve(f.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic(http.ErrAbortHandler)
			}
			if r.URL.Path == "/slow" {
				<-end
			}
			if n := f.Count(); n == 0 && r.URL.Path != "/metrics/x" { // which comes after Wait
				b.Errorf("%s is not counted", r.URL.Path)
			}
		})))
		if _, err := b.client.Do(b.request("POST", "/panic", nil)); err == nil {
			b.Error("no error")
		}
		b.get("/")
		slow := make(chan struct{})
		go func() { b.get("/slow"); close(slow) }()
		synctest.Wait()
		if n := f.Count(); n != 1 {
			b.Errorf("count %d", n)
		}
		waited := make(chan struct{})
		go func() { f.Wait(); close(waited) }()
		synctest.Wait()

		for accept, want := range map[string]http.Header{
			"text/html": {
				"Content-Type":   {"text/plain; charset=utf-8"},
				"Content-Length": {"46"},
			},
			"application/json": {
				"Content-Type":   {"application/json"},
				"Content-Length": {"71"},
			},
		} {
			want.Set("Cache-Control", "no-store")
			want.Set("Retry-After", "2")
			want.Set("X-Content-Type-Options", "nosniff")
			resp := b.get("/", "Accept", accept)
			b.body(resp)
			resp.Header.Del("Date")
			if diff := cmp.Diff(want, resp.Header); diff != "" || resp.StatusCode != 503 {
				b.Error(resp.Status, diff)
			}
			if !b.http2 && !resp.Close { // over HTTP/2 it is a GOAWAY
				b.Error("the connection stays open")
			}
		}
		if resp := b.get("/healthz"); resp.StatusCode != 200 {
			b.Error(resp.Status)
		}
		select {
		case <-waited:
			b.Error("Wait returned")
		default:
		}
		close(end)
		<-slow
		<-waited
		if resp := b.get("/"); resp.StatusCode != 503 {
			b.Error(resp.Status)
		}
		if resp := b.get("/metrics/x"); resp.StatusCode != 200 {
			b.Error(resp.Status)
		}
	})
}

// A request that is upgraded to any protocol is long-running from the hijack on:
// Wait does not wait for it, and its Draining is closed. A client that only asks
// for an upgrade changes nothing.
func TestInFlightHijack(t *testing.T) {
	for request, recognised := range map[string]bool{
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n":            true,
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, upgrade\r\nUpgrade: tcp\r\n\r\n":      false,
		"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n":            false,
		"CONNECT backend:80 HTTP/1.1\r\nHost: x\r\n\r\n":                                            false,
		"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp, something/2\r\n\r\n":     false,
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nX-Nested: yes\r\n\r\n": false,
	} {
		withBench(t, false, func(b *bench) {
			var f graceful.InFlight
			hijack, over := make(chan struct{}), make(chan struct{})
			counts := func(want ...int) {
				b.Helper()
				synctest.Wait()
				if diff := cmp.Diff(want, []int{f.Count(), f.LongRunningCount()}); diff != "" {
					b.Errorf("%.40q: %s", request, diff)
				}
			}
			inner := handlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				<-hijack
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				<-graceful.Draining(r.Context())
			})
			h := f.Handler(inner)
			if strings.Contains(request, "Nested") {
				h = f.Handler((&graceful.RequestTimeout{Max: limit}).Handler((&graceful.RequestDeadline{}).Handler(inner)))
			}
			b.serve(h)
			io.WriteString(b.dial(), request)
			if recognised {
				counts(0, 1)
			} else {
				counts(1, 0)
			}
			close(hijack)
			counts(0, 1)
			f.Wait()
			<-over
			if err := f.WaitLongRunning(b.Context()); err != nil {
				b.Error(err)
			}
			counts(0, 0)
		})
	}
	withBench(t, false, func(b *bench) {
		var f graceful.InFlight
		outside := make(chan []string, 1)
		h := f.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if f.Count() != 1 || f.LongRunningCount() != 0 {
				b.Errorf("counts %d, %d", f.Count(), f.LongRunningCount())
			}
			r.ParseForm()
			if diff := cmp.Diff(append(<-outside, "Unwrap"), can(w)); diff != "" {
				b.Error(diff)
			}
			w.Header().Set("Mine", "yes")
			io.Copy(w, strings.NewReader("not upgraded"))
			w.(http.Flusher).Flush()
		}))
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outside <- can(w)
			h.ServeHTTP(w, r)
			if r.Form.Get("a") != "b" {
				b.Error("the form is lost")
			}
		}))
		for range 2 {
			resp := b.get("/?a=b", "Connection", "upgrade", "Upgrade", "tcp")
			if got := b.body(resp); got != "not upgraded" || resp.Header.Get("Mine") != "yes" {
				b.Errorf("%q", got)
			}
		}
		if f.Count() != 0 || f.LongRunningCount() != 0 {
			b.Errorf("counts %d, %d", f.Count(), f.LongRunningCount())
		}
	})
}

// Exempt requests whose handlers overlap for ever do not hold up a Wait; those
// that came before it are waited for.
func TestInFlightExemptDoesNotHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for path, accept := range map[string]string{"/metrics": "", "/readyz": "text/event-stream"} {
			var f graceful.InFlight
			h := f.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(50 * time.Millisecond) }))
			stop := make(chan struct{})
			for i := range 3 {
				go func() {
					time.Sleep(time.Duration(i) * 20 * time.Millisecond)
					for {
						select {
						case <-stop:
							return
						default:
						}
						w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
						r.Header.Set("Accept", accept)
						if h.ServeHTTP(w, r); w.Code != 200 {
							t.Error(w.Code)
						}
					}
				}()
			}
			time.Sleep(time.Second)
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := f.WaitContext(ctx); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if err := f.WaitLongRunning(ctx); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if d := time.Since(start); d < 10*time.Millisecond || d > 100*time.Millisecond {
				t.Errorf("%s: waited %v", path, d)
			}
			cancel()
			close(stop)
			synctest.Wait()
			time.Sleep(time.Second)
		}
	})
}

func TestInFlightChoices(t *testing.T) {
	f := graceful.InFlight{
		LongRunning: func(r *http.Request) bool { return r.URL.Path == "/watch" },
		Exempt:      func(r *http.Request) bool { return r.URL.Path == "/exempt" },
		Refused: handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusTeapot)
		}),
	}
	h := f.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.Count()+f.LongRunningCount() != 0 {
			t.Errorf("%s: counts %d, %d, of a request that no Wait is to wait for", r.URL.Path, f.Count(), f.LongRunningCount())
		}
	}))
	f.Wait()
	for path, want := range map[string]int{"/": 418, "/watch": 418, "/healthz": 418, "/exempt": 200} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want || (want == 418) != (w.Header().Get("Retry-After") == "1") {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
}

func TestDefaultLongRunning(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		header       http.Header
		want         bool
	}{
		{"GET", "/", nil, false},
		{"GET", "/debug/pprof/", nil, true},
		{"GET", "/debug/pprof/profile", nil, true},
		{"GET", "/debug/pprof", nil, false},
		{"GET", "/", http.Header{"Upgrade": {"websocket"}, "Connection": {"keep-alive, Upgrade"}}, true},
		{"GET", "/", http.Header{"Upgrade": {"h2c, WebSocket"}, "Connection": {"upgrade"}}, true},
		{"GET", "/", http.Header{"Upgrade": {"h2c"}, "Connection": {"upgrade"}}, false},
		{"GET", "/", http.Header{"Upgrade": {"websocket"}}, false},
		{"CONNECT", "/", http.Header{":protocol": {"websocket"}}, true},
		{"CONNECT", "/", nil, false},
		{"GET", "/", http.Header{"Accept": {"text/event-stream"}}, true},
		{"GET", "/", http.Header{"Accept": {"text/html", "*/*, Text/Event-Stream;q=0.5"}}, true},
		{"GET", "/", http.Header{"Accept": {"text/event-streams"}}, false},
		{"GET", "/", http.Header{"Accept": {"text/event-stream;q=0, */*"}}, false},
		{"GET", "/", http.Header{"Accept": {"text/event-stream; Q=0.0", "text/event-stream"}}, true},
	} {
		r := httptest.NewRequest("GET", tt.path, nil)
		r.Method = tt.method
		r.Header = tt.header
		if got := graceful.DefaultLongRunning(r); got != tt.want {
			t.Errorf("%s %s %v: %v", tt.method, tt.path, tt.header, got)
		}
	}
}

func TestDefaultExempt(t *testing.T) {
	for path, want := range map[string]bool{
		"/": false, "/readyz": true, "/readyz/db": true, "/livez": true, "/healthz": true, "/metrics": true,
		"/readyzz": false, "/metricsx": false, "/x/readyz": false,
	} {
		if got := graceful.DefaultExempt(httptest.NewRequest("GET", path, nil)); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// lateComer is what a client that comes during the drain gets.
type lateComer struct {
	Status     int
	RetryAfter string
	Close      bool
	NoSniff    string
	JSON       bool
}

// The two modes of the Kubernetes apiserver: with ShutdownSendRetryAfter the listener
// stays open until the requests in flight are answered, and new requests are refused
// with an answer; without it the listener is closed first.
func TestShutdownSendRetryAfter(t *testing.T) {
	for _, retryAfter := range []time.Duration{0, 1500 * time.Millisecond} {
		t.Run(fmt.Sprint(retryAfter), func(t *testing.T) { testShutdownSendRetryAfter(t, retryAfter) })
	}
}

func testShutdownSendRetryAfter(t *testing.T, retryAfter time.Duration) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	listenerClosed := make(chan struct{})
	mux := http.NewServeMux()
	srv := &graceful.Server{
		Server:                 &http.Server{Addr: "127.0.0.1:0", Handler: mux},
		Timeout:                30 * time.Second,
		IdleGrace:              50 * time.Millisecond,
		ShutdownSendRetryAfter: retryAfter,
		NoSignalHandling:       true,
		LogFunc: func(format string, args ...any) {
			for _, prefix := range []string{"shutdown initiated", "listener", "stopped"} {
				if line := fmt.Sprintf(format, args...); strings.HasPrefix(line, prefix) {
					note(prefix)
					if prefix == "listener" {
						close(listenerClosed) // there is but one
					}
				}
			}
		},
	}
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		note("answered")
	})
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/readyz", srv.ReadyHandler())
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	stopped, err := srv.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + srv.Addrs()[0].String()
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path, accept string) (lateComer, error) {
		req, _ := http.NewRequest("GET", base+path, nil)
		req.Header.Set("Accept", accept)
		resp, err := fresh.Do(req)
		if err != nil {
			return lateComer{}, err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return lateComer{resp.StatusCode, resp.Header.Get("Retry-After"), resp.Close,
			resp.Header.Get("X-Content-Type-Options"), resp.Header.Get("Content-Type") == "application/json"}, nil
	}

	slow := make(chan error, 1)
	go func() {
		late, err := get("/slow", "")
		if err == nil && late.Status != http.StatusOK {
			err = fmt.Errorf("status %d", late.Status)
		}
		slow <- err
	}()
	<-entered
	srv.Stop(30 * time.Second)
	eventually(t, func() (bool, any) { p := srv.Phase(); return p == graceful.PhaseDraining, p })

	if retryAfter == 0 {
		<-listenerClosed
		if nc, err := net.Dial("tcp", srv.Addrs()[0].String()); err == nil {
			nc.Close()
			t.Error("the listener is closed, and accepts")
		}
	} else {
		for path, want := range map[string]lateComer{
			"/":        {http.StatusServiceUnavailable, "2", true, "nosniff", false},
			"/json":    {http.StatusServiceUnavailable, "2", true, "nosniff", true},
			"/healthz": {http.StatusOK, "", true, "", false},
			"/readyz":  {http.StatusServiceUnavailable, "", true, "nosniff", false},
		} {
			accept := ""
			if path == "/json" {
				accept = "application/json"
			}
			late, err := get(path, accept)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if d := cmp.Diff(want, late); d != "" {
				t.Errorf("%s (-want +got):\n%s", path, d)
			}
		}
	}
	close(leave)
	if err := <-slow; err != nil {
		t.Error("/slow:", err)
	}
	<-stopped

	want := []string{"shutdown initiated", "listener", "answered", "stopped"}
	if retryAfter > 0 {
		want = []string{"shutdown initiated", "answered", "listener", "stopped"}
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if r := srv.Report(); len(r.Killed) > 0 {
		t.Error(r)
	}
}

// A hijacked connection does not hold the drain that ShutdownSendRetryAfter asks for,
// whatever it was hijacked for: it is left alone as it is without. It
// used to, unless it was a WebSocket.
func TestShutdownSendRetryAfterLeavesHijacked(t *testing.T) {
	for name, request := range map[string]string{
		"upgrade": "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"SSE":     "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
		"CONNECT": "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"nothing": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"second":  "GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			release, hijacked, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var timeout graceful.RequestTimeout
			srv := &graceful.Server{
				Server: &http.Server{Addr: "127.0.0.1:0", Handler: timeout.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/first" {
						return
					}
					defer close(over)
					conn, _, err := http.NewResponseController(w).Hijack()
					close(hijacked)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					<-release
				}))},
				ShutdownSendRetryAfter: time.Second,
				NoSignalHandling:       true,
			}
			stopped, err := srv.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", srv.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, request)
			<-hijacked
			srv.Stop(time.Minute)
			select {
			case <-stopped:
			case <-time.After(20 * time.Second):
				t.Errorf("still waiting: %v", srv.Stats())
			}
			if r := srv.Report(); r.HijackedLeft != 1 {
				t.Error(r)
			}
			close(release)
			<-over
		})
	}
}

// Probes that never cease, and of which there is always one in progress, do not
// hold the drain either.
func TestRetryAfterProbesDoNotHold(t *testing.T) {
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan struct{}, 1)
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Duration(20+rand.IntN(20)) * time.Millisecond) // collecting takes its time
			select {
			case served <- struct{}{}:
			default:
			}
		})},
		ShutdownSendRetryAfter: time.Second,
		NoSignalHandling:       true,
	}
	stopped, err := srv.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + srv.Addrs()[0].String() + "/metrics"
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					return
				}
				resp.Body.Close()
			}
		})
	}
	for range 20 {
		<-served
	}
	srv.Stop(time.Minute)
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Errorf("still waiting: %v", srv.Stats())
	}
}
