//go:build unix

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/handoff"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// Processes that hand their sockets to a successor on SIGHUP, under load, lose
// and refuse nothing, leak no descriptor, and serve on when a successor fails,
// which each third does here.
func TestUpgrade(t *testing.T) {
	n := 18
	if testing.Short() {
		n = 6
	}
	u := startUpgradable(t)
	type lane struct {
		kind traffic.Kind
		tls  bool
		run  *traffic.Run
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
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
		res := l.run.Stop()
		t.Logf("%-13s TLS %-5v %4d answered", l.kind, l.tls, res.Answered)
		if res.Answered == 0 {
			t.Errorf("%s: nothing was answered", l.kind)
		}
		for _, causes := range []map[string]int{res.Refused, res.Lost} {
			for cause, n := range causes {
				if cause == "paused" {
					t.Logf("%s: %d excused: %s", l.kind, n, cause)
					continue
				}
				t.Errorf("%s, TLS %v: %d %s: %s", l.kind, l.tls, n, cause, res.Errors[cause])
			}
		}
	}
	u.stop()
}

// An upgradable is a chain of processes. Successors inherit its standard output,
// on which each of them says what happens to it.
type upgradable struct {
	t             *testing.T
	addr, tlsAddr string
	crash         string // a file: while it exists, new processes crash
	lines         *bufio.Scanner
	pid           int // of the process that serves
	descriptors   int // that it had just before
}

func startUpgradable(t *testing.T) *upgradable {
	u := &upgradable{t: t, crash: filepath.Join(t.TempDir(), "crash")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd := exec.Command(os.Args[0], upgradableArg, "-crash", u.crash)
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	u.pid = cmd.Process.Pid
	t.Cleanup(func() { syscall.Kill(u.pid, syscall.SIGKILL) })
	u.lines = bufio.NewScanner(r)
	fmt.Sscan(u.next("serving"), &u.pid, &u.descriptors, &u.addr, &u.tlsAddr)
	return u
}

// next returns what a process said after word.
func (u *upgradable) next(word string) string {
	u.t.Helper()
	for u.lines.Scan() {
		if rest, ok := strings.CutPrefix(u.lines.Text(), word+" "); ok {
			return rest
		}
		u.t.Log(u.lines.Text())
	}
	u.t.Fatalf("the processes have ended without %q", word)
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
}

// upgradableArg is the first argument that makes the test binary such a process.
const upgradableArg = "upgradable"

func init() { modes[upgradableArg] = runUpgradable }

func runUpgradable(args []string) int {
	time.AfterFunc(3*time.Minute, func() { os.Exit(1) }) // none outlasts the tests for long
	fs := flag.NewFlagSet(upgradableArg, flag.ExitOnError)
	crash := fs.String("crash", "", "")
	addr := fs.String("addr", "127.0.0.1:0", "")
	tlsAddr := fs.String("tls-addr", "127.0.0.1:0", "")
	fs.Parse(args)
	if _, err := os.Stat(*crash); err == nil {
		os.Exit(3)
	}
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)

	handed, err := handoff.Receive()
	if err != nil {
		return fail(err)
	}
	var sockets []handoff.Socket
	for _, a := range []string{*addr, *tlsAddr} {
		s, ok := handed.Take("tcp", a)
		if !ok {
			// Not graceful.Listen: that socket would be shut for the successor too.
			if s.Listener, err = net.Listen("tcp", a); err != nil {
				return fail(err)
			}
			s.Owned = true
		}
		sockets = append(sockets, s)
	}

	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	srv := &graceful.Server{
		Server:       &http.Server{Handler: &traffic.Handler{Draining: graceful.Draining}, Protocols: p, TLSConfig: traffic.ServerTLS()},
		Timeout:      20 * time.Second,
		WaitHijacked: true,
	}
	open, _ := os.ReadDir("/proc/self/fd") // none where there is no such directory
	over := make(chan error, 2)
	go func() { over <- srv.Serve(sockets[0]) }()
	go func() { over <- srv.ServeTLS(sockets[1], "", "") }()
	if err := handed.Ready(); err != nil {
		return fail(err)
	}
	here, hereTLS := sockets[0].Addr().String(), sockets[1].Addr().String()
	fmt.Println("serving", os.Getpid(), len(open), here, hereTLS)
	for {
		select {
		case <-hup:
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			_, err := handoff.Start(ctx, handoff.Options{
				Sockets: sockets,
				Args:    []string{upgradableArg, "-crash", *crash, "-addr", here, "-tls-addr", hereTLS},
			})
			cancel()
			if err != nil {
				fmt.Println("failed", err)
				continue
			}
			go srv.Shutdown(context.Background())
		case err := <-over:
			if err == nil {
				err = <-over
			}
			if err != nil {
				return fail(err)
			}
			fmt.Println("stopped", os.Getpid())
			return 0
		}
	}
}
