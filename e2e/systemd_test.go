//go:build unix

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSystemdNotify: what a notify socket is told at the start, at an upgrade that
// fails, at one that succeeds, and at the stop.
func TestSystemdNotify(t *testing.T) {
	for _, as := range []string{"server", "group", "listener"} {
		t.Run(as, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "notify")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "socket")
			nc, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			says := func(want string) {
				t.Helper()
				nc.SetReadDeadline(time.Now().Add(20 * time.Second))
				b := make([]byte, 1000)
				n, err := nc.Read(b)
				got := strings.ReplaceAll(string(b[:n]), "\n", " ")
				if err != nil || !regexp.MustCompile("^"+want+"$").MatchString(got) {
					t.Errorf("systemd is told %q, %v; want %s", got, err, want)
				}
			}
			u := startUpgradable(t, as, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path) })
			says("READY=1")
			u.upgrade(true)
			says("RELOADING=1 MONOTONIC_USEC=[0-9]+")
			says("READY=1")
			u.upgrade(false)
			says("RELOADING=1 MONOTONIC_USEC=[0-9]+")
			says(fmt.Sprintf("MAINPID=%d READY=1", u.pid))
			u.stop()
			says("STOPPING=1 EXTEND_TIMEOUT_USEC=25000000")
		})
	}
}

// TestSocketActivation: a socket that systemd hands down is served, and left open for
// systemd when the process stops. A successor gets it as well, also where the signal
// for an upgrade was ignored at the start, as with nohup.
func TestSocketActivation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u := startUpgradable(t, "server", func(cmd *exec.Cmd) {
		// LISTEN_PID is the process's own, which only it knows.
		cmd.Args = append([]string{"sh", "-c", `trap "" HUP; LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, append(cmd.Args[1:], "-addr", l.Addr().String())...)
		cmd.Path = "/bin/sh"
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=web.socket")
		cmd.ExtraFiles = []*os.File{f}
	})
	if u.addr != l.Addr().String() {
		t.Fatalf("serves on %s, not on %s", u.addr, l.Addr())
	}
	get := func() {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + u.addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	get()
	u.upgrade(false)
	get()
	u.stop()
	nc, err := net.Dial("tcp", u.addr) // into the queue, where systemd would see it
	if err != nil {
		t.Fatalf("the socket was closed to new connections: %v", err)
	}
	nc.Close()
}

// TestStopDuringUpgrade stops a process at a random moment of its upgrade. Either the
// upgrade has come first, and the successor serves, or no process is left.
func TestStopDuringUpgrade(t *testing.T) {
	begins := regexp.MustCompile("shutdown initiated: (upgrade|(signal )?terminated)")
	for _, as := range []string{"server", "group", "listener"} {
		t.Run(as, func(t *testing.T) {
			u := startUpgradable(t, as, nil)
			awaitAnswer(t, u.addr) // before that no signal is caught
			began := time.Now()
			u.upgrade(false)
			took := time.Since(began)
			upgraded := 0
			for range 30 {
				if u == nil {
					u = startUpgradable(t, as, nil)
					awaitAnswer(t, u.addr)
				}
				old := u.pid
				syscall.Kill(old, syscall.SIGHUP)
				time.Sleep(rand.N(2 * took))
				syscall.Kill(old, syscall.SIGTERM)
				reason := ""
				for reason == "" {
					u.stdout.SetReadDeadline(time.Now().Add(time.Minute))
					if !u.lines.Scan() {
						t.Fatalf("no process has said why it ends (%v)", u.lines.Err())
					}
					line := u.lines.Text()
					if rest, ok := strings.CutPrefix(line, "serving "); ok { // before its predecessor ends
						fmt.Sscan(rest, &u.pid)
					} else if begins.MatchString(line) {
						reason = line
					}
				}
				if strings.Contains(reason, "upgrade") {
					upgraded++
					continue
				}
				for u.lines.Scan() { // to the end of all processes that have this output
				}
				if err := u.lines.Err(); err != nil {
					t.Fatalf("a process was left: %v", err)
				}
				u = nil
			}
			if upgraded == 0 || upgraded == 30 {
				t.Errorf("%d of 30 were upgraded", upgraded)
			}
		})
	}
}

// awaitAnswer waits for an answer of HTTP, or to a command line.
func awaitAnswer(t *testing.T, addr string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(nc, "GET / HTTP/1.0\r\n\r\n")
	if _, err := nc.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
