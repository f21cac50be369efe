package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

var (
	restarts = flag.Int("restarts", 20, "how often servers are stopped and restarted")
	clients  = flag.Int("clients", 24, "how many clients count meanwhile")
)

// work is what an INCR takes before it is answered.
const work = time.Millisecond

// programs are where to get what the tests drive the server with.
var programs = map[string]string{
	"redis-cli":       "redis-tools",
	"redis-benchmark": "redis-tools",
	"haproxy":         "haproxy",
}

// need skips the test where a program is missing; with CI set it fails.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		msg := fmt.Sprintf("%s is missing: apt-get install %s", name, programs[name])
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
}

// An instance is one of the processes of a service, stopped and restarted on
// one address. All instances share the data, so that what one has carried out
// is seen by the next.
type instance struct {
	*server
	t    *testing.T
	bare bool
	addr string

	l      *graceful.Listener // nil if bare
	below  net.Listener
	served chan error
}

func startInstance(t *testing.T, s *server, bare bool) *instance {
	t.Helper()
	i := &instance{server: s, t: t, bare: bare, addr: "127.0.0.1:0"}
	i.start()
	return i
}

func (i *instance) start() {
	var err error
	for range 500 { // the port may not be free at once
		if i.bare {
			i.below, err = net.Listen("tcp", i.addr)
		} else {
			i.below, err = graceful.Listen("tcp", i.addr)
		}
		if err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		i.t.Fatal(err)
	}
	i.addr = i.below.Addr().String()
	l := i.below
	if !i.bare {
		i.l = graceful.NewListener(i.below)
		i.l.Timeout = 20 * time.Second
		i.l.IdleGrace = 50 * time.Millisecond
		l = i.l
	}
	i.served = make(chan error, 1)
	go func() { i.served <- i.serve(l) }()
}

func (i *instance) stop() {
	if i.bare {
		i.below.Close() // redcon's Accept fails, and it closes everything
		<-i.served
		return
	}
	if err := i.l.Shutdown(context.Background()); err != nil {
		i.t.Errorf("%v\n%v", err, i.l.Report())
	}
	if err := <-i.served; err != nil {
		i.t.Error(err)
	}
}

// judge says what came out. The bare accept loop is there to show what clients
// have to bear today, and that these here can see it.
func judge(t *testing.T, sum *tally, bare bool) {
	t.Helper()
	kind := "graceful.Listener"
	if bare {
		kind = "bare accept loop"
	}
	t.Logf("%s, %d restarts: %v", kind, *restarts, sum)
	switch {
	case bare && sum.doubled == 0:
		t.Error("the bare accept loop lost nothing: can these clients tell?")
	case !bare && sum.wrong() > 0:
		t.Error(sum.incidents)
	}
	if sum.answered == 0 {
		t.Error("nothing was answered")
	}
}

// One server, stopped and restarted under its clients.
func TestDirect(t *testing.T) {
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprintf("bare=%v", bare), func(t *testing.T) {
			s := newServer(work)
			i := startInstance(t, s, bare)
			sum := increment(t, s, i.addr, *clients, func() {
				for range *restarts {
					time.Sleep(50 * time.Millisecond) // of load
					i.stop()
					i.start()
				}
			})
			i.stop()
			judge(t, sum, bare)
		})
	}
}

// Two servers behind HAProxy, one after the other stopped and restarted. On
// top of the clients that count there are redis-cli, which makes a connection
// for every command, and redis-benchmark, which is there as load: it gives up
// at the end of any connection.
func TestHAProxy(t *testing.T) {
	need(t, "haproxy", "redis-cli", "redis-benchmark")
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprintf("bare=%v", bare), func(t *testing.T) {
			s := newServer(work)
			two := []*instance{startInstance(t, s, bare), startInstance(t, s, bare)}
			front := startHAProxy(t, two[0].addr, two[1].addr)
			stop := make(chan struct{})
			var others sync.WaitGroup
			others.Go(func() { benchmark(t, front, stop) })
			var cli int
			var wrong []string
			others.Go(func() { cli, wrong = redisCLI(t, front, stop) })
			sum := increment(t, s, front, *clients, func() {
				for n := range *restarts {
					i := two[n%2]
					i.stop()
					i.start()
					// HAProxy has to find it before the other one goes:
					// its checks are PINGs.
					for seen := i.pings.Load(); i.pings.Load() < seen+6; {
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
			close(stop)
			others.Wait()
			for _, i := range two {
				i.stop()
			}
			judge(t, sum, bare)
			t.Logf("redis-cli: %d commands, wrong: %d %.200q", cli, len(wrong), wrong)
			if !bare && len(wrong) > 0 || cli == 0 {
				t.Errorf("redis-cli: %q", wrong)
			}
		})
	}
}

// benchmark runs redis-benchmark until stop is closed.
func benchmark(t *testing.T, addr string, stop <-chan struct{}) {
	host, port, _ := net.SplitHostPort(addr)
	for n := 0; ; n++ {
		args := []string{"-h", host, "-p", port, "-n", "1000000", "-c", "4", "-t", "incr,get", "-q"}
		if n%2 == 0 {
			args = append(args, "-P", "16")
		}
		cmd := exec.Command("redis-benchmark", args...)
		if err := cmd.Start(); err != nil {
			t.Error(err)
			return
		}
		gaveUp := make(chan struct{})
		go func() {
			cmd.Wait()
			close(gaveUp)
		}()
		select {
		case <-stop:
			cmd.Process.Kill()
			<-gaveUp
			return
		case <-gaveUp:
		}
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// redisCLI runs redis-cli, once for every INCR, until stop is closed. It
// returns how often it did, and what it said that is not the next number.
func redisCLI(t *testing.T, addr string, stop <-chan struct{}) (n int, wrong []string) {
	host, port, _ := net.SplitHostPort(addr)
	last := int64(0)
	for {
		select {
		case <-stop:
			return n, wrong
		case <-time.After(5 * time.Millisecond):
		}
		out, err := exec.Command("redis-cli", "-h", host, "-p", port, "INCR", "cli").CombinedOutput()
		got, perr := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil || perr != nil || got != last+1 {
			wrong = append(wrong, fmt.Sprintf("%s (%v) after %d", out, err, last))
		}
		if perr == nil {
			last = got
		}
		n++
	}
}

// startHAProxy starts HAProxy in front of the servers and returns its address.
func startHAProxy(t *testing.T, servers ...string) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := free.Addr().String()
	free.Close()
	var config strings.Builder
	fmt.Fprintf(&config, `global
	maxconn 4000
	nbthread 1
defaults
	mode tcp
	timeout connect 2s
	timeout client 60s
	timeout server 60s
	retries 3
	option redispatch 1
frontend fe
	bind %s
	default_backend be
backend be
	balance leastconn
	option tcp-check
	tcp-check send PING\r\n
	tcp-check expect string +PONG
	default-server inter 100ms fall 2 rise 2
`, front)
	for i, addr := range servers {
		fmt.Fprintf(&config, "\tserver s%d %s check\n", i, addr)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("haproxy", "-db", "-q", "-f", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 500 {
		if ping(front) == nil {
			return front
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("HAProxy does not answer")
	return ""
}

func ping(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprint(c, "PING\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "+PONG\r\n" {
		err = fmt.Errorf("answered %q", line)
	}
	return err
}

const childEnv = "GRACEFUL_EXAMPLE_REDIS"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The program itself, driven with Redis' own tools, and stopped by a signal
// while they are at it.
func TestProgram(t *testing.T) {
	need(t, "redis-cli", "redis-benchmark")
	cmd := exec.Command(os.Args[0], "-addr", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(stderr)
	if !lines.Scan() {
		t.Fatal("the program said nothing")
	}
	addr := strings.TrimPrefix(lines.Text(), "listening on ")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}
	for _, step := range []struct{ args, want string }{
		{"PING", "PONG"},
		{"SET city Bergen", "OK"},
		{"GET city", "Bergen"},
		{"INCR visits", "1"},
		{"INCR visits", "2"},
		{"INCR city", "ERR value is not an integer or out of range"},
		{"GET nothing", ""},
		{"DEL city", "1"},
		{"ECHO hello", "hello"},
		{"SET one", "ERR wrong number of arguments for 'set' command"},
		{"FLY", "ERR unknown command 'FLY'"},
	} {
		args := append([]string{"-h", host, "-p", port}, strings.Fields(step.args)...)
		out, err := exec.Command("redis-cli", args...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != step.want {
			t.Errorf("%s: %q, %v, want %q", step.args, got, err, step.want)
		}
	}
	out, err := exec.Command("redis-benchmark", "-h", host, "-p", port, "-n", "20000", "-c", "8", "-P", "16", "-t", "ping,set,get,incr", "-q").CombinedOutput()
	if err != nil || strings.Contains(string(out), "rror") && !strings.Contains(string(out), "CONFIG") {
		t.Errorf("redis-benchmark: %v, %s", err, out)
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() { benchmark(t, addr, stop) })
	time.Sleep(200 * time.Millisecond) // of load
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var log []string
	for lines.Scan() {
		log = append(log, lines.Text())
	}
	close(stop)
	load.Wait()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if all := strings.Join(log, "\n"); !strings.Contains(all, "0 killed") {
		t.Error(all)
	}
}
