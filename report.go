package graceful

import (
	"fmt"
	"strings"
	"time"
)

// A Phase is where a server stands between serving and its end.
//
//	serving ──▶ delaying ──▶ draining ──▶ stopped
//	                             └─▶ killing ─▶ stopped
type Phase int32

const (
	// PhaseServing: no shutdown has begun. Goes to PhaseDelaying.
	PhaseServing Phase = iota

	// PhaseDelaying: load balancers are given time to notice; everything is
	// still served. Goes to PhaseDraining and PhaseKilling.
	PhaseDelaying

	// PhaseDraining: nothing new is accepted, what is there is finished.
	// Goes to PhaseStopped and PhaseKilling.
	PhaseDraining

	// PhaseKilling: what was left is being closed. Goes to PhaseStopped.
	PhaseKilling

	// PhaseStopped is terminal.
	PhaseStopped
)

var phaseNames = [...]string{"serving", "delaying", "draining", "killing", "stopped"}

// String returns the phase's name in lower case.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return fmt.Sprintf("Phase(%d)", int32(p))
	}
	return phaseNames[p]
}

// Stats counts a server's open connections by what they are doing.
type Stats struct {
	Phase Phase

	New       int // connected, and have said nothing yet
	Receiving int // have sent part of a request
	Active    int // have a request in progress
	Idle      int // wait for their next request, or are about to be closed
	Hijacked  int // were taken over by a handler (WebSockets)

	// HTTP2 is how many of them speak HTTP/2, and Streams how many requests
	// are in progress on those. Both are 0 for a Listener.
	HTTP2   int
	Streams int
}

// Open is the number of open connections.
func (s Stats) Open() int { return s.New + s.Receiving + s.Active + s.Idle + s.Hijacked }

// String returns the counts in one line.
func (s Stats) String() string {
	line := fmt.Sprintf("%s: %d in flight, %d idle, %d new, %d receiving, %d hijacked",
		s.Phase, s.Active, s.Idle, s.New, s.Receiving, s.Hijacked)
	if s.HTTP2 > 0 {
		line += fmt.Sprintf("; HTTP/2: %d connections, %d streams", s.HTTP2, s.Streams)
	}
	return line
}

// statsOf makes a census presentable.
func statsOf(c census, phase Phase, streams int) Stats {
	s := statesOf(c.open)
	s.Phase, s.HTTP2, s.Streams = phase, c.http2, streams
	return s
}

func statesOf(by [connStates]int) Stats {
	return Stats{
		New:       by[connNew],
		Receiving: by[connReceiving],
		Active:    by[connActive],
		Idle:      by[connIdle] + by[connEnding],
		Hijacked:  by[connHijacked],
	}
}

// A Report says what a shutdown did, how long it took and what it waited for.
// Before the shutdown it is zero, during it as far as it goes, and final once
// the server has stopped.
type Report struct {
	// Phase is how far the shutdown had come when the report was made.
	Phase Phase

	// Reason is what began it: a signal's name, "Stop", "Shutdown", "Close",
	// the end of Start's context, an error of Accept.
	Reason string

	// KillReason is what ended it before it was over: the timeout, a second
	// signal, Close, the end of Shutdown's context; else empty.
	KillReason string

	// Began is when the shutdown began.
	Began time.Time

	// Delay, Drain and Kill are how long each phase took.
	Delay, Drain, Kill time.Duration

	// Start counts the connections at the moment at which draining began.
	Start Stats

	// How connections ended since draining began.
	Late     int // were accepted then: they had connected before, or raced with it
	Finished int // were closed after their last answer, or by the client
	Idle     int // were quiet, and closed
	GaveUp   int // had sent part of a request, and never the rest
	Left     int // were hijacked, and not waited for

	// Killed are those that had to be closed in the middle of something.
	Killed []KilledConn

	// HTTP2 says how HTTP/2 clients were told to leave, and why so if it was
	// not in two steps. Empty for a Listener.
	HTTP2 string
}

// A KilledConn is a connection that was closed in the middle of something.
type KilledConn struct {
	RemoteAddr string
	State      string // new, receiving, active, idle, ending, hijacked

	// Age is how long it had been in that state. That of an active one counts
	// from the first byte of its request, where that was seen.
	Age time.Duration

	// Requests are those in progress, as "METHOD /path".
	Requests []string
}

// String returns one line about the connection.
func (k KilledConn) String() string {
	line := fmt.Sprintf("%s %s for %s", k.RemoteAddr, k.State, round(k.Age))
	if len(k.Requests) > 0 {
		line += ": " + strings.Join(k.Requests, ", ")
	}
	return line
}

// Total is how long the shutdown took.
func (r Report) Total() time.Duration { return r.Delay + r.Drain + r.Kill }

// String returns the report as a person would read it, in several lines.
func (r Report) String() string {
	if r.Reason == "" {
		return "no shutdown yet"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s after %s (%s", r.Phase, round(r.Total()), r.Reason)
	if r.KillReason != "" {
		fmt.Fprintf(&b, "; killed: %s", r.KillReason)
	}
	fmt.Fprintf(&b, "): delay %s, drain %s, kill %s\n", round(r.Delay), round(r.Drain), round(r.Kill))
	fmt.Fprintf(&b, "  at the start: %d in flight, %d idle, %d new, %d receiving, %d hijacked\n",
		r.Start.Active, r.Start.Idle, r.Start.New, r.Start.Receiving, r.Start.Hijacked)
	if r.Start.HTTP2 > 0 {
		fmt.Fprintf(&b, "  of these HTTP/2: %d connections with %d streams; %s\n",
			r.Start.HTTP2, r.Start.Streams, r.HTTP2)
	}
	fmt.Fprintf(&b, "  then: %d accepted late, %d finished, %d idle closed, %d given up, %d hijacked left, %d killed",
		r.Late, r.Finished, r.Idle, r.GaveUp, r.Left, len(r.Killed))
	for _, k := range r.Killed {
		fmt.Fprintf(&b, "\n  killed %s", k)
	}
	return b.String()
}

// round shortens a duration to what a person wants to read.
func round(d time.Duration) time.Duration {
	switch {
	case d > time.Minute:
		return d.Round(time.Second)
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Nanosecond)
}
