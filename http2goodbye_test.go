package graceful_test

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

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
