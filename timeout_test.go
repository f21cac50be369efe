package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
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

// A context that nobody looked at in time is over, too.
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
