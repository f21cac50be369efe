//go:build unix

package graceful_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// notifySocket plays the service manager: it returns what the process is
// expected to tell, a datagram at a time.
func notifySocket(t *testing.T) (next func() string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return func() string {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestSystemdNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := graceful.SystemdNotify("READY=1"); err != nil {
		t.Error(err)
	}
	next := notifySocket(t)
	if err := graceful.SystemdNotify("READY=1", "STATUS=at work"); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1\nSTATUS=at work" {
		t.Errorf("%q", got)
	}
}

// The watchdog follows the checks of liveness.
func TestSystemdWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "")
	t.Setenv("WATCHDOG_USEC", "")
	health := graceful.Health{CheckMaxAge: -1}
	if err := graceful.SystemdWatchdog(t.Context(), health.Alive); err != nil {
		t.Error(err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if err := graceful.SystemdWatchdog(t.Context(), health.Alive); err == nil {
		t.Error("no error")
	}

	t.Setenv("WATCHDOG_USEC", "20000")
	next := notifySocket(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	health.AddLiveCheck("loop", func(context.Context) error {
		if asked++; asked <= 3 {
			return nil
		}
		cancel()
		return errors.New("deadlocked")
	})
	if err := graceful.SystemdWatchdog(ctx, health.Alive); err != nil {
		t.Error(err)
	}
	graceful.SystemdNotify("END=1")
	for _, want := range []string{"WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "END=1"} {
		if got := next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
