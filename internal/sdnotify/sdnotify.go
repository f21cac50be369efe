// Package sdnotify tells the service manager about the state of this process
// by the protocol of sd_notify(3): datagrams of NAME=value lines to the socket
// that the environment variable NOTIFY_SOCKET names. systemd listens there for
// services of Type=notify and Type=notify-reload, and so do some other
// supervisors and container runtimes.
package sdnotify

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Messages that are always the same.
const (
	Ready    = "READY=1"    // start-up, or a reload, is finished
	Stopping = "STOPPING=1" // the shutdown has begun
	Watchdog = "WATCHDOG=1" // the process is alive
)

// Reloading says that a reload has begun. A service of Type=notify-reload has
// to give the time too, in which systemd recognizes the reload that it asked
// for; on systems other than Linux it is left out. Ready ends the reload.
func Reloading() string {
	if now := monotonic(); now > 0 {
		return "RELOADING=1\nMONOTONIC_USEC=" + usec(now)
	}
	return "RELOADING=1"
}

// MainPID names the process that is the service from now on. It is accepted
// from the current main process, and from any process of the service under
// NotifyAccess=all.
func MainPID(pid int) string { return "MAINPID=" + strconv.Itoa(pid) }

// ExtendTimeout asks for d from now on in the current state (starting,
// stopping), even where that exceeds TimeoutStartSec or TimeoutStopSec. The
// next ExtendTimeout, or the end of the state, has to come within d.
func ExtendTimeout(d time.Duration) string { return "EXTEND_TIMEOUT_USEC=" + usec(d) }

// Status is a line for a person, shown by systemctl status.
func Status(text string) string {
	return "STATUS=" + strings.NewReplacer("\n", " ", "\x00", " ").Replace(text)
}

func usec(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// sendTimeout bounds how long Send waits for a service manager that does not
// read its socket.
const sendTimeout = time.Second

// Send sends messages in one datagram, so that they take effect together. It
// does nothing and returns nil if NOTIFY_SOCKET is not set. It waits for at
// most a second, may be called concurrently, and leaves NOTIFY_SOCKET set, for
// a successor that this process may start.
func Send(messages ...string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	for _, m := range messages {
		for line := range strings.SplitSeq(m, "\n") {
			if i := strings.IndexByte(line, '='); i <= 0 || strings.IndexByte(line, 0) >= 0 {
				return fmt.Errorf("notify the service manager: %q is not of the form NAME=value", line)
			}
		}
	}
	// An abstract socket's name begins with @, which package net understands.
	if name[0] != '/' && name[0] != '@' {
		return fmt.Errorf("notify the service manager: NOTIFY_SOCKET=%q is neither a path nor an abstract socket", name)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := c.Write([]byte(strings.Join(messages, "\n"))); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// WatchdogInterval returns within which time Watchdog has to be sent again and
// again (WatchdogSec), or 0 if the service manager does not expect it from this
// process.
func WatchdogInterval() (time.Duration, error) {
	text := os.Getenv("WATCHDOG_USEC")
	if text == "" {
		return 0, nil
	}
	// WATCHDOG_PID is absent where the process was not started by the service
	// manager itself.
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	d := time.Duration(n) * time.Microsecond
	if err != nil || n <= 0 || d/time.Microsecond != time.Duration(n) {
		return 0, fmt.Errorf("WATCHDOG_USEC=%q is not a number of microseconds", text)
	}
	return d, nil
}

// KeepAlive calls send with Watchdog at once and then twice in each interval,
// as long as alive returns nil within half of it, until ctx ends. What an error
// of alive leads to is the service manager's business. An error of send ends
// nothing, for the next may succeed; KeepAlive returns that of the last one.
func KeepAlive(ctx context.Context, interval time.Duration, alive func(context.Context) error, send func(...string) error) (err error) {
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		asked, cancel := context.WithTimeout(ctx, interval/2)
		if alive(asked) == nil && asked.Err() == nil {
			err = send(Watchdog)
		}
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return err
}
