package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// haproxyDefaults keeps connections with the servers, and shares them among its
// clients. How often it tries, is to come behind it.
const haproxyDefaults = `global
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    http-reuse always
    no option redispatch
`

// haproxyHTTP2 speaks HTTP/2 without TLS to its servers, and checks them so
// too. It tries nothing twice, and says at its second address whether it has found both servers in order. A check that
// takes longer than inter has failed, whatever "timeout check" says; on a busy
// machine some do, so it takes three in a row.
const haproxyHTTP2 = haproxyDefaults + `    retries 0
frontend in
    bind 127.0.0.1:%d
    default_backend servers
frontend up
    bind 127.0.0.1:%d
    http-request return status 200 if { nbsrv(servers) ge 2 }
    http-request return status 503
backend servers
    balance roundrobin
    option httpchk GET /ready
    default-server inter 300ms fall 3 rise 1
    server A 127.0.0.1:%d proto h2 check check-proto h2
    server B 127.0.0.1:%d proto h2 check check-proto h2
`

// TestHAProxyHTTP2 rolls two servers, one after the other, behind a HAProxy that
// speaks HTTP/2 to them. Its clients speak HTTP/1 and are there all the time.
//
// With ShutdownDelay it has the time to notice, and has gone elsewhere when the
// GOAWAYs come. With a successor on the same port it notices nothing, and they
// come between its streams.
//
// There is no such test of nginx: the one of Debian 12, 1.22, speaks HTTP/1 to
// its upstreams, for gRPC excepted; with 1.29.4 nginx has learnt HTTP/2.
func TestHAProxyHTTP2(t *testing.T) {
	need(t, "haproxy")
	t.Run("ShutdownDelay", func(t *testing.T) {
		conns, _ := rollHTTP2(t, 1500*time.Millisecond, false)
		if conns == 0 {
			t.Error("no HTTP/2 connection at any stop: nothing was tested")
		}
	})
	t.Run("successor", func(t *testing.T) {
		_, streams := rollHTTP2(t, 0, true)
		if streams == 0 {
			t.Error("no HTTP/2 stream at any stop: nothing was tested")
		}
	})
}

// rollHTTP2 fails t if anything is lost. It returns how many connections and
// streams HAProxy had with the servers when their drains began, all together.
func rollHTTP2(t *testing.T, delay time.Duration, successor bool) (conns, streams int) {
	ports := freePorts(t, 4)
	launch := func(i int) *graceful.Server { return startBehind(t, ports[i], delay, successor) }
	servers := []*graceful.Server{launch(0), launch(1)}
	defer func() {
		for _, srv := range servers {
			srv.Close()
		}
	}()
	startHAProxy(t, fmt.Sprintf(haproxyHTTP2, ports[2], ports[3], ports[0], ports[1]))
	up := fmt.Sprintf("http://127.0.0.1:%d/", ports[3])
	waitUp(t, up)

	var runs []*traffic.Run
	for _, kind := range []traffic.Kind{traffic.KeepAlive, traffic.Think10, traffic.Upload, traffic.Stream} {
		run, err := traffic.Load{
			Addr: fmt.Sprint("127.0.0.1:", ports[2]), Kind: kind, Clients: 6, Rate: 200, Work: time.Millisecond,
		}.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
	}
	n := rolls
	if testing.Short() {
		n /= 10
	}
	for i := range n {
		for _, run := range runs {
			if err := run.WaitMore(20); err != nil {
				t.Fatal(err)
			}
		}
		old := servers[i%2]
		if successor {
			servers[i%2] = launch(i % 2)
		}
		if err := old.Shutdown(t.Context()); err != nil {
			t.Errorf("stop %d: %v", i, err)
		}
		r := old.Report()
		// With a delay HAProxy has often closed all its connections by then.
		if r.HTTP2 != graceful.HTTP2TwoSteps && r.Start.HTTP2 > 0 || len(r.Killed) > 0 {
			t.Errorf("stop %d: %q, %v", i, r.HTTP2, r)
		}
		conns += r.Start.HTTP2
		streams += r.Start.Streams
		if !successor {
			servers[i%2] = launch(i % 2)
		}
		waitUp(t, up)
	}
	for _, run := range runs {
		res := run.Stop()
		if res.LostCount() > 0 || res.RefusedCount() > 0 || res.Doubled > 0 {
			t.Errorf("%v %v", res, res.Errors)
		}
		t.Log(res)
	}
	t.Logf("%d stops, at which there were %d HTTP/2 connections with %d open streams", n, conns, streams)
	return conns, streams
}

// startBehind starts a server that is to stand behind HAProxy, and to be spoken
// to in HTTP/2 only.
func startBehind(t *testing.T, port int, delay time.Duration, reuse bool) *graceful.Server {
	t.Helper()
	mux := http.NewServeMux()
	h := &traffic.Handler{Draining: graceful.Draining}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("HAProxy speaks %s", r.Proto)
		}
		h.ServeHTTP(w, r)
	})
	srv := &graceful.Server{
		Server:        configure(fmt.Sprint("127.0.0.1:", port), mux),
		Timeout:       20 * time.Second,
		IdleGrace:     100 * time.Millisecond,
		ShutdownDelay: delay,
		ReusePort:     reuse, NoSignalHandling: true,
	}
	mux.Handle("/ready", srv.ReadyHandler())
	if _, err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return srv
}

// startHAProxy runs it until the test is over.
func startHAProxy(t testing.TB, conf string) {
	t.Helper()
	path, err := exec.LookPath("haproxy")
	if err != nil {
		path = "/usr/sbin/haproxy"
	}
	file := filepath.Join(t.TempDir(), "haproxy.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command(path, "-f", file, "-db")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("haproxy: %s", &out)
		}
	})
}

// waitUp waits until url answers 200.
func waitUp(t testing.TB, url string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("HAProxy has not found its servers in order: %v", err)
		}
	}
}

// freePorts returns n ports that are not listened on.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
