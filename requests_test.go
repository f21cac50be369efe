package graceful_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What the tests of the request layer share: a plain http.Server over
// in-memory connections, inside a bubble, for both protocols.

// A pipeListener is a net.Listener whose connections are net.Pipes: nothing is
// buffered between client and server, so one that does not read blocks the
// other at once.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	dials atomic.Int32
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (l *pipeListener) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		l.dials.Add(1)
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// A bench is a server and a client of it.
type bench struct {
	*testing.T
	http2  bool
	server *http.Server
	client *http.Client
	l      *pipeListener
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
		b := &bench{T: t, http2: http2, l: newPipeListener(), log: new(lockedBuffer), start: time.Now()}
		var protocols http.Protocols
		protocols.SetHTTP1(!http2)
		protocols.SetUnencryptedHTTP2(http2)
		b.server = &http.Server{Protocols: &protocols, ErrorLog: log.New(b.log, "", 0)}
		tr := &http.Transport{
			Protocols:          &protocols,
			DisableCompression: true,
			DialContext:        func(context.Context, string, string) (net.Conn, error) { return b.l.dial() },
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
	conn, err := b.l.dial()
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
