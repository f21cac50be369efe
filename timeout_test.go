package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

const limit = 10 * time.Second

func handlerFunc(f func(w http.ResponseWriter, r *http.Request)) http.Handler {
	return http.HandlerFunc(f)
}

func within(f func(w http.ResponseWriter, r *http.Request)) http.Handler {
	return (&graceful.RequestTimeout{Max: limit}).Handler(http.HandlerFunc(f))
}

func TestRequestTimeoutAnswers(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		late := make(chan struct{})
		cut := func(w http.ResponseWriter, r *http.Request) {
			if d, ok := r.Context().Deadline(); !ok || d != time.Now().Add(limit) {
				b.Errorf("deadline %v, %v", d, ok)
			}
			<-r.Context().Done()
			if err := r.Context().Err(); err != context.DeadlineExceeded {
				b.Errorf("context: %v", err)
			}
			if cause := context.Cause(r.Context()); cause != graceful.ErrRequestTimeout || !errors.Is(cause, context.DeadlineExceeded) {
				b.Errorf("cause: %v", cause)
			}
			synctest.Wait() // for the answer

			// The race detector watches this.
			for range 100 {
				w.Header().Set("Late", "yes")
			}
			w.WriteHeader(http.StatusTeapot)
			w.(http.Flusher).Flush()
			if n, err := w.Write([]byte("late")); n != 0 || err != http.ErrHandlerTimeout {
				b.Errorf("Write: %d, %v", n, err)
			}
			if n, err := io.WriteString(w, "late"); n != 0 || err != http.ErrHandlerTimeout {
				b.Errorf("WriteString: %d, %v", n, err)
			}
			rc := http.NewResponseController(w)
			for name, err := range map[string]error{
				"Flush":            rc.Flush(),
				"SetReadDeadline":  rc.SetReadDeadline(time.Now()),
				"SetWriteDeadline": rc.SetWriteDeadline(time.Now()),
				"EnableFullDuplex": rc.EnableFullDuplex(),
			} {
				if err != http.ErrHandlerTimeout {
					b.Errorf("%s: %v", name, err)
				}
			}
			if h, ok := w.(http.Hijacker); ok {
				if _, _, err := h.Hijack(); err != http.ErrHandlerTimeout {
					b.Errorf("Hijack: %v", err)
				}
			}
			close(late)
		}
		h := within(cut)
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Outer", "kept")
			w.Header().Set("Etag", "of another answer")
			h.ServeHTTP(w, r)
		}))

		resp := b.get("/")
		b.elapsed(limit)
		if got := b.body(resp); resp.StatusCode != 504 || got != "the server did not answer in time\n" {
			b.Errorf("%s %q", resp.Status, got)
		}
		<-late
		resp.Header.Del("Date")
		want := http.Header{
			"Outer":                  {"kept"},
			"Cache-Control":          {"no-store"},
			"Content-Length":         {"34"},
			"Content-Type":           {"text/plain; charset=utf-8"},
			"X-Content-Type-Options": {"nosniff"},
		}
		if diff := cmp.Diff(want, resp.Header); diff != "" {
			b.Error(diff)
		}
	})
}

func TestRequestTimeoutAnswersJSON(t *testing.T) {
	for accept, want := range map[string]string{
		"application/json":                    `{"status":504,"error":"the server did not answer in time"}`,
		"text/xml, application/problem+json":  `{"status":504,"error":"the server did not answer in time"}`,
		"text/plain, application/json":        "the server did not answer in time",
		"application/json; q=0.0, text/plain": "the server did not answer in time",
		"*/*":                                 "the server did not answer in time",
	} {
		withBench(t, false, func(b *bench) {
			b.serve(within(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); time.Sleep(time.Nanosecond) }))
			if got := b.body(b.get("/", "Accept", accept)); got != want+"\n" {
				b.Errorf("Accept: %s: %q, want %q", accept, got, want)
			}
		})
	}
}

// Something is written, or only flushed: what the client has is not whole,
// and must not look as if it were.
func TestRequestTimeoutAborts(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter){
		"Write":       func(w http.ResponseWriter) { io.WriteString(w, "half") },
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(200) },
		"Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"WriteFlush":  func(w http.ResponseWriter) { io.WriteString(w, "half"); w.(http.Flusher).Flush() },
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				end := make(chan struct{})
				defer close(end)
				b.serve(within(func(w http.ResponseWriter, r *http.Request) { begin(w); <-end }))
				resp, err := b.client.Do(b.request("POST", "/", nil)) // POST: not tried again
				if err == nil {
					var body []byte
					body, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil {
						b.Errorf("the client takes %q for a whole answer", body)
					}
				}
				b.elapsed(limit)
			})
		})
	}
}

// 101 is a status like any other, not an announcement of one.
func TestRequestTimeoutAbortsSwitchedProtocol(t *testing.T) {
	withBench(t, false, func(b *bench) {
		end := make(chan struct{})
		defer close(end)
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Upgrade", "mine")
			w.Header().Set("Connection", "upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			<-end
		}))
		resp, err := b.client.Do(b.request("GET", "/", nil, "Upgrade", "mine", "Connection", "upgrade"))
		if err == nil {
			b.Error(resp.Status)
		}
		b.elapsed(limit)
		if b.log.String() != "" { // of a second status
			b.Error(b.log)
		}
	})
}

// Hijack flushes, and that may block.
func TestRequestTimeoutBlockedHijack(t *testing.T) {
	withBench(t, false, func(b *bench) {
		over := make(chan any, 1)
		h := within(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half")
			if _, _, err := w.(http.Hijacker).Hijack(); err != http.ErrHandlerTimeout {
				b.Error(err)
			}
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { v := recover(); over <- v; panic(v) }()
			h.ServeHTTP(w, r)
		}))
		io.WriteString(b.dial(), bareGet) // and read nothing
		if v := <-over; v != http.ErrAbortHandler {
			b.Errorf("panic %v", v)
		}
		b.elapsed(limit)
	})
}

// A client that went away is not a timeout, and is not waited for.
func TestRequestTimeoutClientGone(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		over := make(chan any, 1)
		end := make(chan struct{})
		h := within(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			if cause := context.Cause(r.Context()); cause != context.Canceled {
				b.Errorf("cause: %v", cause)
			}
			<-end
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { v := recover(); over <- v; panic(v) }()
			h.ServeHTTP(w, r)
		}))
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		if _, err := b.client.Do(b.request("GET", "/", nil).WithContext(ctx)); err == nil {
			b.Error("answered")
		}
		if v := <-over; v != http.ErrAbortHandler {
			b.Errorf("panic %v", v)
		}
		b.elapsed(time.Second)
		close(end)
	})
}

// The context ends with the handler, however that ends, and a panic arrives
// outside as it was.
func TestRequestTimeoutPanics(t *testing.T) {
	for _, value := range []any{nil, "a string", http.ErrAbortHandler, errors.New("an error")} {
		t.Run(fmt.Sprint(value), func(t *testing.T) {
			var ctx context.Context
			h := within(func(w http.ResponseWriter, r *http.Request) {
				ctx = r.Context()
				ctx.Done()
				w.Header().Set("Set", "before")
				if value != nil {
					panic(value)
				}
			})
			w := httptest.NewRecorder()
			func() {
				defer func() {
					if got := recover(); got != value {
						t.Errorf("panic %v, want %v", got, value)
					}
				}()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			}()
			if ctx.Err() != context.Canceled {
				t.Errorf("context: %v", ctx.Err())
			}
			if w.Header().Get("Set") == "" {
				t.Error("the header was lost")
			}
		})
	}
}

// A context whose Done was not called in time has ended, too.
func TestRequestTimeoutContextAfterwards(t *testing.T) {
	var ctx context.Context
	keep := func(w http.ResponseWriter, r *http.Request) { ctx = r.Context() }
	for _, h := range []http.Handler{within(keep), new(graceful.RequestDeadline).Handler(handlerFunc(keep))} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		<-ctx.Done()
		if ctx.Err() != context.Canceled {
			t.Error(ctx.Err())
		}
	}
}

func TestRequestTimeoutLatePanicIsLogged(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		end := make(chan struct{})
		b.serve(within(func(w http.ResponseWriter, r *http.Request) { <-end; panicForTheLog() }))
		if resp := b.get("/path"); resp.StatusCode != 504 {
			b.Error(resp.Status)
		}
		close(end)
		synctest.Wait()
		for _, want := range []string{"the value", "GET /path", "panicForTheLog"} {
			if !strings.Contains(b.log.String(), want) {
				b.Errorf("no %q in the log:\n%s", want, b.log)
			}
		}
	})
}

func panicForTheLog() { panic("the value") }

// runtime.Goexit in a handler ends net/http's goroutine, and the connection.
func TestRequestTimeoutGoexit(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) { runtime.Goexit() }))
		if resp, err := b.client.Do(b.request("POST", "/", nil)); err == nil {
			b.Error(resp.Status)
		}
		b.elapsed(0)
	})
}

// After hijacking the connection is the handler's, and it is waited for.
func TestRequestTimeoutHijack(t *testing.T) {
	withBench(t, false, func(b *bench) {
		over := make(chan struct{})
		h := within(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/begun" {
				w.WriteHeader(http.StatusSwitchingProtocols)
			}
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			time.Sleep(2 * limit)
			if r.URL.Path != "/begun" {
				io.WriteString(conn, "HTTP/1.1 101 Mine\r\n\r\n")
			}
			io.WriteString(conn, "hello")
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			over <- struct{}{}
		}))
		for _, path := range []string{"/", "/begun"} {
			b.start = time.Now()
			conn := b.dial()
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
			br := bufio.NewReader(conn)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				b.Fatal(err)
			}
			rest, err := io.ReadAll(br)
			if resp.StatusCode != 101 || string(rest) != "hello" || err != nil {
				b.Errorf("%s: %s %q %v", path, resp.Status, rest, err)
			}
			<-over
			b.elapsed(2 * limit)
			conn.Close()
		}
	})
}

// Requests are answered before handlers return, and both are counted.
func TestRequestTimeoutCountsHandlers(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		var f graceful.InFlight
		end := make(chan struct{})
		h := (&graceful.RequestTimeout{Max: limit, InFlight: &f}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) { <-end }))
		b.serve(f.Handler(h))
		counts := func(want ...int) {
			b.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, []int{f.Count(), f.Handlers()}); diff != "" {
				b.Error(diff)
			}
		}
		done := make(chan struct{})
		go func() { b.get("/"); close(done) }()
		counts(1, 1)
		<-done
		counts(0, 1)
		f.Wait()
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		if err := f.WaitHandlers(ctx); err != context.DeadlineExceeded {
			b.Error(err)
		}
		close(end)
		if err := f.WaitHandlers(b.Context()); err != nil {
			b.Error(err)
		}
		counts(0, 0)
	})
}

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

// deadlines are the two kinds of deadline, with the same options.
func deadlines(o graceful.DeadlineOptions) map[string]func(http.Handler) http.Handler {
	timeout, deadline := graceful.RequestTimeout(o), graceful.RequestDeadline(o)
	return map[string]func(http.Handler) http.Handler{"RequestTimeout": timeout.Handler, "RequestDeadline": deadline.Handler}
}

func eachDeadline(t *testing.T, o graceful.DeadlineOptions, test func(b *bench, wrap func(http.Handler) http.Handler)) {
	for name, wrap := range deadlines(o) {
		t.Run(name, func(t *testing.T) { bothProtocols(t, func(b *bench) { test(b, wrap) }) })
	}
}

// Whatever a client says of itself, its request has a deadline.
func TestDeadlineCannotBeTalkedAway(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		header       []string
	}{
		{"GET", "/", nil},
		{"GET", "/", []string{"Accept", "text/event-stream"}},
		{"GET", "/", []string{"Accept", "text/event-stream;q=0, */*"}},
		{"POST", "/", []string{"Content-Type", "text/event-stream"}},
		{"GET", "/", []string{"Connection", "upgrade", "Upgrade", "websocket"}},
		{"GET", "/", []string{"Connection", "upgrade", "Upgrade", "tcp"}},
		{"GET", "/debug/pprof/../../report", nil},
		{"GET", "/debug/pprof/profile", nil},
		{"CONNECT", "/", nil},
		{"CONNECT", "/", []string{":protocol", "websocket"}},
	} {
		t.Run(fmt.Sprint(tt.method, tt.path, tt.header), func(t *testing.T) {
			for name, wrap := range deadlines(graceful.DeadlineOptions{Max: limit}) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					r := httptest.NewRequest(tt.method, "/", nil)
					r.URL.Path = tt.path
					for i := 0; i < len(tt.header); i += 2 {
						r.Header[tt.header[i]] = []string{tt.header[i+1]}
					}
					w := httptest.NewRecorder()
					wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if d, ok := r.Context().Deadline(); !ok || d != start.Add(limit) {
							t.Errorf("%s: deadline %v, %v", name, d, ok)
						}
						<-r.Context().Done()
						w.WriteHeader(504) // RequestDeadline's handlers do
					})).ServeHTTP(w, r)
					if w.Code != 504 || time.Since(start) != limit {
						t.Errorf("%s: %d after %v", name, w.Code, time.Since(start))
					}
					synctest.Wait()
				})
			}
		})
	}
}

// Server-sent events have no end: once the handler has begun them, neither its
// context nor a context made of it before, nor the connection has a deadline.
// Only the server's own deadlines are as they were.
func TestDeadlineLiftedByEventStream(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter){
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(200) },
		"Write":       func(w http.ResponseWriter) { io.WriteString(w, "data: 0\n\n") },
		"Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"ReadFrom":    func(w http.ResponseWriter) { io.Copy(w, strings.NewReader("data: 0\n\n")) },
		"after hints": func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(200) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, grace := range []time.Duration{0, time.Second} {
				eachDeadline(t, graceful.DeadlineOptions{Max: limit, Grace: grace}, func(b *bench, wrap func(http.Handler) http.Handler) {
					over := make(chan struct{})
					b.serve(wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
						defer close(over)
						done := r.Context().Done()
						child, cancel := context.WithCancel(r.Context())
						defer cancel()
						w.Header().Set("Content-Type", "Text/Event-Stream ; charset=utf-8")
						begin(w)
						if d, ok := r.Context().Deadline(); ok {
							b.Errorf("deadline %v", d)
						}
						time.Sleep(5 * limit)
						select {
						case <-done:
							b.Error("the context has ended")
						case <-child.Done():
							b.Error("the derived context has ended")
						default:
						}
						if r.Context().Err() != nil {
							b.Error(r.Context().Err())
						}
						io.WriteString(w, "data: last\n\n")
						if err := http.NewResponseController(w).Flush(); err != nil {
							b.Error(err)
						}
						if r.Method == "POST" {
							if body, err := io.ReadAll(r.Body); string(body) != "late" || err != nil {
								b.Errorf("%q, %v", body, err)
							}
						}
						<-done // the client goes
						b.elapsed(6 * limit)
					})))
					body, writer := io.Pipe()
					req := b.request("GET", "/", nil)
					if name == "WriteHeader" && b.http2 {
						req = b.request("POST", "/", body)
					}
					ctx, cancel := context.WithTimeout(b.Context(), 6*limit)
					defer cancel()
					resp := b.do(req.WithContext(ctx))
					go func() { io.WriteString(writer, "late"); writer.Close() }()
					if got, _ := io.ReadAll(resp.Body); !strings.HasSuffix(string(got), "data: last\n\n") {
						b.Errorf("%q", got)
					}
					body.Close()
					<-over
				})
			}
		})
	}
}

// Another response that begins in time lifts nothing, nor does an event stream
// that begins too late.
func TestDeadlineNotLifted(t *testing.T) {
	for name, tt := range map[string]struct {
		at          time.Duration
		contentType string
	}{
		"other type":       {0, "text/event-streams"},
		"no type":          {0, ""},
		"a second type":    {0, "text/plain, text/event-stream"},
		"in the grace":     {limit + 1, "text/event-stream"},
		"after the status": {-1, "text/event-stream"},
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				over := make(chan struct{})
				h := &graceful.RequestTimeout{Max: limit, Grace: time.Second}
				b.serve(h.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(over)
					if tt.at < 0 {
						w.WriteHeader(200)
					} else {
						time.Sleep(tt.at)
					}
					if tt.contentType != "" {
						w.Header().Set("Content-Type", tt.contentType)
					}
					io.WriteString(w, "data: 0\n\n")
					w.(http.Flusher).Flush()
					time.Sleep(limit + 10*time.Second)
					if r.Context().Err() != context.DeadlineExceeded {
						b.Errorf("context: %v", r.Context().Err())
					}
				})))
				resp := b.do(b.request("POST", "/", nil))
				if body, err := io.ReadAll(resp.Body); err == nil {
					b.Errorf("the client takes %q for a whole answer", body)
				}
				b.elapsed(limit + time.Second)
				<-over
			})
		})
	}
}

// The connection gets the server's own deadline back, and no other.
func TestDeadlineLiftedKeepsServerTimeout(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.server.WriteTimeout = 2 * limit
		over := make(chan error)
		b.serve((&graceful.RequestDeadline{Max: limit}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, err := io.Copy(w, zeros{})
			over <- err
		})))
		b.getUnread()
		if err := <-over; err == nil {
			b.Error("no error")
		}
		b.elapsed(2 * limit)
	})
}

// A hijacked connection has no deadline, whatever it was hijacked for.
func TestDeadlineLiftedByHijack(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Second} {
		for name, wrap := range deadlines(graceful.DeadlineOptions{Max: limit, Grace: grace}) {
			t.Run(name, func(t *testing.T) {
				withBench(t, false, func(b *bench) {
					over := make(chan struct{})
					b.serve(wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
						defer close(over)
						done := r.Context().Done()
						conn, buf, err := w.(http.Hijacker).Hijack()
						if err != nil {
							b.Error(err)
							return
						}
						defer conn.Close()
						if _, ok := r.Context().Deadline(); ok {
							b.Error("a deadline")
						}
						line, err := buf.ReadString('\n')
						if line != "hello\n" || err != nil {
							b.Errorf("%q, %v", line, err)
						}
						b.elapsed(5 * limit)
						select {
						case <-done:
							b.Error("the context has ended")
						default:
						}
						io.WriteString(conn, "HTTP/1.1 200 Mine\r\nConnection: close\r\n\r\n")
					})))
					conn := b.dial()
					io.WriteString(conn, bareGet)
					time.Sleep(5 * limit)
					io.WriteString(conn, "hello\n")
					if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.Status != "200 Mine" {
						b.Error(resp, err)
					}
					<-over
				})
			})
		}
	}
}

// A connection that was hijacked stays the handler's when the request's context
// ends, also in the grace period: the context tells the handler, and nothing
// else happens.
func TestRequestTimeoutHijackOutlivesContext(t *testing.T) {
	for name, tt := range map[string]struct{ hijack, cancel, grace time.Duration }{
		"then cancelled":            {0, time.Second, 0},
		"then cancelled, grace":     {0, time.Second, time.Second},
		"in the grace":              {limit + 1, 0, time.Second},
		"in the grace, then killed": {limit + 1, limit + 2, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			withBench(t, false, func(b *bench) {
				over := make(chan any, 1)
				h := (&graceful.RequestTimeout{Max: limit, Grace: tt.grace}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(tt.hijack)
					conn, _, err := w.(http.Hijacker).Hijack()
					if err != nil {
						b.Error(err)
						return
					}
					defer conn.Close()
					<-r.Context().Done()
					time.Sleep(5 * limit)
					io.WriteString(conn, "HTTP/1.1 200 Mine\r\nConnection: close\r\n\r\n")
				}))
				b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { over <- recover() }()
					ctx, cancel := context.WithCancel(r.Context())
					defer cancel()
					if tt.cancel > 0 {
						time.AfterFunc(tt.cancel, cancel)
					}
					h.ServeHTTP(w, r.WithContext(ctx))
				}))
				conn := b.dial()
				io.WriteString(conn, bareGet)
				if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.Status != "200 Mine" {
					b.Error(resp, err)
				}
				if v := <-over; v != nil {
					b.Errorf("panic %v", v)
				}
			})
		})
	}
}

// The tunnels of httputil.ReverseProxy, which derives a context of its own from
// the request's and hangs both connections on it. Only WebSockets used to
// outlive the deadline, because the client had called them that
// (unkeyed/unkey#6091).
func TestDeadlineLiftedForReverseProxy(t *testing.T) {
	for _, protocol := range []string{"websocket", "tcp", "SPDY/3.1"} {
		for name, wrap := range deadlines(graceful.DeadlineOptions{Max: limit}) {
			t.Run(name+" "+protocol, func(t *testing.T) {
				withBench(t, false, func(b *bench) {
					backend := newVirtListener()
					behind := &http.Server{Handler: handlerFunc(func(w http.ResponseWriter, r *http.Request) {
						conn, buf, err := http.NewResponseController(w).Hijack()
						if err != nil {
							b.Error(err)
							return
						}
						defer conn.Close()
						fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
						io.Copy(conn, buf)
					})}
					go behind.Serve(backend)
					defer behind.Close()
					proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "backend"})
					tr := &http.Transport{DialContext: func(context.Context, string, string) (conn net.Conn, err error) { return backend.connectPipe() }}
					defer tr.CloseIdleConnections()
					proxy.Transport = tr
					b.serve(wrap(proxy))
					conn := b.dial()
					fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
					br := bufio.NewReader(conn)
					resp, err := http.ReadResponse(br, nil)
					if err != nil || resp.StatusCode != 101 {
						b.Fatal(resp, err)
					}
					for range 3 {
						time.Sleep(2 * limit)
						io.WriteString(conn, "hello")
						got := make([]byte, 5)
						if _, err := io.ReadFull(br, got); err != nil || string(got) != "hello" {
							b.Fatalf("%q, %v", got, err)
						}
					}
					conn.Close()
				})
			})
		}
	}
}

// An application's own LongRunning decides beforehand, as before.
func TestDeadlineLongRunning(t *testing.T) {
	for name, wrap := range deadlines(graceful.DeadlineOptions{LongRunning: graceful.DefaultLongRunning}) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", "text/event-stream")
		wrap(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if d, ok := r.Context().Deadline(); ok {
				t.Errorf("%s: deadline %v", name, d)
			}
		})).ServeHTTP(httptest.NewRecorder(), r)
	}
}

// What net/http logs about a mistake of a handler names the handler's line, not
// one of this package, and says the same as without it. Over HTTP/2 it is
// silent.
func TestDeadlineMistakesAreLoggedAtTheHandlersLine(t *testing.T) {
	wraps := deadlines(graceful.DeadlineOptions{})
	plain := func(h http.Handler) http.Handler { return h }
	wraps["InFlight"] = func(h http.Handler) http.Handler { return new(graceful.InFlight).Handler(h) }
	wraps["all"] = func(h http.Handler) http.Handler {
		return wraps["RequestTimeout"](wraps["RequestDeadline"](wraps["InFlight"](h)))
	}
	for name, h := range map[string]http.HandlerFunc{
		"twice": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); w.WriteHeader(204) },
		"written": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			http.Error(w, "late", 500)
		},
		"hints":    func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); w.WriteHeader(103) },
		"no such":  func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); w.WriteHeader(0) },
		"flushed":  func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); w.WriteHeader(500) },
		"copied":   func(w http.ResponseWriter, r *http.Request) { io.Copy(w, strings.NewReader("x")); w.WriteHeader(500) },
		"hijacked": func(w http.ResponseWriter, r *http.Request) { hijackFor(w); w.WriteHeader(500) },
		"hijacked, written": func(w http.ResponseWriter, r *http.Request) {
			hijackFor(w)
			if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, http.ErrHijacked) {
				panic(err)
			}
		},
		"hijacked, nothing": func(w http.ResponseWriter, r *http.Request) { hijackFor(w); w.Write(nil) },
	} {
		logged := func(t *testing.T, http2 bool, wrap func(http.Handler) http.Handler) (log string) {
			withBench(t, http2, func(b *bench) {
				b.serve(wrap(h))
				if b.http2 {
					b.body(b.get("/"))
				} else {
					conn := b.dial()
					io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
					http.ReadResponse(bufio.NewReader(conn), nil)
					synctest.Wait()
					conn.Close()
				}
				synctest.Wait()
				log = b.log.String()
			})
			return log
		}
		for wrapped, wrap := range wraps {
			t.Run(name+" "+wrapped, func(t *testing.T) {
				want := logged(t, false, plain)
				if !strings.Contains(want, "timeout_test.go:") && name != "hijacked, nothing" {
					t.Fatalf("net/http logs %q", want)
				}
				if diff := cmp.Diff(want, logged(t, false, wrap)); diff != "" {
					t.Error(diff)
				}
				if !strings.HasPrefix(name, "hijacked") {
					if diff := cmp.Diff(logged(t, true, plain), logged(t, true, wrap)); diff != "" {
						t.Errorf("HTTP/2: %s", diff)
					}
				}
			})
		}
	}
}

func hijackFor(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	conn.Close()
}

// The context ends at the deadline, and the handler, which still has the
// connection for the grace period, answers by itself.
func TestRequestDeadline(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		var ctx context.Context
		b.serve((&graceful.RequestDeadline{Max: limit, Grace: time.Second}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx = r.Context()
			<-ctx.Done()
			b.elapsed(limit)
			if ctx.Err() != context.DeadlineExceeded || context.Cause(ctx) != graceful.ErrRequestTimeout {
				b.Errorf("%v, %v", ctx.Err(), context.Cause(ctx))
			}
			time.Sleep(time.Second - 1)
			w.WriteHeader(http.StatusTeapot)
		})))
		if resp := b.get("/"); resp.StatusCode != http.StatusTeapot {
			b.Error(resp.Status)
		}
	})
}

// A handler that waits for its client waits for Grace longer than the context.
func TestRequestDeadlineConnection(t *testing.T) {
	for name, tt := range map[string]struct {
		grace time.Duration
		want  time.Duration
	}{
		"zero":     {0, limit},
		"negative": {-1, limit},
		"a minute": {time.Minute, limit + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				d := graceful.RequestDeadline{Max: limit, Grace: tt.grace}
				over := make(chan error)
				b.serve(d.Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					var err error
					if r.Method == "POST" {
						_, err = io.ReadAll(r.Body)
					} else {
						_, err = io.Copy(w, zeros{})
					}
					over <- err
				})))
				silent, end := io.Pipe()
				defer end.Close()
				go b.client.Do(b.request("POST", "/", silent))
				// Over HTTP/2 the write deadline, which is at the same time, may
				// reset the stream first.
				if err := <-over; err == nil || !b.http2 && !errors.Is(err, os.ErrDeadlineExceeded) {
					b.Errorf("reading: %v", err)
				}
				b.elapsed(tt.want)

				b.start = time.Now()
				b.getUnread()
				if err := <-over; err == nil {
					b.Error("writing ended without an error")
				}
				b.elapsed(tt.want)
			})
		})
	}
}

// The deadlines of one request are not those of the next.
func TestRequestDeadlineKeepAlive(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		b.serve((&graceful.RequestDeadline{Max: limit}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(limit - 1)
			io.WriteString(w, "fine")
		})))
		for _, method := range []string{"GET", "POST", "GET", "POST"} {
			if got := b.body(b.do(b.request(method, "/", strings.NewReader("body")))); got != "fine" {
				b.Errorf("%q", got)
			}
			time.Sleep(2 * limit)
		}
		if n := b.l.taken(); n != 1 {
			b.Errorf("%d connections", n)
		}
	})
}

// The server's own deadlines are not put off.
func TestRequestDeadlineServerTimeouts(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.server.WriteTimeout, b.server.ReadTimeout = 3*time.Second, 2*time.Second
		over := make(chan error)
		b.serve((&graceful.RequestDeadline{Max: limit}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			if err != nil {
				b.elapsed(2 * time.Second)
			} else {
				_, err = io.Copy(w, zeros{})
				b.elapsed(3 * time.Second)
			}
			over <- err
		})))
		for _, request := range []string{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", bareGet} {
			b.start = time.Now()
			conn := b.dial()
			io.WriteString(conn, request)
			if err := <-over; !errors.Is(err, os.ErrDeadlineExceeded) {
				b.Error(err)
			}
		}
	})
}

// A handler that goes on past all its deadlines does not look like a client
// that went away.
func TestRequestDeadlineOverrun(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		h := (&graceful.RequestDeadline{Max: limit}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * limit)
		}))
		over := make(chan error, 1)
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			over <- r.Context().Err()
		}))
		b.client.Do(b.request("GET", "/", nil).WithContext(b.Context()))
		if err := <-over; err != nil && !b.http2 { // there the stream was reset
			b.Error(err)
		}
		b.elapsed(10 * limit)
	})
}

// A context derived from the request's, and one with a value, know the cause
// too, and none needs a goroutine.
func TestRequestDeadlineDerivedContexts(t *testing.T) {
	withBench(t, false, func(b *bench) {
		type key struct{}
		b.serve((&graceful.RequestDeadline{Max: limit}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			child, cancel := context.WithCancel(context.WithValue(r.Context(), key{}, "value"))
			defer cancel()
			grandchild, cancel := context.WithTimeout(child, time.Hour)
			defer cancel()
			if grandchild.Value(key{}) != "value" || grandchild.Value(http.ServerContextKey) != b.server {
				b.Error("values are lost")
			}
			<-grandchild.Done()
			b.elapsed(limit)
			for _, ctx := range []context.Context{child, grandchild} {
				if ctx.Err() != context.DeadlineExceeded || context.Cause(ctx) != graceful.ErrRequestTimeout {
					b.Errorf("%v, %v", ctx.Err(), context.Cause(ctx))
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			earlier, _ := ctx.Deadline()
			(&graceful.RequestDeadline{Max: time.Hour}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if d, _ := r.Context().Deadline(); d != earlier {
					b.Errorf("deadline %v, want the outer %v", d, earlier)
				}
			})).ServeHTTP(w, r.WithContext(ctx))
		})))
		conn := b.dial()
		io.WriteString(conn, bareGet)
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			b.Error(err)
		}
		synctest.Wait()
	})
}

// Every call of Context, also during and after the request's end, returns the same
// context, and it ends with the request.
func TestRequestDeadlineContextAfterReturn(t *testing.T) {
	for range 200 {
		var ctx context.Context
		got := make(chan (<-chan struct{}), 4)
		start := make(chan struct{})
		h := (&graceful.RequestDeadline{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx = r.Context()
			for range cap(got) {
				go func() {
					<-start
					got <- ctx.Done()
				}()
			}
			close(start)
			runtime.Gosched()
		}))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		for range cap(got) {
			if done := <-got; done != ctx.Done() {
				t.Fatal("two contexts")
			}
		}
		select {
		case <-ctx.Done():
		default:
			t.Fatal("not done")
		}
		if err, cause := ctx.Err(), context.Cause(ctx); err != context.Canceled || cause != context.Canceled {
			t.Fatal(err, cause)
		}
	}
	// Context was not called in time.
	var ctx context.Context
	(&graceful.RequestDeadline{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if err := ctx.Err(); err != context.Canceled {
		t.Error(err)
	}
}
