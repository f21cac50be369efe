package graceful

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"slices"
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

// MarshalText returns the phase's name. A value that is not a phase is an error.
func (p Phase) MarshalText() ([]byte, error) {
	if p < 0 || int(p) >= len(phaseNames) {
		return nil, fmt.Errorf("graceful: %d is not a phase", int32(p))
	}
	return []byte(phaseNames[p]), nil
}

// UnmarshalText sets p to the phase that has text as its name. Another text is an
// error.
func (p *Phase) UnmarshalText(text []byte) error {
	i := slices.Index(phaseNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("graceful: there is no phase %s", quote(string(text)))
	}
	*p = Phase(i)
	return nil
}

// LogValue returns the phase's name.
func (p Phase) LogValue() slog.Value { return slog.StringValue(p.String()) }

func phaseAttr(p Phase) slog.Attr { return slog.Any("phase", p) }

// Stats counts a server's open connections by their state. Each connection is
// counted in one of New, Receiving, Active, Idle and Hijacked. Those of a
// Listener are New, Active or Idle.
type Stats struct {
	Phase Phase `json:"phase"` // the phase at which they were counted

	New       int `json:"new"`       // accepted, and nothing was read from them yet
	Receiving int `json:"receiving"` // part of a request has been read
	Active    int `json:"in_flight"` // a request is in progress
	Idle      int `json:"idle"`      // waiting for the next request, or about to be closed
	Hijacked  int `json:"hijacked"`  // taken over by a handler (WebSockets)

	// HTTP2 is how many of the connections speak HTTP/2, and Streams how many
	// requests are in progress on those. Both are 0 for a Listener.
	HTTP2   int `json:"http2_connections"`
	Streams int `json:"streams"`
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

// LogValue returns the phase and the counts as a group, those of HTTP/2 only if there
// are any.
func (s Stats) LogValue() slog.Value {
	attrs := []slog.Attr{
		phaseAttr(s.Phase),
		slog.Int("in_flight", s.Active),
		slog.Int("idle", s.Idle),
		slog.Int("new", s.New),
		slog.Int("receiving", s.Receiving),
		slog.Int("hijacked", s.Hijacked),
	}
	if s.HTTP2 > 0 {
		attrs = append(attrs, slog.Int("http2_connections", s.HTTP2), slog.Int("streams", s.Streams))
	}
	return slog.GroupValue(attrs...)
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
//
// In JSON, the names are in lower case, durations are numbers of seconds with names
// that end in _seconds, and Began is missing before the shutdown.
type Report struct {
	// Phase is the phase at which the report was made.
	Phase Phase `json:"phase"`

	// Reason is why the shutdown began: a signal's name, "Stop", "Shutdown",
	// "Close", the end of Start's context, an error of Accept.
	Reason string `json:"reason"`

	// KillReason is why connections were killed: the timeout, a second signal,
	// Close, the end of Shutdown's context. It is empty if none was.
	KillReason string `json:"kill_reason"`

	// Began is when the shutdown began.
	Began time.Time `json:"began,omitzero"`

	// Delay, Drain and Kill are how long each phase took, or has taken so far.
	Delay time.Duration `json:"-"` // delay_seconds
	Drain time.Duration `json:"-"` // drain_seconds
	Kill  time.Duration `json:"-"` // kill_seconds

	// Start counts the connections that were open when draining began.
	Start Stats `json:"start"`

	// How many connections were accepted, and ended, since draining began.
	AcceptedLate     int `json:"accepted_late"`     // accepted: from the accept queue, or connected just then
	Finished         int `json:"finished"`          // closed after their last response, or by the client
	IdleClosed       int `json:"idle_closed"`       // closed when nothing had come for IdleGrace
	IncompleteClosed int `json:"incomplete_closed"` // closed because the rest of a request did not come
	HijackedLeft     int `json:"hijacked_left"`     // hijacked connections that were not waited for

	// Killed lists the connections that were closed while the shutdown still
	// waited for them.
	Killed []KilledConn `json:"killed"`

	// HTTP2 says how HTTP/2 clients were told to leave.
	HTTP2 HTTP2Farewell `json:"http2"`
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
	RemoteAddr string `json:"remote_addr"` // the client's address; "unknown" if RemoteAddr blocks or is nil
	State      string `json:"state"`       // new, receiving, active, idle, ending or hijacked

	// Age is how long the connection had been in that state. For an active
	// connection it counts from the first byte of the request, if that is known.
	Age time.Duration `json:"-"` // age_seconds

	// Requests lists the requests in progress, each as METHOD "/path". The
	// request's target is quoted as by strconv.Quote. Of a longer one the first 200
	// bytes are kept, followed by … and its length.
	Requests []string `json:"requests"`
}

// connAttrs returns what LogValue does without the requests.
func (k KilledConn) connAttrs() []slog.Attr {
	return []slog.Attr{
		slog.String("remote_addr", k.RemoteAddr),
		slog.String("state", k.State),
		slog.Duration("age", k.Age),
	}
}

// LogValue returns the fields as a group, with the names that they have in JSON, but
// for age.
func (k KilledConn) LogValue() slog.Value {
	attrs := k.connAttrs()
	if len(k.Requests) > 0 {
		attrs = append(attrs, slog.Any("requests", k.Requests))
	}
	return slog.GroupValue(attrs...)
}

// MarshalJSON writes Age as age_seconds.
func (k KilledConn) MarshalJSON() ([]byte, error) {
	type plain KilledConn
	k.Requests = append([]string{}, k.Requests...) // [], not null
	return json.Marshal(struct {
		plain
		Age seconds `json:"age_seconds"`
	}{plain(k), seconds(k.Age)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (k *KilledConn) UnmarshalJSON(text []byte) error {
	type plain KilledConn
	v := struct {
		*plain
		Age *seconds `json:"age_seconds"`
	}{(*plain)(k), (*seconds)(&k.Age)}
	return json.Unmarshal(text, &v)
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

// MarshalJSON writes the durations as numbers of seconds.
func (r Report) MarshalJSON() ([]byte, error) {
	type plain Report
	r.Killed = append([]KilledConn{}, r.Killed...) // [], not null
	return json.Marshal(struct {
		plain
		Delay seconds `json:"delay_seconds"`
		Drain seconds `json:"drain_seconds"`
		Kill  seconds `json:"kill_seconds"`
	}{plain(r), seconds(r.Delay), seconds(r.Drain), seconds(r.Kill)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Report) UnmarshalJSON(text []byte) error {
	type plain Report
	v := struct {
		*plain
		Delay *seconds `json:"delay_seconds"`
		Drain *seconds `json:"drain_seconds"`
		Kill  *seconds `json:"kill_seconds"`
	}{(*plain)(r), (*seconds)(&r.Delay), (*seconds)(&r.Drain), (*seconds)(&r.Kill)}
	return json.Unmarshal(text, &v)
}

// LogValue returns the report as a group: the fields with the names that they have in
// JSON, durations as such, and of Killed the number.
func (r Report) LogValue() slog.Value {
	attrs := []slog.Attr{
		phaseAttr(r.Phase),
		slog.String("reason", r.Reason),
	}
	if r.KillReason != "" {
		attrs = append(attrs, slog.String("kill_reason", r.KillReason))
	}
	attrs = append(attrs,
		slog.Duration("delay", r.Delay),
		slog.Duration("drain", r.Drain),
		slog.Duration("kill", r.Kill),
		slog.Any("start", r.Start),
		slog.Int("accepted_late", r.AcceptedLate),
		slog.Int("finished", r.Finished),
		slog.Int("idle_closed", r.IdleClosed),
		slog.Int("incomplete_closed", r.IncompleteClosed),
		slog.Int("hijacked_left", r.HijackedLeft),
		slog.Int("killed", len(r.Killed)),
	)
	if r.HTTP2 != HTTP2None {
		attrs = append(attrs, slog.String("http2", string(r.HTTP2)))
	}
	return slog.GroupValue(attrs...)
}

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

// seconds is a duration that JSON has as a number of seconds.
type seconds time.Duration

func (s seconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(s).Seconds())
}

func (s *seconds) UnmarshalJSON(text []byte) error {
	var f float64
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	ns := math.Round(f * 1e9)
	if math.Abs(ns) > math.MaxInt64/2 {
		return fmt.Errorf("graceful: %g s is out of range", f)
	}
	*s = seconds(ns)
	return nil
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
