package graceful_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// http2Client returns a client that speaks HTTP/2 only.
func http2Client(t *testing.T, overTLS bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	if overTLS {
		tr.TLSClientConfig = traffic.ClientTLS()
		tr.Protocols.SetHTTP2(true)
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// serveEither serves user on ln with net/http, or with a Server, until the test
// is over. It returns the server and the URL.
func serveEither(t *testing.T, user *http.Server, overTLS, ours bool) (*graceful.Server, string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http"
	if !overTLS {
		user.Protocols = new(http.Protocols)
		user.Protocols.SetHTTP1(true)
		user.Protocols.SetUnencryptedHTTP2(true)
	}
	if overTLS {
		scheme = "https"
		if user.TLSConfig == nil {
			user.TLSConfig = traffic.ServerTLS()
		}
	}
	url := fmt.Sprintf("%s://%s", scheme, ln.Addr())
	srv := &graceful.Server{Server: user, NoSignalHandling: true, IdleGrace: 10 * time.Millisecond}
	serve, serveTLS, stop := user.Serve, user.ServeTLS, user.Close
	if ours {
		serve, serveTLS, stop = srv.Serve, srv.ServeTLS, srv.Close
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if overTLS {
			serveTLS(ln, "", "")
		} else {
			serve(ln)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-served
	})
	return srv, url
}

// TestHTTP2Unchanged asks the same of net/http's server and of ours.
func TestHTTP2Unchanged(t *testing.T) {
	for _, overTLS := range []bool{true, false} {
		t.Run(map[bool]string{true: "TLS", false: "clear"}[overTLS], func(t *testing.T) {
			var answers [2]map[string]string
			for i, ours := range []bool{false, true} {
				answers[i] = askHTTP2(t, overTLS, ours)
			}
			if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
				t.Errorf("what net/http says (-) is not what we say (+):\n%s", diff)
			}
			if len(answers[0]) < 12 {
				t.Errorf("only %d answers", len(answers[0]))
			}
		})
	}
}

// askHTTP2 returns what a handler and a client see.
func askHTTP2(t *testing.T, overTLS, ours bool) map[string]string {
	answers := make(map[string]string)
	var mu sync.Mutex
	note := func(key, format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		answers[key] += fmt.Sprintf(format, args...)
	}
	user := &http.Server{
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       log.New(io.Discard, "", 0),
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: 3, MaxReadFrameSize: 20000},
	}
	type key struct{}
	user.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		return context.WithValue(ctx, key{}, nc)
	}
	user.ConnState = func(nc net.Conn, s http.ConnState) {
		_, isTLS := nc.(*tls.Conn)
		_, isTCP := nc.(*net.TCPConn)
		note("states", "%v TLS=%v TCP=%v; ", s, isTLS, isTCP)
	}
	mux := http.NewServeMux()
	user.Handler = mux
	var upload string
	mux.HandleFunc("/facts", func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		nc, _ := ctx.Value(key{}).(net.Conn)
		note("proto", "%s %d", r.Proto, r.ProtoMajor)
		note("tls", "%v", r.TLS != nil && r.TLS.HandshakeComplete && r.TLS.NegotiatedProtocol == "h2")
		note("remote", "%v", nc != nil && r.RemoteAddr == nc.RemoteAddr().String())
		note("local", "%v", nc != nil && ctx.Value(http.LocalAddrContextKey).(net.Addr).String() == nc.LocalAddr().String())
		note("server", "%v", ctx.Value(http.ServerContextKey) == user)
		_, flusher := w.(http.Flusher)
		_, pusher := w.(http.Pusher)
		_, hijacker := w.(http.Hijacker)
		note("writer", "flusher %v, pusher %v, hijacker %v", flusher, pusher, hijacker)
		note("host", "%s %s", r.Method, r.URL.Path)
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "After")
		body, err := io.ReadAll(r.Body)
		note("trailers in", "%s %v %v", body, err, r.Trailer.Get("Before"))
		w.Write(body)
		w.Header().Set("After", "word")
	})
	mux.HandleFunc("/duplex", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		note("full duplex", "%v", rc.EnableFullDuplex())
		rc.Flush()
		io.Copy(flushing{w, rc}, r.Body)
	})
	mux.HandleFunc("/deadline", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.Flush()
		note("set deadline", "%v", rc.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		_, err := io.ReadAll(r.Body)
		note("deadline", "%v", errors.Is(err, os.ErrDeadlineExceeded))
	})
	mux.HandleFunc("/files", func(w http.ResponseWriter, r *http.Request) {
		r.ParseMultipartForm(1)
		f, _ := r.MultipartForm.File["f"][0].Open()
		upload = f.(*os.File).Name()
		f.Close()
	})
	_, url := serveEither(t, user, overTLS, ours)
	c := http2Client(t, overTLS)
	do := func(method, path string, body io.Reader, edit ...func(*http.Request)) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, url+path, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range edit {
			f(req)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("ours %v: %s: %v", ours, path, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	io.Copy(io.Discard, do("GET", "/facts", nil).Body)

	resp := do("POST", "/trailers", io.NopCloser(strings.NewReader("x")), func(r *http.Request) {
		r.Trailer = http.Header{"Before": {"hand"}}
	})
	io.Copy(io.Discard, resp.Body)
	note("trailers out", "%v", resp.Trailer)

	pr, pw := io.Pipe()
	resp = do("POST", "/duplex", pr)
	for _, word := range []string{"one", "two"} {
		io.WriteString(pw, word)
		got := make([]byte, 3)
		io.ReadFull(resp.Body, got)
		note("duplex", "%s ", got)
	}
	pw.Close()
	io.Copy(io.Discard, resp.Body)

	pr, pw = io.Pipe()
	resp = do("POST", "/deadline", pr)
	io.Copy(io.Discard, resp.Body)
	pw.Close()

	var form bytes.Buffer
	mw := multipart.NewWriter(&form)
	part, _ := mw.CreateFormFile("f", "f")
	part.Write(make([]byte, 11<<20)) // too much for memory
	mw.Close()
	resp = do("POST", "/files", &form, func(r *http.Request) { r.Header.Set("Content-Type", mw.FormDataContentType()) })
	io.Copy(io.Discard, resp.Body)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		// net/http removes it after the response's end
		if _, err := os.Stat(upload); err != nil || time.Now().After(end) {
			note("upload", "%v", errors.Is(err, os.ErrNotExist))
			break
		}
	}
	note("settings", "%v", firstFrame(t, url, overTLS))
	mu.Lock()
	defer mu.Unlock()
	seen := maps.Clone(answers)
	first := strings.SplitAfter(seen["states"], "; ") // the timing of the rest is free
	seen["states"] = strings.Join(first[:min(3, len(first))], "")
	return seen
}

// flushing writes and flushes.
type flushing struct {
	io.Writer
	rc *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	f.rc.Flush()
	return n, err
}

// firstFrame returns the payload of the server's SETTINGS.
func firstFrame(t *testing.T, url string, overTLS bool) []byte {
	nc := dialHTTP2(t, strings.TrimPrefix(strings.TrimPrefix(url, "https://"), "http://"), overTLS)
	defer nc.Close()
	io.WriteString(nc, http2Preface)
	_, payload, err := readHTTP2Frame(nc)
	if err != nil {
		t.Error(err)
	}
	return payload
}

// http2Preface is the client's greeting and its empty SETTINGS.
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func dialHTTP2(t *testing.T, addr string, overTLS bool) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	if !overTLS {
		return nc
	}
	cfg := traffic.ClientTLS()
	cfg.NextProtos = []string{"h2"}
	if cfg.ServerName == "" {
		cfg.ServerName = "127.0.0.1"
	}
	return tls.Client(nc, cfg)
}

// readHTTP2Frame returns the kind and the payload of a frame.
func readHTTP2Frame(r io.Reader) (kind byte, payload []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(r, payload)
	return head[3], payload, err
}

// speakHTTP2 connects, greets and reads the server's SETTINGS.
func speakHTTP2(t *testing.T, addr string, overTLS bool) net.Conn {
	t.Helper()
	nc := dialHTTP2(t, addr, overTLS)
	t.Cleanup(func() { nc.Close() })
	if _, err := io.WriteString(nc, http2Preface); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := readHTTP2Frame(nc); kind != 4 || err != nil {
		t.Fatalf("the first frame is of kind %d: %v", kind, err)
	}
	return nc
}

// goodbye reads to the end. It acknowledges PINGs, if it is to, and returns the
// last streams of the GOAWAYs that came.
func goodbye(t *testing.T, nc net.Conn, ack bool) (last []uint32) {
	t.Helper()
	for {
		kind, payload, err := readHTTP2Frame(nc)
		if err != nil {
			if err != io.EOF {
				t.Errorf("the server did not close as one should: %v", err)
			}
			return last
		}
		switch {
		case kind == 7:
			last = append(last, binary.BigEndian.Uint32(payload))
		case kind == 6 && ack:
			nc.Write(append([]byte{0, 0, 8, 6, 1, 0, 0, 0, 0}, payload...))
		}
	}
}

var inTwoSteps = []uint32{1<<31 - 1, 0}

// TestHTTP2Goodbye: net/http told an idle client once, and left after a second.
func TestHTTP2Goodbye(t *testing.T) {
	for _, overTLS := range []bool{true, false} {
		srv, url := serveEither(t, new(http.Server), overTLS, true)
		nc := speakHTTP2(t, strings.SplitN(url, "//", 2)[1], overTLS)
		began := time.Now()
		srv.Stop(time.Minute)
		if diff := cmp.Diff(inTwoSteps, goodbye(t, nc, true)); diff != "" {
			t.Error(diff)
		}
		if d := time.Since(began); d > 900*time.Millisecond {
			t.Errorf("an idle client was let go after %v", d)
		}
		nc.Close()
		<-srv.StopChan()
		r := srv.Report()
		if r.HTTP2 != "GOAWAY in two steps" || r.Start.HTTP2 != 1 || r.Start.Streams != 0 || len(r.Killed) > 0 {
			t.Errorf("report: %q, %v", r.HTTP2, r)
		}
	}
}

// TestHTTP2DeafClient: a client that acknowledges nothing and never leaves does
// not keep the server for ever, though there is no timeout.
func TestHTTP2DeafClient(t *testing.T) {
	t.Parallel()
	srv, url := serveEither(t, new(http.Server), false, true)
	nc := speakHTTP2(t, strings.SplitN(url, "//", 2)[1], false)
	srv.Stop(0)
	if diff := cmp.Diff(inTwoSteps, goodbye(t, nc, false)); diff != "" {
		t.Error(diff)
	}
	select { // nc stays open
	case <-srv.StopChan():
	case <-time.After(20 * time.Second):
		t.Error("waits for ever")
	}
}

// TestHTTP2LateHandshake: Shutdown missed a connection whose handshake ended
// after it, and waited for it to the deadline (golang/go#81153).
func TestHTTP2LateHandshake(t *testing.T) {
	answer := make(chan struct{})
	user := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-answer })}
	srv, url := serveEither(t, user, true, true)
	addr := strings.SplitN(url, "//", 2)[1]
	pending := make(chan error, 1)
	go func() { // keeps the server
		resp, err := http2Client(t, true).Get(url)
		if err == nil {
			resp.Body.Close()
		}
		pending <- err
	}()
	late := dialHTTP2(t, addr, true)
	for srv.Stats().Streams == 0 || srv.Stats().Open() < 2 {
		time.Sleep(time.Millisecond)
	}
	srv.Stop(time.Minute)
	for srv.Phase() != graceful.PhaseDraining {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // the final GOAWAY is out
	if _, err := io.WriteString(late, http2Preface); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(inTwoSteps, goodbye(t, late, true)); diff != "" {
		t.Error(diff)
	}
	late.Close()
	close(answer)
	if err := <-pending; err != nil {
		t.Error(err)
	}
	<-srv.StopChan()
	if r := srv.Report(); len(r.Killed) > 0 {
		t.Error(r)
	}
}

// TestHTTP2Plain: where the layer has no place the report says why, and
// everything is as net/http makes it.
func TestHTTP2Plain(t *testing.T) {
	t.Run("switched off", func(t *testing.T) {
		t.Setenv("GODEBUG", "http2server=0")
		srv := servePlain(t, new(http.Server), "HTTP/1.1")
		if got := srv.Report().HTTP2; !strings.Contains(got, "http2server=0") {
			t.Errorf("report: %q", got)
		}
	})
	t.Run("its own", func(t *testing.T) {
		used := make(chan struct{}, 1)
		user := &http.Server{TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) { used <- struct{}{}; c.Close() },
		}}
		srv, url := serveEither(t, user, true, true)
		nc := dialHTTP2(t, strings.SplitN(url, "//", 2)[1], true)
		defer nc.Close()
		nc.Write([]byte("hello"))
		<-used
		srv.Shutdown(t.Context())
		if got := srv.Report().HTTP2; !strings.Contains(got, "of its own") {
			t.Errorf("report: %q", got)
		}
	})
	t.Run("a bad cipher list is the caller's error", func(t *testing.T) {
		cfg := traffic.ServerTLS()
		cfg.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_256_CBC_SHA}
		errs := make([]string, 2)
		for i := range errs {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			user := &http.Server{TLSConfig: cfg.Clone()}
			if i == 0 {
				errs[i] = user.ServeTLS(ln, "", "").Error()
			} else {
				srv := &graceful.Server{Server: user, NoSignalHandling: true}
				errs[i] = fmt.Sprint(srv.ServeTLS(ln, "", ""))
			}
		}
		if diff := cmp.Diff(errs[0], errs[1]); diff != "" {
			t.Error(diff)
		}
	})
}

// servePlain serves a request to a client that would like HTTP/2, and stops.
func servePlain(t *testing.T, user *http.Server, proto string) *graceful.Server {
	t.Helper()
	srv, url := serveEither(t, user, true, true)
	tr := &http.Transport{TLSClientConfig: traffic.ClientTLS(), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(must(http.NewRequest("GET", url, nil)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.Proto != proto {
		t.Errorf("spoke %s, want %s", resp.Proto, proto)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	return srv
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
