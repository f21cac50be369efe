package graceful_test

import (
	"bytes"
	"context"
	"crypto/tls"
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
