package traffic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// An Outcome is what became of a request.
type Outcome uint8

const (
	Answered Outcome = iota // completely and correctly
	Refused                 // no byte of it was sent: the connection was refused; or the server handed it back (HTTP/2, WebSocket)
	Lost                    // bytes of it were sent, and no complete response came
	Aborted                 // the end of Start's context cut it off
)

func (o Outcome) String() string {
	return [...]string{"answered", "refused", "lost", "aborted"}[o]
}

// A Sample is one request. ID and Cause are empty if it was answered.
type Sample struct {
	Start, End time.Duration // since Result.Began
	Outcome    Outcome
	ID, Cause  string
}

// A Result is what happened in a run. Sent is Answered and Lost and Aborted
// together.
type Result struct {
	Kind         Kind
	Clients      int
	Began, Ended time.Time

	Sent     int // requests of which at least one byte was sent
	Answered int
	Aborted  int
	Refused  map[string]int // by reason: "refused", "handshake", "timeout", "replay refused", "close frame 1001", ...
	Lost     map[string]int // by cause: "reset", "EOF", "truncated", "timeout", "wrong", "status 503", ...
	Doubled  int            // answers without a request, or to one that was given up
	Closed   int            // connections whose end a client saw while it was thinking

	// Resent counts the connections whose first SYN the server's kernel
	// dropped, so that they waited for a second. It is known on Linux (amd64,
	// arm64), and when the run has ended.
	Resent int

	Statuses map[int]int   // of the responses that came completely (not of WebSocket and event streams)
	Longest  time.Duration // that the body of one of them took to come

	Slowest time.Duration     // that an answered request took, dialling included
	Samples []Sample          // in the order of their ends
	Errors  map[string]string // the first error of each cause, in full
}

// add counts s, whose error was err.
func (r *Result) add(s Sample, err error) {
	r.Samples = append(r.Samples, s)
	switch s.Outcome {
	case Answered:
		r.Sent++
		r.Answered++
		r.Slowest = max(r.Slowest, s.End-s.Start)
	case Refused:
		r.Refused[s.Cause]++
	case Lost:
		r.Sent++
		r.Lost[s.Cause]++
		if s.Cause == causeDoubled {
			r.Doubled++
		}
	case Aborted:
		r.Sent++
		r.Aborted++
	}
	if _, ok := r.Errors[s.Cause]; !ok && err != nil {
		r.Errors[s.Cause] = err.Error()
	}
}

// Paused returns how many of the lost requests Load.Window excuses.
func (r *Result) Paused() int { return r.Lost[causePaused] }

// LostCount returns how many requests were lost, of whatever cause.
func (r *Result) LostCount() int { return total(r.Lost) }

// RefusedCount returns how many connections were refused, for whatever reason.
func (r *Result) RefusedCount() int { return total(r.Refused) }

// LostIDs returns the ids of the requests that were lost.
func (r *Result) LostIDs() []string {
	var ids []string
	for _, s := range r.Samples {
		if s.Outcome == Lost {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// Latency returns the q-quantiles (0 to 1) of the time that the requests
// answered in [from, to) since Began took, dialling included; zeros if there
// were none.
func (r *Result) Latency(from, to time.Duration, q ...float64) []time.Duration {
	var took []time.Duration
	for _, s := range r.Samples {
		if s.Outcome == Answered && s.End >= from && s.End < to {
			took = append(took, s.End-s.Start)
		}
	}
	slices.Sort(took)
	out := make([]time.Duration, len(q))
	for i, q := range q {
		if len(took) > 0 {
			out[i] = took[min(int(q*float64(len(took))), len(took)-1)]
		}
	}
	return out
}

// String returns one line such as
//
//	keepalive: 64 clients, 1020 sent, 1000 answered, 20 lost (12 EOF, 8 reset), 64 refused
func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d clients, %d sent, %d answered, %d lost", r.Kind, r.Clients, r.Sent, r.Answered, r.LostCount())
	causes := func(m map[string]int) {
		var parts []string
		for _, c := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, fmt.Sprintf("%d %s", m[c], c))
		}
		if len(parts) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(parts, ", "))
		}
	}
	causes(r.Lost)
	fmt.Fprintf(&b, ", %d refused", r.RefusedCount())
	causes(r.Refused)
	if r.Aborted > 0 {
		fmt.Fprintf(&b, ", %d aborted", r.Aborted)
	}
	fmt.Fprintf(&b, ", slowest %v", r.Slowest.Round(time.Millisecond/10))
	return b.String()
}

func total(m map[string]int) int {
	n := 0
	for _, v := range m {
		n += v
	}
	return n
}
