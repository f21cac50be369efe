package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// How long a refused client waits before it dials again, and how long the load
// goes on after the exit: so that both are seen.
const (
	redial = 50 * time.Millisecond
	after  = 150 * time.Millisecond
)

// idleRamp is how long idle connections may take to be made, where the rate
// leaves them more.
const idleRamp = 4 * time.Second

// check checks every subject and returns what it found.
func (c *config) check(ctx context.Context, stderr io.Writer) (*Report, error) {
	if c.demo {
		if err := c.demonstrate(); err != nil {
			return nil, err
		}
	}
	return c.checkSubjects(ctx, stderr)
}

func (c *config) checkSubjects(ctx context.Context, stderr io.Writer) (*Report, error) {
	rep := c.newReport(append([]string{"draincheck"}, os.Args[1:]...))
	bar := newProgress(stderr, c.rounds*len(c.subjects), c.verbose)
	defer bar.end()
	for _, s := range c.subjects {
		found := c.newSubject(s)
		rep.Subjects = append(rep.Subjects, found)
		if err := c.stopTimes(ctx, c.rounds, s, found, bar, stderr); err != nil {
			return nil, err
		}
	}
	return rep, nil
}

// newSubject returns what has been found of s before it was stopped for the
// first time.
func (c *config) newSubject(s subject) *Subject {
	found := &Subject{Name: s.Name, Foreign: s.why != ""}
	for _, l := range c.lanes {
		found.Lanes = append(found.Lanes, newLane(l))
	}
	return found
}

// stopTimes stops s n times more, and adds what that costs to found.
func (c *config) stopTimes(ctx context.Context, n int, s subject, found *Subject, bar *progress, stderr io.Writer) error {
	var verbose io.Writer
	if c.verbose {
		verbose = stderr
	}
	d, err := c.deploy(s, verbose)
	if err != nil {
		return err
	}
	defer d.close()
	if found.Foreign {
		grantsNone := *c
		grantsNone.window = 0
		c = &grantsNone
	}
	for range n {
		if err := d.ready(ctx); err != nil {
			return err
		}
		if !found.probed {
			if err := c.probe(ctx, s, d, found); err != nil {
				return err
			}
			found.probed = true
		}
		if err := c.round(ctx, d, found, bar); err != nil {
			return err
		}
	}
	for _, l := range found.Lanes {
		l.finish()
	}
	return nil
}

// load returns lane l's load on d, or why there can be none. What found says of
// the lane was learnt by probing.
func (c *config) load(d deployment, l lane, found *Lane) (traffic.Load, error) {
	addrs := d.addrs()
	load := traffic.Load{
		Addr: addrs.plain, Kind: l.kind, Clients: c.clientsOf(l), Rate: c.rate, Redial: redial,
		Timeout: c.grace + 5*time.Second, Any: found.any, Window: c.window, Path: c.path, Method: c.method,
	}
	if !found.any {
		load.Method = "POST"
	}
	if l.kind.Name == traffic.Idle.Name && c.rate > 0 {
		load.Rate = max(c.rate, float64(load.Clients)/idleRamp.Seconds())
	}
	switch {
	case l.tls || found.tls:
		load.Addr = addrs.tls
		// It is the loss that is checked here, not the certificate; and not the
		// price of a handshake: without the key exchange that is safe from
		// quantum computers it is half.
		load.TLS = &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}
	case l.kind.HTTP2():
		load.Addr = addrs.h2c
	}
	if load.Addr == "" {
		return load, errors.New("not at this -url")
	}
	return load, nil
}

// probe finds out which kinds of traffic the server takes, with one request of
// each, and skips the others.
func (c *config) probe(ctx context.Context, s subject, d deployment, found *Subject) error {
	served := false
	for i, l := range c.lanes {
		err := c.probeLane(ctx, s, d, l, found.Lanes[i])
		if err != nil {
			found.Lanes[i].Skipped = err.Error()
		}
		served = served || err == nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !served {
		return usageError{fmt.Errorf("the server takes none of the kinds of traffic (%s: %s)", found.Lanes[0].Name, found.Lanes[0].Skipped)}
	}
	return nil
}

// probeLane returns why the server does not take l. Otherwise found says
// whether its answers are those of traffic.Handler, so that they can be checked
// to the last byte, and whether it wants TLS where l has none.
func (c *config) probeLane(ctx context.Context, s subject, d deployment, l lane, found *Lane) error {
	var first error
	for _, found.tls = range []bool{false, true} {
		for _, found.any = range []bool{false, true} {
			load, err := c.load(d, l, found)
			if err == nil {
				err = try(ctx, load)
			}
			if err == nil {
				return nil
			}
			if found.any == s.any && first == nil {
				first = err
			}
			if !s.any {
				break
			}
		}
		if !s.any || l.tls || l.kind.HTTP2() {
			break
		}
	}
	return first
}

// try returns why load's one request was not answered.
func try(ctx context.Context, load traffic.Load) error {
	load.Clients, load.Limit, load.Rate, load.Redial, load.Timeout = 1, 1, 0, 0, 5*time.Second
	if load.Kind.Name == traffic.Idle.Name {
		load.Kind = traffic.KeepAlive
	}
	run, err := load.Start(ctx)
	if err != nil {
		return err
	}
	<-run.Done()
	res := run.Stop()
	if res.Answered > 0 {
		return nil
	}
	for cause, text := range res.Errors {
		if strings.HasPrefix(cause, "status ") {
			return fmt.Errorf("not served (%s)", cause)
		}
		return fmt.Errorf("not served (%.80s)", text)
	}
	return errors.New("not served")
}

// round puts the load on, stops a server in the middle of it, and counts.
func (c *config) round(ctx context.Context, d deployment, found *Subject, bar *progress) error {
	runs := make([]*traffic.Run, len(c.lanes))
	defer func() {
		for _, r := range runs {
			if r != nil {
				r.Stop()
			}
		}
	}()
	loadCtx, cut := context.WithCancel(ctx)
	defer cut() // before the runs are stopped, should this end early
	for i, l := range c.lanes {
		if found.Lanes[i].Skipped != "" {
			continue
		}
		load, err := c.load(d, l, found.Lanes[i])
		if err != nil {
			return err
		}
		if runs[i], err = load.Start(loadCtx); err != nil {
			return err
		}
	}
	defer bar.follow(found, c.rounds, runs)()
	for i, r := range runs {
		if r == nil {
			continue
		}
		if err := steady(r, c.clientsOf(c.lanes[i])); err != nil {
			return fmt.Errorf("the load did not get going: %w", err)
		}
	}
	if err := sleep(ctx, c.warm); err != nil {
		return err
	}
	stop, err := d.roll(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, after); err != nil {
		return err
	}
	found.Stops = append(found.Stops, stop)
	for i, r := range runs {
		if r != nil {
			res := r.Stop()
			found.Lanes[i].add(res, stop, c.warm)
			if !found.Foreign {
				found.noteLosses(res, found.Lanes[i].Name, d)
			}
		}
	}
	return nil
}

// steady waits until each of the clients has been answered about once, at most
// readyWithin.
func steady(r *traffic.Run, clients int) error {
	timeout := time.AfterFunc(readyWithin, func() { r.Stop() })
	defer timeout.Stop()
	return r.WaitSteady(clients)
}
