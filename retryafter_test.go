package graceful_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

// lateComer is what a client that comes during the drain gets.
type lateComer struct {
	Status     int
	RetryAfter string
	Close      bool
	NoSniff    string
	JSON       bool
}

// The two modes of the Kubernetes apiserver: with RetryAfter the listener stays
// open until what was in flight is answered, and who comes late is refused
// with an answer; without it the listener is closed first.
func TestRetryAfter(t *testing.T) {
	for _, retryAfter := range []time.Duration{0, 1500 * time.Millisecond} {
		t.Run(fmt.Sprint(retryAfter), func(t *testing.T) { testRetryAfter(t, retryAfter) })
	}
}

func testRetryAfter(t *testing.T, retryAfter time.Duration) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	listenerClosed := make(chan struct{})
	mux := http.NewServeMux()
	srv := &graceful.Server{
		Server:           &http.Server{Addr: "127.0.0.1:0", Handler: mux},
		Timeout:          30 * time.Second,
		IdleGrace:        50 * time.Millisecond,
		RetryAfter:       retryAfter,
		NoSignalHandling: true,
		LogFunc: func(format string, args ...any) {
			for _, prefix := range []string{"shutdown initiated", "listener", "stopped"} {
				if line := fmt.Sprintf(format, args...); strings.HasPrefix(line, prefix) {
					note(prefix)
					if prefix == "listener" {
						close(listenerClosed) // there is but one
					}
				}
			}
		},
	}
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		note("answered")
	})
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/readyz", srv.ReadyHandler())
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	stopped, err := srv.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + srv.Addrs()[0].String()
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path, accept string) (lateComer, error) {
		req, _ := http.NewRequest("GET", base+path, nil)
		req.Header.Set("Accept", accept)
		resp, err := fresh.Do(req)
		if err != nil {
			return lateComer{}, err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return lateComer{resp.StatusCode, resp.Header.Get("Retry-After"), resp.Close,
			resp.Header.Get("X-Content-Type-Options"), resp.Header.Get("Content-Type") == "application/json"}, nil
	}

	slow := make(chan error, 1)
	go func() {
		late, err := get("/slow", "")
		if err == nil && late.Status != http.StatusOK {
			err = fmt.Errorf("status %d", late.Status)
		}
		slow <- err
	}()
	<-entered
	srv.Stop(30 * time.Second)
	for srv.Phase() != graceful.PhaseDraining {
		time.Sleep(time.Millisecond)
	}

	if retryAfter == 0 {
		<-listenerClosed
		if nc, err := net.Dial("tcp", srv.Addrs()[0].String()); err == nil {
			nc.Close()
			t.Error("the listener is closed, and accepts")
		}
	} else {
		for path, want := range map[string]lateComer{
			"/":        {http.StatusServiceUnavailable, "2", true, "nosniff", false},
			"/json":    {http.StatusServiceUnavailable, "2", true, "nosniff", true},
			"/healthz": {http.StatusOK, "", true, "", false},
			"/readyz":  {http.StatusServiceUnavailable, "", true, "nosniff", false},
		} {
			accept := ""
			if path == "/json" {
				accept = "application/json"
			}
			late, err := get(path, accept)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if d := cmp.Diff(want, late); d != "" {
				t.Errorf("%s (-want +got):\n%s", path, d)
			}
		}
	}
	close(leave)
	if err := <-slow; err != nil {
		t.Error("/slow:", err)
	}
	<-stopped

	want := []string{"shutdown initiated", "listener", "answered", "stopped"}
	if retryAfter > 0 {
		want = []string{"shutdown initiated", "answered", "listener", "stopped"}
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if r := srv.Report(); len(r.Killed) > 0 {
		t.Error(r)
	}
}

// A hijacked connection does not hold the drain that RetryAfter asks for,
// whatever it was hijacked for: it is left alone as it is without RetryAfter. It
// used to, unless it was a WebSocket.
func TestRetryAfterLeavesHijacked(t *testing.T) {
	for name, request := range map[string]string{
		"upgrade": "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"SSE":     "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
		"CONNECT": "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"nothing": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"second":  "GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			release, hijacked, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var timeout graceful.RequestTimeout
			srv := &graceful.Server{
				Server: &http.Server{Addr: "127.0.0.1:0", Handler: timeout.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/first" {
						return
					}
					defer close(over)
					conn, _, err := http.NewResponseController(w).Hijack()
					close(hijacked)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					<-release
				}))},
				RetryAfter:       time.Second,
				NoSignalHandling: true,
			}
			stopped, err := srv.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", srv.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, request)
			<-hijacked
			srv.Stop(time.Minute)
			select {
			case <-stopped:
			case <-time.After(20 * time.Second):
				t.Errorf("still waiting: %v", srv.Stats())
			}
			if r := srv.Report(); r.Left != 1 {
				t.Error(r)
			}
			close(release)
			<-over
		})
	}
}

// Probes that never cease, and of which there is always one in progress, do not
// hold the drain either.
func TestRetryAfterProbesDoNotHold(t *testing.T) {
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan struct{}, 1)
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Duration(20+rand.IntN(20)) * time.Millisecond) // collecting takes its time
			select {
			case served <- struct{}{}:
			default:
			}
		})},
		RetryAfter:       time.Second,
		NoSignalHandling: true,
	}
	stopped, err := srv.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + srv.Addrs()[0].String() + "/metrics"
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					return
				}
				resp.Body.Close()
			}
		})
	}
	for range 20 {
		<-served
	}
	srv.Stop(time.Minute)
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Errorf("still waiting: %v", srv.Stats())
	}
}
