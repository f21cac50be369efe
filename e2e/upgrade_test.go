//go:build unix

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// upgrades is how many upgrades each part of TestUpgrade makes, and a third of them
// with a successor that crashes.
var upgrades = flag.Int("upgrades", 9, "upgrades in each part of TestUpgrade")

// TestUpgrade: a Server and a Group that are upgraded by SIGHUP under load over TCP,
// TLS, HTTP/2 and a unix socket lose and refuse nothing, leak no descriptor, and serve
// on when a successor fails. The last stop, which has no successor, loses nothing
// either.
func TestUpgrade(t *testing.T) {
	for _, as := range []string{"server", "group"} {
		t.Run(as, func(t *testing.T) { testUpgrade(t, as, *upgrades) })
	}
}

func testUpgrade(t *testing.T, as string, n int) {
	u := startUpgradable(t, as, nil)
	type lane struct {
		kind traffic.Kind
		tls  bool
		run  *traffic.Run
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	unix := startUnixLoad(ctx, u.unixPath)
	var lanes []lane
	for _, k := range []traffic.Kind{traffic.KeepAlive, traffic.NewConn, traffic.HalfNew50, traffic.Upload, traffic.Stream, traffic.HTTP2Once, traffic.Idle} {
		lanes = append(lanes, lane{kind: k}, lane{kind: k, tls: true})
	}
	for i := range lanes {
		l := &lanes[i]
		load := traffic.Load{
			Addr:    u.addr,
			Kind:    l.kind,
			Clients: 4,
			Conns:   2,
			Rate:    40,
			Redial:  20 * time.Millisecond,
			Window:  500 * time.Millisecond, // Server.IdleGrace's default
		}
		if l.tls {
			// Each process has a certificate of its own.
			load.Addr, load.TLS = u.tlsAddr, &tls.Config{InsecureSkipVerify: true}
		}
		var err error
		if l.run, err = load.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	more := func() {
		for _, l := range lanes {
			if l.kind.Name != traffic.Idle.Name {
				if err := l.run.WaitMore(4); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	more()
	u.upgrade(false)
	first := u.descriptors
	for i := 1; i < n; i++ {
		more()
		u.upgrade(i%3 == 2)
	}
	more()
	if u.descriptors != first {
		t.Errorf("the first successor began with %d descriptors, the last with %d", first, u.descriptors)
	}
	for _, l := range lanes {
		if _, _, refused, _ := l.run.Progress(); refused > 0 {
			t.Errorf("%s, TLS %v: %d refused", l.kind, l.tls, refused)
		}
	}
	unix.last.Store(true)
	u.stop() // without a successor, and under load
	answered := unix.stop(t)
	for _, l := range lanes {
		res := l.run.Stop()
		answered += res.Answered
		if res.Answered == 0 {
			t.Errorf("%s: nothing was answered", l.kind)
		}
		for cause, n := range res.Lost {
			if cause == "paused" {
				t.Logf("%s: %d excused: %s", l.kind, n, cause)
				continue
			}
			t.Errorf("%s, TLS %v: %d lost: %s: %s", l.kind, l.tls, n, cause, res.Errors[cause])
		}
	}
	t.Logf("%d upgrades, a third of them failing, and a stop: %d answered", n, answered)
}

// An upgradable is a chain of processes. Successors inherit its standard output,
// on which each of them says what happens to it.
type upgradable struct {
	t             *testing.T
	addr, tlsAddr string
	unixPath      string
	crash         string // a file: while it exists, new processes crash
	stdout        *os.File
	lines         *bufio.Scanner // of stdout
	pid           int            // of the process that serves
	descriptors   int            // that it had just before
}

// startUpgradable starts the first process. prepare, if not nil, changes the command.
func startUpgradable(t *testing.T, as string, prepare func(*exec.Cmd)) *upgradable {
	dir, err := os.MkdirTemp("", "upgrade") // a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u := &upgradable{t: t, crash: filepath.Join(dir, "crash"), unixPath: filepath.Join(dir, "socket")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd := exec.Command(os.Args[0], upgradableArg, "-as", as, "-crash", u.crash, "-unix", u.unixPath)
	cmd.Stdout, cmd.Stderr = w, w
	if prepare != nil {
		prepare(cmd)
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	u.pid = cmd.Process.Pid
	t.Cleanup(func() { syscall.Kill(u.pid, syscall.SIGKILL) })
	u.stdout, u.lines = r, bufio.NewScanner(r)
	fmt.Sscan(u.next("serving"), &u.pid, &u.descriptors, &u.addr, &u.tlsAddr)
	return u
}

// next returns what a process said after word.
func (u *upgradable) next(word string) string {
	u.t.Helper()
	u.stdout.SetReadDeadline(time.Now().Add(2 * time.Minute))
	for u.lines.Scan() {
		if rest, ok := strings.CutPrefix(u.lines.Text(), word+" "); ok {
			return rest
		}
		u.t.Log(u.lines.Text())
	}
	u.t.Fatalf("the processes have ended without %q (%v)", word, u.lines.Err())
	return ""
}

func (u *upgradable) upgrade(crash bool) {
	u.t.Helper()
	if crash {
		if err := os.WriteFile(u.crash, nil, 0o600); err != nil {
			u.t.Fatal(err)
		}
		defer os.Remove(u.crash)
	}
	old := u.pid
	if err := syscall.Kill(old, syscall.SIGHUP); err != nil {
		u.t.Fatal(err)
	}
	if crash {
		if err := u.next("failed"); !strings.Contains(err, "exit status 3") {
			u.t.Errorf("a crash is reported as %q", err)
		}
		return
	}
	fmt.Sscan(u.next("serving"), &u.pid, &u.descriptors, new(string), new(string))
	if got := u.next("stopped"); got != fmt.Sprint(old) || u.pid == old {
		u.t.Errorf("%s has stopped, %d serves, expected %d to have stopped", got, u.pid, old)
	}
}

func (u *upgradable) stop() {
	u.t.Helper()
	syscall.Kill(u.pid, syscall.SIGTERM)
	u.next("stopped")
	if _, err := os.Lstat(u.unixPath); err == nil {
		u.t.Error("the last process has left the file of its unix socket")
	}
}

// A unixLoad posts requests over a unix socket, one after the other on each of a few
// connections.
type unixLoad struct {
	end  atomic.Bool
	last atomic.Bool // the server is about to stop: connections may be refused
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	answered int
	failed   map[string]int // by error
}

func startUnixLoad(ctx context.Context, path string) *unixLoad {
	u := &unixLoad{failed: make(map[string]int)}
	for range 4 {
		u.wg.Go(func() {
			tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}}
			defer tr.CloseIdleConnections()
			client := http.Client{Transport: tr}
			for !u.end.Load() && ctx.Err() == nil {
				resp, err := client.Post("http://unix/", "text/plain", strings.NewReader("hello"))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				var op *net.OpError
				if errors.As(err, &op) && op.Op == "dial" && u.last.Load() {
					return
				}
				u.mu.Lock()
				if u.answered++; err != nil {
					u.answered--
					u.failed[err.Error()]++
				}
				u.mu.Unlock()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return u
}

func (u *unixLoad) stop(t *testing.T) (answered int) {
	t.Helper()
	u.end.Store(true)
	u.wg.Wait()
	if u.answered == 0 || len(u.failed) > 0 {
		t.Errorf("unix socket: %d answered, failed: %v", u.answered, u.failed)
	}
	return u.answered
}

// upgradableArg is the first argument that makes the test binary such a process.
const upgradableArg = "upgradable"

func init() { modes[upgradableArg] = runUpgradable }

func runUpgradable(args []string) int {
	time.AfterFunc(6*time.Minute, func() { os.Exit(1) }) // none outlasts the tests for long
	fs := flag.NewFlagSet(upgradableArg, flag.ExitOnError)
	as := fs.String("as", "server", "")
	crash := fs.String("crash", "", "")
	addr := fs.String("addr", "127.0.0.1:0", "")
	tlsAddr := fs.String("tls-addr", "127.0.0.1:0", "")
	unixPath := fs.String("unix", "", "")
	fs.Parse(args)
	if _, err := os.Stat(*crash); err == nil {
		os.Exit(3)
	}
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	var sockets []net.Listener
	for _, a := range [][2]string{{"tcp", *addr}, {"tcp", *tlsAddr}, {"unix", *unixPath}} {
		l, err := graceful.Listen(a[0], a[1])
		if err != nil {
			return fail(err)
		}
		sockets = append(sockets, l)
	}
	here, hereTLS := sockets[0].Addr().String(), sockets[1].Addr().String()
	process := &graceful.Process{
		UpgradeSignals: []os.Signal{syscall.SIGHUP},
		Args:           []string{upgradableArg, "-as", *as, "-crash", *crash, "-addr", here, "-tls-addr", hereTLS, "-unix", *unixPath},
	}
	logFunc := func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); strings.Contains(line, "did not become ready") {
			fmt.Println("failed", line)
		}
	}
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	srv := &graceful.Server{
		Server:       &http.Server{Handler: &traffic.Handler{Draining: graceful.Draining}, Protocols: p, TLSConfig: traffic.ServerTLS()},
		Timeout:      20 * time.Second,
		WaitHijacked: true,
		LogFunc:      logFunc,
	}
	serve := []func() error{
		func() error { return srv.Serve(sockets[0]) },
		func() error { return srv.ServeTLS(sockets[1], "", "") },
		func() error { return srv.Serve(sockets[2]) },
	}
	open, _ := os.ReadDir("/proc/self/fd") // none where there is no such directory
	fmt.Println("serving", os.Getpid(), len(open), here, hereTLS)
	var err error
	switch *as {
	case "listener": // serves the first socket only; all are handed on
		l := graceful.NewListener(sockets[0])
		l.Process, l.Timeout, l.LogFunc = process, 20*time.Second, logFunc
		if err = srv.Server.Serve(l); errors.Is(err, net.ErrClosed) {
			err = nil
		}
		for _, l := range sockets {
			l.Close()
		}
	case "group":
		g := &graceful.Group{Process: process, Timeout: 20 * time.Second, LogFunc: logFunc}
		g.Add("web", srv, serve...)
		err = g.Run(context.Background())
	default:
		srv.Process = process
		over := make(chan error, len(serve))
		for _, f := range serve {
			go func() { over <- f() }()
		}
		for range serve {
			// A stop may come before all of them have been called.
			if e := <-over; !errors.Is(e, http.ErrServerClosed) {
				err = errors.Join(err, e)
			}
		}
	}
	if err != nil {
		return fail(err)
	}
	fmt.Println("stopped", os.Getpid())
	return 0
}
