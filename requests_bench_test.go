package graceful_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// benchHeader is what benchHandler answers: the values are made once, so that
// what is counted is the middleware's.
var benchHeader = [8]string{"Content-Type", "Cache-Control", "Etag", "Last-Modified", "Vary", "X-Request-Id", "X-Frame-Options", "Content-Length"}

var benchHandler = func() http.Handler {
	value := []string{"4"}
	body := []byte("done")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, k := range benchHeader {
			h[k] = value
		}
		w.WriteHeader(http.StatusOK)
		w.Write(body)
	})
}()

// nullWriter has what net/http's writer for HTTP/1 has, and does nothing.
type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header                { return w.h }
func (w *nullWriter) WriteHeader(int)                    {}
func (w *nullWriter) Write(p []byte) (int, error)        { return len(p), nil }
func (w *nullWriter) WriteString(s string) (int, error)  { return len(s), nil }
func (w *nullWriter) Flush()                             {}
func (w *nullWriter) ReadFrom(io.Reader) (int64, error)  { return 0, nil }
func (w *nullWriter) SetReadDeadline(t time.Time) error  { return nil }
func (w *nullWriter) SetWriteDeadline(t time.Time) error { return nil }
func (w *nullWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, http.ErrNotSupported
}

// clock keeps the compiler from leaving out a time.Now.
var clock time.Time

// benchmarks are the middlewares side by side, net/http's first.
func benchmarks(b *testing.B, run func(b *testing.B, h http.Handler)) {
	var inFlight graceful.InFlight
	looks := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		default:
			benchHandler.ServeHTTP(w, r)
		}
	})
	// The least that a deadline in the request's context can cost: a copy of
	// the request, and a reading of the clock.
	copies := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		benchHandler.ServeHTTP(w, r.WithContext(r.Context()))
	})
	copiesAndReads := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		clock = time.Now()
		copies(w, r)
	})
	for _, bm := range []struct {
		name string
		h    http.Handler
	}{
		{"none", benchHandler},
		{"WithContext", copies},
		{"WithContext+Now", copiesAndReads},
		{"http.TimeoutHandler", http.TimeoutHandler(benchHandler, time.Minute, "")},
		{"RequestTimeout", (&graceful.RequestTimeout{}).Handler(benchHandler)},
		{"RequestDeadline", (&graceful.RequestDeadline{}).Handler(benchHandler)},
		{"InFlight", inFlight.Handler(benchHandler)},
		{"Done/http.TimeoutHandler", http.TimeoutHandler(looks, time.Minute, "")},
		{"Done/RequestTimeout", (&graceful.RequestTimeout{}).Handler(looks)},
		{"Done/RequestDeadline", (&graceful.RequestDeadline{}).Handler(looks)},
	} {
		b.Run(bm.name, func(b *testing.B) { run(b, bm.h) })
	}
}

// BenchmarkMiddleware is what each costs by itself: beside it is no server.
func BenchmarkMiddleware(b *testing.B) {
	benchmarks(b, func(b *testing.B, h http.Handler) {
		w := &nullWriter{h: make(http.Header)}
		ctx, cancel := context.WithCancel(context.Background()) // as net/http gives one
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
		b.ReportAllocs()
		for b.Loop() {
			clear(w.h)
			h.ServeHTTP(w, r)
		}
	})
}

// What the documentation says about allocations.
func TestMiddlewareAllocations(t *testing.T) {
	var inFlight graceful.InFlight
	for name, tt := range map[string]struct {
		h    http.Handler
		most float64
	}{
		"RequestTimeout":  {new(graceful.RequestTimeout).Handler(benchHandler), 12},
		"RequestDeadline": {new(graceful.RequestDeadline).Handler(benchHandler), 1},
		"InFlight":        {inFlight.Handler(benchHandler), 0},
	} {
		w := &nullWriter{h: make(http.Header)}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", "*/*")
		r.Header.Set("User-Agent", "test")
		got := testing.AllocsPerRun(100, func() {
			clear(w.h)
			tt.h.ServeHTTP(w, r)
		})
		if got > tt.most {
			t.Errorf("%s: %v allocations per request, at most %v", name, got, tt.most)
		}
	}
}

// BenchmarkMiddlewareServed is the same within a request over loopback.
func BenchmarkMiddlewareServed(b *testing.B) {
	benchmarks(b, func(b *testing.B, h http.Handler) {
		srv := httptest.NewServer(h)
		defer srv.Close()
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		br := bufio.NewReader(conn)
		b.ReportAllocs()
		for b.Loop() {
			io.WriteString(conn, bareGet)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
		}
	})
}

// BenchmarkInFlight is one Add and one Done, beside a sync.WaitGroup's; run it
// with -cpu 1,2,… to see whether the cores disturb each other.
func BenchmarkInFlight(b *testing.B) {
	parallel := func(name string, body func(pb *testing.PB)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(body)
		})
	}
	// The loops are each their own: a call of a function value would cost
	// about as much as what is measured.
	var wg sync.WaitGroup
	parallel("WaitGroup", func(pb *testing.PB) {
		for pb.Next() {
			wg.Add(1)
			wg.Done()
		}
	})
	var f graceful.InFlight
	parallel("InFlight", func(pb *testing.PB) {
		for pb.Next() {
			f.Add(1)
			f.Done()
		}
	})
	var served graceful.InFlight
	h := served.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w := &nullWriter{h: make(http.Header)}
	parallel("Handler", func(pb *testing.PB) {
		r := httptest.NewRequest("GET", "/", nil)
		for pb.Next() {
			h.ServeHTTP(w, r)
		}
	})
}
