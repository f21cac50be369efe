package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// What the tests of the request layer share: a plain http.Server over
// in-memory connections, inside a bubble, for both protocols.

// A bench is a server and a client of it.
type bench struct {
	*testing.T
	http2  bool
	server *http.Server
	client *http.Client
	l      *virtListener
	log    *lockedBuffer
	start  time.Time
}

// A lockedBuffer is written to by many.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// bothProtocols runs test in a bubble for HTTP/1 and in one for HTTP/2.
func bothProtocols(t *testing.T, test func(b *bench)) {
	t.Run("HTTP/1", func(t *testing.T) { withBench(t, false, test) })
	t.Run("HTTP/2", func(t *testing.T) { withBench(t, true, test) })
}

func withBench(t *testing.T, http2 bool, test func(b *bench)) {
	if http2 {
		emptyPools()
		defer emptyPools()
	}
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, http2: http2, l: newVirtListener(), log: new(lockedBuffer), start: time.Now()}
		var protocols http.Protocols
		protocols.SetHTTP1(!http2)
		protocols.SetUnencryptedHTTP2(http2)
		b.server = &http.Server{Protocols: &protocols, ErrorLog: log.New(b.log, "", 0)}
		tr := &http.Transport{
			Protocols:          &protocols,
			DisableCompression: true,
			DialContext:        func(context.Context, string, string) (net.Conn, error) { return b.l.connectPipe() },
		}
		b.client = &http.Client{Transport: tr}
		defer func() {
			b.server.Close()
			tr.CloseIdleConnections()
			time.Sleep(time.Hour) // in a bubble: whoever sleeps, wakes
		}()
		test(b)
	})
}

// emptyPools keeps what HTTP/2 servers share in Go 1.25, channels in a
// sync.Pool, from getting from one bubble into another.
func emptyPools() {
	if strings.HasPrefix(runtime.Version(), "go1.25") {
		runtime.GC()
		runtime.GC()
	}
}

// serve lets the server answer with h.
func (b *bench) serve(h http.Handler) {
	b.server.Handler = h
	go b.server.Serve(b.l)
}

// dial returns a connection on which the test speaks HTTP/1 itself.
func (b *bench) dial() net.Conn {
	b.Helper()
	conn, err := b.l.connectPipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

// getUnread asks for a response, and reads nothing of its body.
func (b *bench) getUnread() {
	b.Helper()
	if b.http2 {
		b.get("/")
		return
	}
	io.WriteString(b.dial(), bareGet)
}

// bareGet is a request as it is on the wire.
const bareGet = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func (b *bench) do(req *http.Request) *http.Response {
	b.Helper()
	resp, err := b.client.Do(req)
	if err != nil {
		b.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	b.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (b *bench) get(path string, header ...string) *http.Response {
	b.Helper()
	return b.do(b.request("GET", path, nil, header...))
}

func (b *bench) request(method, path string, body io.Reader, header ...string) *http.Request {
	b.Helper()
	req, err := http.NewRequest(method, "http://server"+path, body)
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (b *bench) body(resp *http.Response) string {
	b.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Errorf("body: %v after %q", err, body)
	}
	return string(body)
}

// elapsed checks the virtual time since the bubble began.
func (b *bench) elapsed(want time.Duration) {
	b.Helper()
	if got := time.Since(b.start); got != want {
		b.Errorf("after %v, want %v", got, want)
	}
}

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
