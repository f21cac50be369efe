package graceful

import (
	"context"

	"github.com/seed-121bbccf/graceful/internal/sdnotify"
)

// SystemdNotify sends state to the service manager, as sd_notify(3) does: each
// string is one NAME=value line, such as "READY=1" or "STATUS=filling caches",
// and all of a call take effect together. It does nothing and returns nil where
// the environment variable NOTIFY_SOCKET is not set, so that a program needs
// not know whether systemd runs it. It waits for at most a second. It may be
// called concurrently.
func SystemdNotify(state ...string) error { return sdnotify.Send(state...) }

// SystemdWatchdog tells the service manager that the process is alive, twice in
// each WatchdogSec, as long as alive returns nil, until ctx ends. alive has
// half of WatchdogSec for it; Health.Alive is such a function. When alive fails
// for WatchdogSec, systemd ends the process with SIGABRT and, with
// Restart=on-watchdog or on-failure, starts it anew.
//
// It returns nil at once if the unit has no WatchdogSec; an error at once if
// WATCHDOG_USEC is malformed; and when ctx ends the error of the last attempt to
// send, if that failed. As a worker of a Group:
//
//	g.Go("watchdog", func(ctx context.Context) error {
//		return graceful.SystemdWatchdog(ctx, health.Alive)
//	})
func SystemdWatchdog(ctx context.Context, alive func(context.Context) error) error {
	interval, err := sdnotify.WatchdogInterval()
	if err != nil || interval == 0 {
		return err
	}
	return sdnotify.KeepAlive(ctx, interval, alive, sdnotify.Send)
}
