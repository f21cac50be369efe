package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// TestMain makes the test binary what draincheck is to itself: the contenders,
// and a server for -- that knows nothing of them.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		os.Exit(serveMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == otherCommand {
		os.Exit(otherMain(os.Args[2:]))
	}
	if mode := os.Getenv("DRAINCHECK_TEST_SERVER"); mode != "" {
		os.Exit(testServer(mode))
	}
	os.Unsetenv("GITHUB_ACTIONS") // where the output has more
	os.Exit(m.Run())
}

// testServer is somebody's server: it listens on PORT, with TLS perhaps, and
// exits at once on a signal, or never. One leaves a child behind in a session of
// its own, one answers twenty requests per second.
func testServer(mode string) int {
	ln, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		return 1
	}
	switch mode {
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "litter":
		child := exec.Command("setsid", "sleep", "60")
		if err := child.Start(); err != nil {
			return 1
		}
	case "slow":
		one := make(chan struct{}, 1)
		http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case one <- struct{}{}:
				time.Sleep(50 * time.Millisecond)
				<-one
			case <-r.Context().Done():
			}
		}))
	}
	if mode == "tls" {
		ln = tls.NewListener(ln, traffic.ServerTLS())
	}
	events := &traffic.Handler{}
	http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch {
		case r.URL.Path == "/big":
			w.Write(make([]byte, 2<<20))
		case r.URL.Path == "/events":
			events.ServeHTTP(w, r)
		case r.URL.Path == "/only-get" && r.Method != "GET":
			http.Error(w, "no", http.StatusMethodNotAllowed)
		default:
			io.WriteString(w, "hello")
		}
	}))
	return 0
}

// draincheck runs the command and returns its exit status and what it wrote.
func draincheck(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = run(ctx, args, &out, &err)
	return status, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string // in what it says
	}{
		{"-rounds 0", "-rounds 0"},
		{"-rounds x", "rounds"},
		{"-clients 1000000", "-clients 1000000"},
		{"-rate 1e9", "-rate"},
		{"-grace 0s", "-grace"},
		{"-signal FOO", `"FOO"`},
		{"-traffic keep-alive,foo", `"foo"`},
		{"-via varnish", `"varnish"`},
		{"-path x", "slash"},
		{"-ws-path x", "-ws-path"},
		{"-max-lost -1", "-max-lost"},
		{"-max-lost-percent 101", "-max-lost-percent"},
		{"-compare /no/such/file", "-compare"},
		{"-url ftp://x -pid 1", `"ftp://x"`},
		{"-url http://127.0.0.1:1", "-pid or -stop-command"},
		{"-url http://127.0.0.1:1 -pid 1 -replace", "-replace"},
		{"-url http://127.0.0.1:1 -pid 1 -- true", "exclude"},
		{"-pid 1", "-url"},
		{"-nosuchflag", "nosuchflag"},
		{"-- /no/such/program", "/no/such/program"},
	} {
		status, out, err := draincheck(t.Context(), strings.Fields(tc.args)...)
		if status != exitUsage || !strings.Contains(err, tc.want) || out != "" {
			t.Errorf("%s: status %d, %q; want %d and %q in it", tc.args, status, err, exitUsage, tc.want)
		}
	}
	if status, _, err := draincheck(t.Context(), "-h"); status != 0 || !strings.Contains(err, "-replace") {
		t.Errorf("-h: status %d, %q", status, err)
	}
}

// The demonstration, small: the table, the JSON, the picture and the page say
// the same, and this library has lost nothing.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	status, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "4", "-warm", "100ms",
		"-json", file("r.json"), "-svg", file("r.svg"), "-html", file("r.html"))
	var rep Report
	b, err := os.ReadFile(file("r.json"))
	if err == nil {
		err = json.Unmarshal(b, &rep)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Subjects) != 2 || len(rep.Subjects[1].Stops) != 1 {
		t.Fatalf("status %d: %s\n%s", status, errs, out)
	}
	ours, paused := rep.Subjects[1].lost(), 0
	for _, l := range rep.Subjects[1].Lanes {
		paused += l.Lost["paused"] // the machine is too busy for its clients
	}
	if ours > paused || status != 0 != (ours > 0) {
		t.Errorf("status %d: %s\n%s", status, errs, out)
	}
	for _, s := range rep.Subjects {
		for _, l := range s.Lanes {
			inBins := 0
			for _, bin := range l.Timeline {
				inBins += bin.Answered
			}
			if l.Skipped != "" || l.Answered == 0 || l.Sent != l.Answered+l.lost() || inBins > l.Answered {
				t.Errorf("%s, %s: %+v", s.Name, l.Name, l)
			}
		}
		if st := s.Stops[0]; st.Signal != "SIGTERM" || st.Exit <= 0 || st.Closed > st.Exit || st.Status != "0" {
			t.Errorf("%s: %+v", s.Name, st)
		}
	}
	for name, want := range map[string]string{"r.svg": "this library", "r.html": "<svg"} {
		b, err := os.ReadFile(file(name))
		if err != nil || !strings.Contains(string(b), want) || len(b) > 300_000 {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
		if name == "r.svg" {
			if err := wellFormed(b); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if verdict := rep.Verdict.String(); !strings.HasPrefix(out, verdict) || !strings.HasSuffix(out, verdict+"\n") {
		t.Errorf("the table has not the verdict %q at both ends:\n%s", verdict, out)
	}
}

func wellFormed(b []byte) error {
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Somebody's server that exits at once is seen to lose requests, and what it
// does not speak is skipped.
func TestCommand(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "hasty")
	status, out, errs := draincheck(t.Context(), "-rounds", "2", "-clients", "4", "-warm", "50ms", "--", os.Args[0])
	if status != exitLost || !strings.Contains(out, "not served") || !strings.Contains(out, "in 2 of 2 stops the signal itself ended the server") {
		t.Errorf("status %d: %s\n%s", status, errs, out)
	}
}

// A kind of traffic is not counted under its name where the server does not do
// it, and the reason names the flag that mends that.
func TestKindsOfOthers(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "hasty")
	run := func(args ...string) string {
		args = append([]string{"-rounds", "1", "-clients", "2", "-warm", "0s", "-traffic", "keep-alive,upload,download,websocket,sse,grpc"}, args...)
		_, out, errs := draincheck(t.Context(), append(args, "--", os.Args[0])...)
		return out + errs
	}
	out := run("-path", "/only-get")
	for _, want := range []string{
		"skipped: upload: POST /only-get answers 405 (-upload-path)",
		"skipped: download: the response to GET /only-get comes within ", "(-download-path names one",
		"skipped: websocket: no WebSocket at /only-get (-ws-path)",
		"skipped: sse: no event stream at /only-get (-sse-path)",
		"skipped: grpc: no gRPC",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out = run("-download-path", "/big", "-sse-path", "/events")
	for _, want := range []string{"\n upload ", "\n download ", "\n sse "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// A server that speaks nothing but TLS is spoken to so.
func TestOnlyTLS(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "tls")
	_, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "2", "-traffic", "keep-alive,tls,h2c", "--", os.Args[0])
	if !strings.Contains(out, "\n keep-alive") || !strings.Contains(out, "\n tls") || !strings.Contains(out, "skipped: h2c") {
		t.Errorf("%s\n%s", errs, out)
	}
}

// A server that does not heed the signal is killed, and that is said.
func TestKilled(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "stubborn")
	_, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "2", "-grace", "200ms", "-traffic", "keep-alive", "--", os.Args[0])
	for _, want := range []string{"did not exit within 200ms of SIGTERM in 1 of 1 stop: killed", "killed after -grace in 1 of 1 stop"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s\n%s", want, errs, out)
		}
	}
}

// What a server leaves behind is named and killed, even if it has left the
// process group.
func TestLeftBehind(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil || !canWatch {
		t.Skip("needs Linux and setsid")
	}
	t.Setenv("DRAINCHECK_TEST_SERVER", "litter")
	_, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "2", "-traffic", "keep-alive", "--", os.Args[0])
	if !strings.Contains(out, "processes named sleep outlived the server") {
		t.Errorf("%s\n%s", errs, out)
	}
	if left := marked("DRAINCHECK_TEST_SERVER=litter"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A server that does not carry the load is checked with less of it.
func TestLowered(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "slow")
	defer func(d time.Duration) { steadyWithin = d }(steadyWithin)
	steadyWithin = time.Second
	_, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "40", "-rate", "400", "-warm", "0s", "-traffic", "keep-alive", "--", os.Args[0])
	if !strings.Contains(out, "it goes on at -clients 10 and -rate 100") || !strings.Contains(out, "in 1 stop") {
		t.Errorf("%s\n%s", errs, out)
	}
}

// A server of somebody else's, stopped by its process number or by a command.
func TestExternal(t *testing.T) {
	t.Setenv("DRAINCHECK_TEST_SERVER", "hasty")
	for _, by := range []string{"-pid", "-stop-command"} {
		ports, err := freePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		p, err := startProcess([]string{os.Args[0]}, ports[0], 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.ready(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		pid := strconv.Itoa(p.cmd.Process.Pid)
		how := pid
		if by == "-stop-command" {
			how = "kill " + pid
		}
		_, out, errs := draincheck(t.Context(), "-url", "http://"+p.addr()+"/", by, how, "-rounds", "1", "-clients", "2", "-traffic", "keep-alive,think-100ms")
		if !strings.Contains(out, "requests in 1 stop") || !strings.Contains(out, "http://") {
			t.Errorf("%s: %s\n%s", by, errs, out)
		}
		p.kill()
	}
}

func TestNotServing(t *testing.T) {
	if status, _, err := draincheck(t.Context(), "--", "false"); status != exitLost || !strings.Contains(err, "exited (status 1)") {
		t.Errorf("status %d: %s", status, err)
	}
	if status, _, err := draincheck(t.Context(), "-url", "http://127.0.0.1:1/", "-pid", "1"); status != exitUsage || !strings.Contains(err, "nobody serves") {
		t.Errorf("status %d: %s", status, err)
	}
}

// An interrupt, at whatever moment, leaves no process behind.
func TestInterrupt(t *testing.T) {
	for _, after := range []time.Duration{0, 100 * time.Millisecond, 700 * time.Millisecond, 1200 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(after, cancel)
		status, _, err := draincheck(ctx, "-clients", "2")
		if status != exitLost || !strings.Contains(err, "interrupted") {
			t.Errorf("after %v: status %d, %q", after, status, err)
		}
		if left := children(); left != "" {
			t.Errorf("after %v: left behind: %s", after, left)
		}
	}
}

// The total time is bounded.
func TestTimeout(t *testing.T) {
	status, _, err := draincheck(t.Context(), "-clients", "2", "-timeout", "300ms")
	if status != exitLost || !strings.Contains(err, "-timeout") {
		t.Errorf("status %d, %q", status, err)
	}
}

// A balancer that is not there is wrong usage, and it is said how to get it.
func TestNoBalancer(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(dirs []string) { balancerDirs = dirs }(balancerDirs)
	balancerDirs = nil
	for _, name := range []string{"haproxy", "nginx"} {
		status, _, err := draincheck(t.Context(), "-via", name)
		if status != exitUsage || !strings.Contains(err, "apt-get install "+name) {
			t.Errorf("status %d, %q", status, err)
		}
	}
}

// The ports are not among those that the kernel gives to connections: one of
// those was taken, while its server was down between two stops.
func TestFreePorts(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if p >= firstEphemeral() || seen[p] {
			t.Errorf("port %d of %v", p, ports)
		}
		seen[p] = true
	}
}
