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
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// upgrades is how many upgrades each part of TestUpgrade makes, and a third of them
// with a successor that crashes.
var upgrades = flag.Int("upgrades", 9, "upgrades in each part of TestUpgrade")

// TestUpgrade: a Server, a Group and a Listener that are upgraded by SIGHUP under load
// lose and refuse nothing, leak no descriptor, and serve on when a successor fails. The
// last stop, which has no successor, loses nothing either. The load is HTTP over TCP,
// TLS, HTTP/2 and a unix socket, for the Listener commands of a line each.
//
// net/http's Shutdown with tableflip is run beside them. What it loses is logged.
func TestUpgrade(t *testing.T) {
	for _, as := range []string{"server", "group", "listener", "tableflip"} {
		t.Run(as, func(t *testing.T) {
			n := *upgrades
			if as == "tableflip" {
				n = (n + 2) / 3 // net/http's Shutdown takes about 5 s each time
			}
			answered, lost, refused, causes := testUpgrade(t, as, n)
			text := fmt.Sprintf("%d upgrades, a third of them failing, and a stop: %d answered, %d lost, %d refused%s",
				n, answered, lost, refused, causes)
			t.Log(text)
			if as != "tableflip" && lost+refused > 0 {
				t.Error(text)
			}
		})
	}
}

func testUpgrade(t *testing.T, as string, n int) (answered, lost, refused int, causes string) {
	u := startUpgradable(t, as, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	type lane struct {
		kind traffic.Kind
		tls  bool
		run  *traffic.Run
	}
	var lanes []lane
	newClient := commandLines(u.addr)
	if as != "listener" {
		newClient = unixPosts(u.unixPath)
		for _, k := range []traffic.Kind{traffic.KeepAlive, traffic.NewConn, traffic.HalfNew50, traffic.Upload, traffic.Stream, traffic.HTTP2Once, traffic.Idle} {
			lanes = append(lanes, lane{kind: k}, lane{kind: k, tls: true})
		}
	}
	r := startRepeater(ctx, newClient)
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
		r.waitMore(t, 100)
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
	if u.descriptors != first && as != "tableflip" {
		t.Errorf("the first successor began with %d descriptors, the last with %d", first, u.descriptors)
	}
	for _, l := range lanes {
		_, _, n, _ := l.run.Progress()
		refused += n
	}
	r.last.Store(true)
	u.stop() // without a successor, and under load
	var text strings.Builder
	note := func(n int, format string, args ...any) {
		lost += n
		fmt.Fprintf(&text, "\n\t%d %s", n, fmt.Sprintf(format, args...))
	}
	answered = r.stop()
	for cause, n := range r.failed {
		note(n, "%s", cause)
	}
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
			note(n, "%s, TLS %v: %s: %s", l.kind, l.tls, cause, res.Errors[cause])
		}
	}
	return answered, lost, refused, text.String()
}

// An upgradable is a chain of processes. Successors inherit its standard output,
// on which each of them says what happens to it.
type upgradable struct {
	t             *testing.T
	as            string // what it serves as
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
	u := &upgradable{t: t, as: as, crash: filepath.Join(dir, "crash"), unixPath: filepath.Join(dir, "socket")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd := exec.Command(os.Args[0], upgradableArg, "-as", as, "-crash", u.crash, "-unix", u.unixPath)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // -race sleeps for a second otherwise
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
	if _, err := os.Lstat(u.unixPath); err == nil && u.as != "tableflip" {
		u.t.Error("the last process has left the file of its unix socket")
	}
}

// A repeater is a few clients that do the same again and again.
type repeater struct {
	end  atomic.Bool
	last atomic.Bool // the server is about to stop: connections may be refused
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	answered int
	failed   map[string]int // by error
}

// startRepeater starts the clients. Each makes a function by newClient, and calls it: the
// function returns how many answers it has had.
func startRepeater(ctx context.Context, newClient func() func() (int, error)) *repeater {
	r := &repeater{failed: make(map[string]int)}
	for range 4 {
		r.wg.Go(func() {
			for once := newClient(); !r.end.Load() && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
				answered, err := once()
				var op *net.OpError
				if errors.As(err, &op) && op.Op == "dial" && r.last.Load() {
					return
				}
				r.mu.Lock()
				r.answered += answered
				if err != nil {
					r.failed[err.Error()]++
				}
				r.mu.Unlock()
			}
		})
	}
	return r
}

// waitMore waits until n more answers have come.
func (r *repeater) waitMore(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.answered
	}
	for want, deadline := count()+n, time.Now().Add(time.Minute); count() < want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the load has stalled")
		}
	}
}

func (r *repeater) stop() (answered int) {
	r.end.Store(true)
	r.wg.Wait()
	return r.answered
}

// unixPosts posts requests over a unix socket, one after the other on a connection.
func unixPosts(path string) func() func() (int, error) {
	return func() func() (int, error) {
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}}
		return func() (int, error) {
			resp, err := client.Post("http://unix/", "text/plain", strings.NewReader("hello"))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if err != nil {
				return 0, err
			}
			return 1, nil
		}
	}
}

// commandLines sends one to 20 commands over a connection, each when the last is
// answered, in less time than a Listener's Patience.
func commandLines(addr string) func() func() (int, error) {
	return func() func() (int, error) {
		round := 0
		return func() (n int, err error) {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				return 0, err
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			answers := bufio.NewReader(nc)
			for round++; n < 1+round%20; n++ {
				fmt.Fprintln(nc, "command", n)
				switch line, err := answers.ReadString('\n'); {
				case err != nil:
					return n, err
				case line != fmt.Sprintln("done: command", n):
					return n, fmt.Errorf("command %d: %q", n, line)
				}
			}
			return n, nil
		}
	}
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
	if *as == "tableflip" {
		if err := serveByTableflip(*unixPath); err != nil {
			return fail(err)
		}
		return 0
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
		line := fmt.Sprintf(format, args...)
		word := "log"
		if strings.Contains(line, "did not become ready") {
			word = "failed"
		}
		fmt.Println(word, line)
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
		serveCommands(l)
		for _, l := range sockets {
			l.Close()
		}
	case "group":
		g := &graceful.Group{Process: process, Budget: 20 * time.Second, LogFunc: logFunc}
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

// serveCommands answers each line.
func serveCommands(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return // the shutdown is over
		}
		go func() {
			defer nc.Close()
			for lines := bufio.NewScanner(nc); lines.Scan(); {
				time.Sleep(time.Millisecond) // the work
				fmt.Fprintln(nc, "done:", lines.Text())
			}
		}()
	}
}

// serveByTableflip serves by net/http, as tableflip's example does.
func serveByTableflip(unixPath string) error {
	upg, err := tableflip.New(tableflip.Options{})
	if err != nil {
		return err
	}
	defer upg.Stop()
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: &traffic.Handler{}, Protocols: p, TLSConfig: traffic.ServerTLS()}
	var here []any
	// tableflip tells sockets apart by what they were asked for by.
	for i, a := range [][2]string{{"tcp", "127.0.0.1:0"}, {"tcp", "localhost:0"}, {"unix", unixPath}} {
		l, err := upg.Listen(a[0], a[1])
		if err != nil {
			return err
		}
		here = append(here, l.Addr())
		if i == 1 {
			go server.ServeTLS(l, "", "")
		} else {
			go server.Serve(l)
		}
	}
	upgrade, stop := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGHUP)
	signal.Notify(stop, syscall.SIGTERM)
	open, _ := os.ReadDir("/proc/self/fd")
	fmt.Println("serving", os.Getpid(), len(open), here[0], here[1])
	if err := upg.Ready(); err != nil {
		return err
	}
	go func() {
		upg.WaitForParent(context.Background()) // before that there is no upgrade
		for range upgrade {
			if err := upg.Upgrade(); err != nil {
				fmt.Println("failed", err)
			}
		}
	}()
	select {
	case <-upg.Exit():
	case <-stop:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = server.Shutdown(ctx)
	upg.Stop()
	fmt.Println("stopped", os.Getpid())
	return err
}
