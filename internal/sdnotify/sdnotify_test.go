//go:build unix

package sdnotify_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/seed-121bbccf/graceful/internal/sdnotify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen plays the service manager on a socket of the given name.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestSend(t *testing.T) {
	names := map[string]string{"path": filepath.Join(t.TempDir(), "notify")}
	if runtime.GOOS == "linux" {
		names["abstract"] = "@graceful-test-" + strconv.Itoa(os.Getpid())
	}
	for kind, name := range names {
		t.Run(kind, func(t *testing.T) {
			manager := listen(t, name)
			for want, messages := range map[string][]string{
				"READY=1":                            {sdnotify.Ready},
				"MAINPID=42\nREADY=1":                {sdnotify.MainPID(42), sdnotify.Ready},
				"STOPPING=1\nEXTEND_TIMEOUT_USEC=20": {sdnotify.Stopping, sdnotify.ExtendTimeout(20 * time.Microsecond)},
				"WATCHDOG=1":                         {sdnotify.Watchdog},
				"STATUS=two lines, x=1":              {sdnotify.Status("two\nlines,\x00x=1")},
			} {
				if err := sdnotify.Send(messages...); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, receive(t, manager)); diff != "" {
					t.Error(diff)
				}
			}
			if os.Getenv("NOTIFY_SOCKET") != name {
				t.Error("NOTIFY_SOCKET was changed")
			}
		})
	}
}

// MONOTONIC_USEC is the kernel's clock, in which systemd compares it: uptime
// without time asleep.
func TestReloading(t *testing.T) {
	got := sdnotify.Reloading()
	if runtime.GOOS != "linux" {
		if got != "RELOADING=1" {
			t.Error(got)
		}
		return
	}
	m := regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=(\d+)$`).FindStringSubmatch(got)
	if m == nil {
		t.Fatalf("%q", got)
	}
	usec, _ := strconv.ParseInt(m[1], 10, 64)
	var uptime float64
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Skip(err)
	}
	fmt.Sscan(string(b), &uptime)
	if now := float64(usec) / 1e6; now > uptime+60 || now <= 0 {
		t.Errorf("%.3f s, but the machine is up for %.3f s", now, uptime)
	}
	time.Sleep(time.Microsecond)
	if again := sdnotify.Reloading(); again == got {
		t.Errorf("the clock stands still: %q", got)
	}
}

func TestSendWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := sdnotify.Send(sdnotify.Ready); err != nil {
		t.Error(err)
	}
}

func TestSendErrors(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for _, tt := range []struct{ socket, message, want string }{
		{gone, sdnotify.Ready, "no such file"},
		{"vsock:2:1234", sdnotify.Ready, "neither a path nor an abstract socket"},
		{gone, "READY", "NAME=value"},
		{gone, "=1", "NAME=value"},
		{gone, "READY=1\n", "NAME=value"},
		{gone, "STATUS=a\x00b", "NAME=value"},
		{"/" + strings.Repeat("x", 200), sdnotify.Ready, "invalid argument"},
	} {
		t.Setenv("NOTIFY_SOCKET", tt.socket)
		if err := sdnotify.Send(tt.message); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q to %s: %v, want %q", tt.message, tt.socket, err, tt.want)
		}
	}
}

// A service manager that does not read holds nothing up for long.
func TestSendToFullSocket(t *testing.T) {
	listen(t, filepath.Join(t.TempDir(), "notify"))
	began := time.Now()
	for n := 0; ; n++ {
		err := sdnotify.Send(sdnotify.Ready)
		if err == nil && n < 1e5 {
			continue
		}
		if err == nil {
			t.Skip("this system's socket buffers do not fill")
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		return
	}
}

func TestWatchdogInterval(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		usec, pid string
		want      time.Duration
		fails     bool
	}{
		{"", "", 0, false},
		{"30000000", "", 30 * time.Second, false},
		{"30000000", self, 30 * time.Second, false},
		{"30000000", "1", 0, false},
		{"0", self, 0, true},
		{"-1", self, 0, true},
		{"30s", self, 0, true},
		{"9223372036854775807", self, 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		if got, err := sdnotify.WatchdogInterval(); got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%+v: %v, %v", tt, got, err)
		}
	}
}

// KeepAlive sends while the process is alive, and only then.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
		defer cancel()
		asked := 0
		alive := func(ctx context.Context) error {
			asked++
			switch asked {
			case 2:
				return errors.New("deadlocked")
			case 3: // takes too long
				<-ctx.Done()
				time.Sleep(time.Second)
			}
			return nil
		}
		var sent []time.Duration
		boom := errors.New("socket gone")
		err := sdnotify.KeepAlive(ctx, 4*time.Second, alive, func(m ...string) error {
			if diff := cmp.Diff([]string{"WATCHDOG=1"}, m); diff != "" {
				t.Error(diff)
			}
			sent = append(sent, time.Since(began))
			if len(sent) == 4 {
				return boom
			}
			return nil
		})
		if err != boom || time.Since(began) != 11*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		// Asked at 0, 2 (fails), 4 (until 7: late, one tick is kept, one
		// missed), 7, 8 and 10 s.
		want := []time.Duration{0, 7 * time.Second, 8 * time.Second, 10 * time.Second}
		if diff := cmp.Diff(want, sent); diff != "" {
			t.Error(diff)
		}
	})
}
