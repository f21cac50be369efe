package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
		if n := b.l.dials.Load(); n != 1 {
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

// Whoever asks for the context, whenever, also while the request ends and
// after that, gets the same one, and it ends with the request.
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
	// Nobody asked in time.
	var ctx context.Context
	(&graceful.RequestDeadline{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if err := ctx.Err(); err != context.Canceled {
		t.Error(err)
	}
}
