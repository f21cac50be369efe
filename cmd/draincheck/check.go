package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
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
	rep.judge(c.maxLost, c.maxLostPercent, c.grace)
	return rep, nil
}

// newSubject returns what has been found of s before it was stopped for the
// first time.
func (c *config) newSubject(s subject) *Subject {
	found := &Subject{Name: s.Name, Foreign: s.why != "", via: c.via != ""}
	for _, l := range c.lanes {
		found.Lanes = append(found.Lanes, newLane(l))
	}
	return found
}

// stopTimes stops s n times more, and adds what that costs to found.
func (c *config) stopTimes(ctx context.Context, n int, s subject, found *Subject, bar *progress, stderr io.Writer) error {
	own := *c // the load may be lowered for this server
	c = &own
	if found.Clients > 0 {
		c.clients, c.rate = found.Clients, found.Rate
	}
	if s.signal != 0 {
		c.signal = s.signal
	}
	if found.Foreign {
		c.window = 0 // it grants none
	}
	var verbose io.Writer
	if c.verbose {
		verbose = stderr
	}
	d, err := c.deploy(s, verbose)
	if err != nil {
		return err
	}
	defer d.close()
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
	found.finish()
	return nil
}

// load returns lane l's load on d, or why there can be none. What found says of
// the lane was learnt by probing.
func (c *config) load(d deployment, l lane, found *Lane) (traffic.Load, error) {
	addrs := d.addrs()
	load := traffic.Load{
		Addr: addrs.plain, Kind: l.kind, Clients: c.clientsOf(l), Rate: c.rate, Redial: redial,
		Timeout: c.grace + 5*time.Second, Any: found.any, Window: c.window, Method: c.method,
	}
	load.Path, _ = c.pathOf(l)
	if found.kind.Name != "" {
		load.Kind = found.kind
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

// steadyWithin is how long the load may take to get going: each of the clients
// has been answered about once by then. For a server that does not carry it, it
// is lowered.
var steadyWithin = 5 * time.Second

// lowestRate is the least load, of one client of each kind, in requests per
// second.
const lowestRate = 0.5

// round puts the load on, stops a server in the middle of it, and counts.
func (c *config) round(ctx context.Context, d deployment, found *Subject, bar *progress) error {
	f, err := c.flow(ctx, d, found, bar)
	if err != nil {
		return err
	}
	defer f.end()
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
	for i, r := range f.runs {
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

// A flow is the load of all lanes, in the middle of it.
type flow struct {
	runs []*traffic.Run // of the lanes; nil: skipped
	over func()         // tells the progress bar
	cut  context.CancelFunc
}

// end stops what still runs.
func (f *flow) end() {
	f.cut()
	for _, r := range f.runs {
		if r != nil {
			r.Stop()
		}
	}
	f.over()
}

// flow starts the load and waits until it is in full flow. For a server that
// does not carry it, it lowers the load.
func (c *config) flow(ctx context.Context, d deployment, found *Subject, bar *progress) (*flow, error) {
	for {
		within := steadyWithin
		last := c.fixed || c.clients == 1 && c.rate > 0 && c.rate <= lowestRate
		if last {
			within = readyWithin
		}
		f, err := c.start(ctx, d, found)
		if err != nil {
			return nil, err
		}
		f.over = bar.follow(found, c.rounds, f.runs)
		slow := f.steady(within)
		if slow < 0 {
			return f, nil
		}
		r, l := f.runs[slow], found.Lanes[slow]
		_, answered, _, _ := r.Progress()
		f.end()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := d.died(); err != nil {
			return nil, fmt.Errorf("under load %w", err)
		}
		said := fmt.Sprintf("at -clients %d and -rate %.3g the load did not get going: of %s %s answered within %v",
			c.clients, c.rate, l.Name, count(answered, "request"), within)
		if last {
			return nil, fmt.Errorf("%s; try -traffic with fewer kinds, a lower -rate, or -path for a resource that is answered faster", said)
		}
		c.lower()
		found.Clients, found.Rate = c.clients, c.rate
		found.note("%s; it goes on at -clients %d and -rate %.3g", said, c.clients, c.rate)
	}
}

// lower takes the load to a quarter.
func (c *config) lower() {
	if c.rate == 0 {
		c.rate = 1000 // of that much, probably, each kind was far
	}
	c.clients, c.rate = max(1, c.clients/4), max(lowestRate, c.rate/4)
}

// start starts the load of every lane that is not skipped.
func (c *config) start(ctx context.Context, d deployment, found *Subject) (f *flow, err error) {
	f = &flow{runs: make([]*traffic.Run, len(c.lanes)), over: func() {}}
	ctx, f.cut = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			f.end()
		}
	}()
	for i, l := range c.lanes {
		if found.Lanes[i].Skipped != "" {
			continue
		}
		load, err := c.load(d, l, found.Lanes[i])
		if err != nil {
			return nil, err
		}
		if f.runs[i], err = load.Start(ctx); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// steady waits until each of the clients has been answered about once, and
// returns -1; or the lane of which that did not come true in time, which ends
// the load.
func (f *flow) steady(within time.Duration) int {
	timeout := time.AfterFunc(within, f.cut)
	defer timeout.Stop()
	last := -1
	for i, r := range f.runs {
		if r == nil {
			continue
		}
		if r.WaitSteady(r.Clients()) != nil {
			return i
		}
		last = i
	}
	if !timeout.Stop() {
		return last
	}
	return -1
}
