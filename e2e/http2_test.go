// Package e2e tests servers with programs that no one here wrote.
package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// program returns the path of an external program. Where it is missing the
// test is skipped, but not in CI.
func program(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing (Debian: %s)", name, debian)
		}
		t.Skipf("%s is missing (Debian: %s)", name, debian)
	}
	return path
}

// handler answers after some ms, with few bytes or many.
func handler(served *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := served.Add(1)
		time.Sleep(time.Duration(n%4) * time.Millisecond)
		w.Write(make([]byte, []int{1, 200, 20000}[n%3]))
	})
}

func configure(addr string, h http.Handler) *http.Server {
	hs := &http.Server{Addr: addr, Handler: h, Protocols: new(http.Protocols)}
	hs.Protocols.SetHTTP1(true)
	hs.Protocols.SetUnencryptedHTTP2(true)
	return hs
}

func start(t *testing.T, addr string, h http.Handler) *graceful.Server {
	t.Helper()
	srv := &graceful.Server{
		Server: configure(addr, h), Timeout: 20 * time.Second, IdleGrace: 50 * time.Millisecond,
		ReusePort: true, NoSignalHandling: true,
	}
	if _, err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return srv
}

var h2loadResult = regexp.MustCompile(`requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)

// h2load runs it and returns how many requests were started, and how many of
// them had an answer.
func h2load(t *testing.T, args ...string) (started, succeeded int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, "h2load", "nghttp2-client"), args...).CombinedOutput()
	m := h2loadResult.FindSubmatch(out)
	if m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	number := func(i int) int { n, _ := strconv.Atoi(string(m[i])); return n }
	t.Logf("%s", m[0])
	return number(2), number(4)
}

// TestH2load: h2load opens its connections once and does not come back. When
// the server is stopped in the middle every stream that it has opened must be
// answered: as many as the server has seen.
func TestH2load(t *testing.T) {
	program(t, "h2load", "nghttp2-client")
	for i := range 5 {
		var served atomic.Int64
		srv := start(t, "127.0.0.1:0", handler(&served))
		addr := srv.Addrs()[0].String()
		stopped := make(chan error, 1)
		go func() {
			for served.Load() < 500 {
				time.Sleep(time.Millisecond)
			}
			stopped <- srv.Shutdown(context.Background())
		}()
		_, succeeded := h2load(t, "-n", "1000000", "-c", "4", "-m", "8", "http://"+addr+"/")
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if n := int(served.Load()); succeeded != n {
			t.Errorf("stop %d: %d requests reached a handler, %d were answered", i, n, succeeded)
		}
		if r := srv.Report(); r.HTTP2 != graceful.HTTP2TwoSteps || r.Start.HTTP2 != 4 {
			t.Errorf("%q, %v", r.HTTP2, r)
		}
	}
}

// TestCurl stops a server that curl has eight transfers with, up and down. (More
// than what is in progress cannot be asked of curl 7.88: after any GOAWAY, also
// net/http's, it goes on choosing the connection that takes no more, and fails.)
func TestCurl(t *testing.T) {
	curl := program(t, "curl", "curl")
	const transfers = 8
	for range 5 {
		var began atomic.Int64
		srv := start(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			began.Add(1)
			for range 20 {
				w.Write(make([]byte, 10000))
				rc.Flush()
				time.Sleep(5 * time.Millisecond)
			}
			n, _ := io.Copy(w, r.Body)
			fmt.Fprint(w, n)
		}))
		stopped := make(chan error, 1)
		go func() {
			for began.Load() < transfers {
				time.Sleep(time.Millisecond)
			}
			stopped <- srv.Shutdown(context.Background())
		}()
		upload := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(upload, make([]byte, 60000), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, curl, "-sS", "--http2-prior-knowledge",
			"--parallel", "--parallel-immediate", "--parallel-max", fmt.Sprint(transfers),
			"-o", "/dev/null", "--data-binary", "@"+upload, "-w", "%{http_version} %{http_code} %{size_download}\n",
			fmt.Sprintf("http://%s/[1-%d]", srv.Addrs()[0], transfers)).CombinedOutput()
		if err != nil {
			t.Errorf("curl: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if got := strings.Count(string(out), "2 200 260005\n"); got != transfers {
			t.Errorf("%d of %d transfers are complete:\n%s", got, transfers, out)
		}
		if r := srv.Report(); r.Start.Streams == 0 || len(r.Killed) > 0 {
			t.Errorf("not stopped in the middle: %v", r)
		}
	}
}
