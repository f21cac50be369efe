package graceful

import (
	"context"

	"github.com/seed-121bbccf/graceful/internal/sdnotify"
)

// SystemdNotify sends state to the service manager, as sd_notify(3) does. Each
// string is one NAME=value line, such as "READY=1" or "STATUS=filling caches"; the
// strings of one call take effect together. If the environment variable
// NOTIFY_SOCKET is not set, because systemd does not run the program, SystemdNotify
// does nothing and returns nil. It blocks for a second at most, and may be called
// concurrently.
func SystemdNotify(state ...string) error { return sdnotify.Send(state...) }

// SystemdWatchdog blocks until ctx ends. Twice in each WatchdogSec it calls alive,
// which has half of WatchdogSec to return, and if alive returns nil it tells the
// service manager that the process is alive. Health.Alive can be used as alive. If
// alive fails for WatchdogSec, systemd kills the process with SIGABRT, and restarts
// it if the unit has Restart=on-watchdog or on-failure.
//
// SystemdWatchdog returns nil at once if the unit has no WatchdogSec, and an error
// at once if the environment variable WATCHDOG_USEC is malformed. When ctx ends, it
// returns the error of its last message to systemd, or nil. As a worker of a Group:
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
