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
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

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

// The tunnels of httputil.ReverseProxy, which derives a context of its own from
// the request's and hangs both connections on it. Only WebSockets used to
// outlive the deadline, because the client had called them that
// (unkeyed/unkey#6091).
func TestDeadlineLiftedForReverseProxy(t *testing.T) {
	for _, protocol := range []string{"websocket", "tcp", "SPDY/3.1"} {
		for name, wrap := range deadlines(graceful.DeadlineOptions{Max: limit}) {
			t.Run(name+" "+protocol, func(t *testing.T) {
				withBench(t, false, func(b *bench) {
					backend := newPipeListener()
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
					tr := &http.Transport{DialContext: func(context.Context, string, string) (conn net.Conn, err error) { return backend.dial() }}
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
				if !strings.Contains(want, "timeoutlift_test.go:") && name != "hijacked, nothing" {
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
