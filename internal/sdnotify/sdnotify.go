// Package sdnotify sends the state of this process to the service manager by the
// protocol of sd_notify(3): datagrams of NAME=value lines to the socket that the
// environment variable NOTIFY_SOCKET names. systemd listens there for services of
// Type=notify and Type=notify-reload, and so do some other supervisors and
// container runtimes.
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

// Messages without parameters.
const (
	Ready    = "READY=1"    // start-up, or a reload, is finished
	Stopping = "STOPPING=1" // the shutdown has begun
	Watchdog = "WATCHDOG=1" // the process is alive
)

// Reloading returns the message that a reload has begun. It contains the time, by
// which systemd recognizes the reload that it has asked a service of
// Type=notify-reload for; on systems other than Linux it does not. Ready ends the
// reload.
func Reloading() string {
	if now := monotonic(); now > 0 {
		return "RELOADING=1\nMONOTONIC_USEC=" + usec(now)
	}
	return "RELOADING=1"
}

// MainPID returns the message that the process pid is the service's main process
// from now on. systemd accepts it from the current main process, and with
// NotifyAccess=all from any process of the service.
func MainPID(pid int) string { return "MAINPID=" + strconv.Itoa(pid) }

// ExtendTimeout returns the message that the current state (starting, stopping) may
// last for d from now on, even if that exceeds TimeoutStartSec or TimeoutStopSec.
// The next ExtendTimeout, or the end of the state, has to come within d.
func ExtendTimeout(d time.Duration) string { return "EXTEND_TIMEOUT_USEC=" + usec(d) }

// Status returns the message whose text systemctl status shows.
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

// WatchdogInterval returns WatchdogSec, the time within which Watchdog has to be
// sent again, or 0 if the service manager does not expect Watchdog from this
// process. It returns an error if WATCHDOG_USEC is malformed.
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

// KeepAlive calls alive at once and then twice in each interval, until ctx ends. If
// alive returns nil within half of the interval, KeepAlive calls send with Watchdog.
// It goes on after an error of alive or send. It returns the error of the last
// send.
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
