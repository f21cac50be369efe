package graceful

import (
	"fmt"
	"strings"
	"time"
)

// A Phase is a step of a server's shutdown.
//
//	serving ──▶ delaying ──▶ draining ──▶ stopped
//	                             └─▶ killing ─▶ stopped
type Phase int32

const (
	// PhaseServing: no shutdown has begun. PhaseDelaying follows.
	PhaseServing Phase = iota

	// PhaseDelaying: the ready handler answers 503, and connections are still
	// accepted and served, until ShutdownDelay has passed. PhaseDraining follows.
	PhaseDelaying

	// PhaseDraining: no new client is admitted, requests that have reached the
	// server are answered, and connections are closed. PhaseStopped follows, or
	// PhaseKilling after a timeout or a kill.
	PhaseDraining

	// PhaseKilling: the connections that were left are being closed.
	// PhaseStopped follows.
	PhaseKilling

	// PhaseStopped: the shutdown is over. This phase is final.
	PhaseStopped
)

var phaseNames = [...]string{"serving", "delaying", "draining", "killing", "stopped"}

// String returns the phase's name in lower case, as "draining".
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return fmt.Sprintf("Phase(%d)", int32(p))
	}
	return phaseNames[p]
}

// Stats counts a server's open connections by their state. Each connection is
// counted in one of New, Receiving, Active, Idle and Hijacked. Those of a
// Listener are New, Active or Idle.
type Stats struct {
	Phase Phase // the phase at which they were counted

	New       int // accepted, and nothing was read from them yet
	Receiving int // part of a request has been read
	Active    int // a request is in progress
	Idle      int // waiting for the next request, or about to be closed
	Hijacked  int // taken over by a handler (WebSockets)

	// HTTP2 is how many of the connections speak HTTP/2, and Streams how many
	// requests are in progress on those. Both are 0 for a Listener.
	HTTP2   int
	Streams int
}

// Open returns the number of open connections.
func (s Stats) Open() int { return s.New + s.Receiving + s.Active + s.Idle + s.Hijacked }

// String returns the phase and the counts in one line.
func (s Stats) String() string {
	line := fmt.Sprintf("%s: %d in flight, %d idle, %d new, %d receiving, %d hijacked",
		s.Phase, s.Active, s.Idle, s.New, s.Receiving, s.Hijacked)
	if s.HTTP2 > 0 {
		line += fmt.Sprintf("; HTTP/2: %d connections, %d streams", s.HTTP2, s.Streams)
	}
	return line
}

// statsOf returns the Stats of a census.
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
// It is zero before the shutdown, describes the shutdown so far while it runs
// (the counts are then up to a second old), and is final once the server has
// stopped.
type Report struct {
	// Phase is the phase at which the report was made.
	Phase Phase

	// Reason is why the shutdown began: a signal's name, "Stop", "Shutdown",
	// "Close", the end of Start's context, an error of Accept.
	Reason string

	// KillReason is why connections were killed: the timeout, a second signal,
	// Close, the end of Shutdown's context. It is empty if none was.
	KillReason string

	// Began is when the shutdown began.
	Began time.Time

	// Delay, Drain and Kill are how long each phase took, or has taken so far.
	Delay, Drain, Kill time.Duration

	// Start counts the connections that were open when draining began.
	Start Stats

	// How many connections were accepted, and ended, since draining began.
	AcceptedLate     int // accepted: from the accept queue, or connected just then
	Finished         int // closed after their last response, or by the client
	IdleClosed       int // closed when nothing had come for IdleGrace
	IncompleteClosed int // closed because the rest of a request did not come
	HijackedLeft     int // hijacked connections that were not waited for

	// Killed lists the connections that were closed while the shutdown still
	// waited for them.
	Killed []KilledConn

	// HTTP2 says how HTTP/2 clients were told to leave.
	HTTP2 HTTP2Farewell
}

// HTTP2Farewell says how a server told its HTTP/2 clients to leave.
type HTTP2Farewell string

const (
	// HTTP2None: there was no HTTP/2 client to tell, or the server is a Listener.
	HTTP2None HTTP2Farewell = ""

	// HTTP2TwoSteps: each HTTP/2 connection got two GOAWAY frames, as RFC 9113,
	// section 6.8, recommends, so that no stream is lost.
	HTTP2TwoSteps HTTP2Farewell = "GOAWAY in two steps"

	// HTTP2Program: the program serves HTTP/2 by an implementation of its own
	// (http.Server.TLSNextProto), whose frames this package does not see. What it
	// sends is up to that implementation.
	HTTP2Program HTTP2Farewell = "GOAWAY left to the program's own HTTP/2 implementation"
)

// A KilledConn is a connection that was closed because the time for the shutdown
// was over.
type KilledConn struct {
	RemoteAddr string // the client's address; "unknown" if RemoteAddr blocks or is nil
	State      string // new, receiving, active, idle, ending or hijacked

	// Age is how long the connection had been in that state. For an active
	// connection it counts from the first byte of the request, if that is known.
	Age time.Duration

	// Requests lists the requests in progress, each as METHOD "/path". The
	// request's target is quoted as by strconv.Quote. Of a longer one the first 200
	// bytes are kept, followed by … and its length.
	Requests []string
}

// String returns the connection's address, state, age and requests in one line.
func (k KilledConn) String() string {
	line := fmt.Sprintf("%s %s for %s", k.RemoteAddr, k.State, round(k.Age))
	if len(k.Requests) > 0 {
		line += ": " + strings.Join(k.Requests, ", ")
	}
	return line
}

// Total returns how long the shutdown took, or has taken so far.
func (r Report) Total() time.Duration { return r.Delay + r.Drain + r.Kill }

// String returns the report as text of several lines, for a log. It has no
// newline at its end.
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
	fmt.Fprintf(&b, "  then: %d accepted late, %d finished, %d idle closed, %d incomplete given up, %d hijacked left open, %d killed",
		r.AcceptedLate, r.Finished, r.IdleClosed, r.IncompleteClosed, r.HijackedLeft, len(r.Killed))
	for _, k := range r.Killed {
		fmt.Fprintf(&b, "\n  killed %s", k)
	}
	return b.String()
}

// round rounds a duration to three or four digits.
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
