package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A deployment is where a subject runs, and how it is stopped.
type deployment interface {
	// ready starts what does not run, and waits until it serves.
	ready(ctx context.Context) error

	// addrs returns where clients find it.
	addrs() addresses

	// roll stops one server as the command line wants it, waits until it has
	// exited, and returns how that went.
	roll(ctx context.Context) (Stop, error)

	// died returns an error that says so if a server has exited by itself.
	died() error

	// said returns what the balancer, if there is one, wrote of a request.
	said(id string) []string

	// close ends all that runs.
	close()
}

// addresses are where clients speak HTTP/1 in the clear, anything over TLS, and
// HTTP/2 in the clear; "" if nowhere.
type addresses struct{ plain, tls, h2c string }

func (c *config) deploy(s subject, verbose io.Writer) (deployment, error) {
	start := func(port, tlsPort int) (*process, error) { return startProcess(s.argv, port, tlsPort, verbose) }
	ownTLSPort := slices.ContainsFunc(s.argv, func(a string) bool { return strings.Contains(a, "{tlsport}") })
	switch {
	case c.url != nil:
		return &external{c: c}, nil
	case c.via != "":
		return newBalanced(c, ownTLSPort, start)
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	d := &direct{c: c, start: start, port: ports[0], tls: ports[0]}
	if ownTLSPort {
		d.tls = ports[1]
	}
	return d, nil
}

// direct is one server that the clients speak to themselves. With -replace its
// successor binds the same ports before it is stopped.
type direct struct {
	c         *config
	start     func(port, tlsPort int) (*process, error)
	port, tls int
	now       *process // nil: none runs
}

func (d *direct) ready(ctx context.Context) error {
	if d.now != nil {
		return nil
	}
	p, err := d.start(d.port, d.tls)
	if err != nil {
		return err
	}
	d.now = p
	return p.ready(ctx, true)
}

func (d *direct) addrs() addresses {
	return addresses{plain: loopback(d.port), tls: loopback(d.tls), h2c: loopback(d.port)}
}

func (d *direct) roll(ctx context.Context) (Stop, error) {
	old := d.now
	d.now = nil
	defer old.kill()
	if d.c.replace {
		var err error
		if d.now, err = d.start(d.port, d.tls); err != nil {
			return Stop{}, err
		}
		if err := d.now.ready(ctx, false); err != nil {
			return Stop{}, fmt.Errorf("the successor, which needs SO_REUSEPORT: %w", err)
		}
	}
	return old.stop(ctx, d.c.signal, d.c.grace)
}

func (d *direct) died() error { return d.now.died() }

func (d *direct) said(string) []string { return nil }

func (d *direct) close() {
	if d.now != nil {
		d.now.kill()
		d.now = nil
	}
}

// external is a server that something else runs.
type external struct {
	c       *config
	stopped bool
}

func (e *external) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", e.c.url.Host)
		if err == nil {
			return c.Close()
		}
		if !e.stopped || ctx.Err() != nil {
			return usageError{fmt.Errorf("nobody serves at %s: %w", e.c.url, err)}
		}
		// Whoever runs it is starting it again.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (e *external) addrs() addresses {
	if e.c.url.Scheme == "https" {
		return addresses{tls: e.c.url.Host}
	}
	return addresses{plain: e.c.url.Host, h2c: e.c.url.Host}
}

func (e *external) roll(ctx context.Context) (Stop, error) {
	e.stopped = true
	if e.c.stopCommand != "" {
		return e.command(ctx)
	}
	s := Stop{Signal: signalName(e.c.signal), Began: time.Now(), Status: "unknown"}
	done := make(chan struct{})
	closed := make(chan time.Time, 1)
	w, watched := watchListener(e.c.pid, port(e.c.url))
	if err := sendSignal(e.c.pid, e.c.signal); err != nil {
		return s, usageError{fmt.Errorf("sending %s to process %d: %w", s.Signal, e.c.pid, err)}
	}
	go func() { closed <- w.gone(done) }()
	defer func() { <-closed }()
	defer close(done)
	for deadline := s.Began.Add(e.c.grace); alive(e.c.pid); {
		if time.Now().After(deadline) && !s.Killed {
			s.Killed, s.KilledAfter = true, ms(time.Since(s.Began))
			sendSignal(e.c.pid, syscall.SIGKILL)
			deadline = deadline.Add(e.c.grace)
		}
		if time.Now().After(deadline) {
			return s, fmt.Errorf("process %d outlived even SIGKILL", e.c.pid)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
	s.Exit = ms(time.Since(s.Began))
	if s.Closed = s.Exit; watched {
		at := <-closed
		closed <- at
		s.Closed = min(s.Exit, ms(at.Sub(s.Began)))
	}
	return s, nil
}

// command stops the server by the command that the caller gave for it.
func (e *external) command(ctx context.Context) (Stop, error) {
	s := Stop{Signal: "stop", Began: time.Now(), Status: "unknown"}
	ctx, cancel := context.WithTimeout(ctx, e.c.grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", e.c.stopCommand)
	ownGroup(cmd)
	cmd.Cancel = func() error { killGroup(cmd); return nil }
	runtime.LockOSThread() // see ownGroup
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	s.Exit = ms(time.Since(s.Began))
	s.Closed = s.Exit
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it took longer than %v (-grace)", e.c.grace)
		}
		return s, usageError{fmt.Errorf("-stop-command: %w: %s", err, out)}
	}
	return s, nil
}

func (e *external) died() error { return nil }

func (e *external) said(string) []string { return nil }

func (e *external) close() {}

func port(u *url.URL) int {
	n, err := net.LookupPort("tcp", u.Port())
	if err != nil {
		return 0
	}
	return n
}
