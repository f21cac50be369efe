package graceful_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// TestUpgradeRefused: what makes an upgrade impossible is said at once, and the server
// serves on.
func TestUpgradeRefused(t *testing.T) {
	wants := func(err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	nowhere := &graceful.Process{Path: "/does/not/exist"} // not this program, whose tests would run
	wants(new(graceful.Server).Upgrade(bg), "the field Process is nil")
	wants(new(graceful.Group).Upgrade(bg), "the field Process is nil")
	wants(newListener(newVirtSocket()).Upgrade(bg), "the field Process is nil")
	wants((&graceful.Server{Process: nowhere}).Upgrade(bg), "nothing is served")

	s := serve(t, &graceful.Server{Server: new(http.Server), Process: nowhere, IdleGrace: ms}, newVirtSocket())
	waitAddr(s)
	wants(s.Upgrade(bg), "a graceful_test.virtSocket, has no socket to hand on")
	if s.Phase() != graceful.PhaseServing {
		t.Error(s.Phase())
	}
	s.Shutdown(bg)
	wants(s.Upgrade(bg), "a shutdown has begun")

}

// TestProcessFields: invalid values are refused before anything is served.
func TestProcessFields(t *testing.T) {
	for _, tc := range []struct {
		want    string // %s is the type's name
		process graceful.Process
		signals []os.Signal
	}{
		{"Process.UpgradeTimeout is negative: -1ns", graceful.Process{UpgradeTimeout: -1}, nil},
		{"Process.UpgradeSignals has terminated, which begins the shutdown", graceful.Process{UpgradeSignals: []os.Signal{syscall.SIGHUP, syscall.SIGTERM}}, nil},
		{"Process.UpgradeSignals has hangup, which begins the shutdown", graceful.Process{UpgradeSignals: []os.Signal{syscall.SIGHUP}}, []os.Signal{syscall.SIGHUP}},
		{"Process.UpgradeSignals has a signal that cannot be caught: killed", graceful.Process{UpgradeSignals: []os.Signal{os.Kill}}, nil},
		{"%s.Signals has a signal that cannot be caught: killed", graceful.Process{}, []os.Signal{os.Interrupt, os.Kill}},
		{"%s.Signals has a signal that cannot be caught: <nil>", graceful.Process{}, []os.Signal{nil}},
	} {
		wants := func(typ string, err error) {
			t.Helper()
			if want := "graceful: " + strings.ReplaceAll(tc.want, "%s", typ); err == nil || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
		}
		wants("Server", (&graceful.Server{Process: &tc.process, Signals: tc.signals}).Serve(newVirtSocket()))
		_, err := (&graceful.Group{Process: &tc.process, Signals: tc.signals}).Start(bg)
		wants("Group", err)
		l := newListener(newVirtSocket())
		l.Process, l.Signals, l.NoSignalHandling = &tc.process, tc.signals, false
		_, err = l.Accept()
		wants("Listener", err)
	}
}

// TestSecondProcess: a second Process would start a second successor. It is refused
// until the shutdown of what has the first is over.
func TestSecondProcess(t *testing.T) {
	p := new(graceful.Process)
	first := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true, IdleGrace: ms, Process: p}
	if _, err := first.Start(bg); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Start(bg); err != nil { // one more address
		t.Error(err)
	}
	attempts := map[string]func() error{
		"Server": func() error {
			srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, NoSignalHandling: true, Process: p}
			if _, err := srv.Start(bg); err != nil {
				return err
			}
			return srv.Shutdown(bg)
		},
		"Listener": func() error {
			l := newListener(newVirtSocket())
			l.Process = p
			time.AfterFunc(10*ms, func() { l.Shutdown(bg) })
			_, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		},
		"Group": func() error {
			g := &graceful.Group{NoSignalHandling: true, Process: p}
			return g.Run(bg)
		},
	}
	for name, attempt := range attempts {
		if err := attempt(); err == nil || !strings.Contains(err.Error(), "has a Process") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A member's Process is not used.
	g := &graceful.Group{NoSignalHandling: true}
	g.Add("web", &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0"}, IdleGrace: ms, Process: p})
	if _, err := g.Start(bg); err != nil {
		t.Error(err)
	}
	if err := errors.Join(g.Shutdown(bg), first.Shutdown(bg)); err != nil {
		t.Error(err)
	}
	for name, attempt := range attempts {
		if err := attempt(); err != nil {
			t.Errorf("%s, after the first: %v", name, err)
		}
	}
}

// TestUpgradeFails: a successor that does not start, ends early, or is not ready in
// time, leaves the server as it was. So does a stop, which it ends with.
func TestUpgradeFails(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("where it is not supported")
	}
	t.Parallel()
	for _, tc := range []struct {
		name, want string
		process    graceful.Process
		stop       bool
	}{
		{"no program", "no such file", graceful.Process{Path: "/does/not/exist"}, false},
		{"exits", "exit status 7", graceful.Process{Path: "/bin/sh", Args: []string{"-c", "exit 7"}}, false},
		{"not in time", "not ready within 100ms", graceful.Process{Path: "/bin/sleep", Args: []string{"30"}, UpgradeTimeout: 100 * ms}, false},
		{"stopped", "a shutdown has begun", graceful.Process{Path: "/bin/sleep", Args: []string{"30"}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0", Handler: text("served")}, NoSignalHandling: true, IdleGrace: ms, Process: &tc.process}
			if _, err := srv.Start(bg); err != nil {
				t.Fatal(err)
			}
			if tc.stop {
				time.AfterFunc(100*ms, func() { srv.Stop(0) })
			}
			began := time.Now()
			err := srv.Upgrade(context.Background())
			if err == nil || !strings.Contains(err.Error(), tc.want) || time.Since(began) > 20*time.Second {
				t.Errorf("%v after %v, want %q", err, time.Since(began), tc.want)
			}
			if !tc.stop {
				if got := fetch("http", srv.Addrs()[0]); got != "served" {
					t.Errorf("got %q", got)
				}
			}
			if err := srv.Shutdown(bg); err != nil || errors.Is(srv.Wait(), graceful.ErrKilled) {
				t.Error(err)
			}
		})
	}
}
