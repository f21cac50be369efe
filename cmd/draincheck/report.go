package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// schemaVersion is that of docs/draincheck.schema.json. It changes when a field
// goes, or comes to mean something else.
const schemaVersion = 1

// A Report is everything that a check found; -json writes it as it is. Times
// are in milliseconds.
type Report struct {
	Schema  int       `json:"schema_version"`
	Version string    `json:"draincheck_version"`
	Verdict Verdict   `json:"verdict"`
	Command string    `json:"command"`
	When    time.Time `json:"when"`
	System  string    `json:"system"`

	Rounds  int     `json:"rounds"`
	Clients int     `json:"clients_per_kind"`
	Rate    float64 `json:"rate_per_kind"`
	Replace bool    `json:"replace"`
	Via     string  `json:"via,omitempty"`
	Demo    bool    `json:"demo"`

	Builds   []Build    `json:"builds,omitempty"` // of results: a run may go on where another build stopped
	Subjects []*Subject `json:"subjects"`
}

// A Build is the commit that this library was at, from one stop on.
type Build struct {
	Commit string `json:"commit"` // "" is not known
	Stop   int    `json:"stop"`   // the first is 1
}

// A Subject is one server, and what its stops cost.
type Subject struct {
	Name    string  `json:"name"`
	Foreign bool    `json:"compared_with"` // a loss of it does not fail the check
	Stops   []Stop  `json:"stops"`
	Closed  Spread  `json:"listener_closed_ms"` // of the stops
	Exit    Spread  `json:"exit_ms"`            // of the stops
	Lanes   []*Lane `json:"kinds"`

	// Losses are the first of each kind and cause, of a subject that must not
	// lose any.
	Losses []Loss `json:"losses,omitempty"`

	// Advice says what the causes mean, and what to do.
	Advice []Advice `json:"advice,omitempty"`

	// Notes are what else there is to know of the check.
	Notes []string `json:"notes,omitempty"`

	// Clients and Rate are the load, where it had to be lowered.
	Clients int     `json:"clients_per_kind,omitempty"`
	Rate    float64 `json:"rate_per_kind,omitempty"`

	probed bool // it is known which kinds it takes
	via    bool // it is behind a balancer
}

// A Stop is one stop of a server.
type Stop struct {
	Signal string    `json:"signal"`
	Began  time.Time `json:"began"`
	Closed float64   `json:"listener_closed_ms"` // after the signal
	Exit   float64   `json:"exit_ms"`            // after the signal
	Status string    `json:"exit_status"`
	Killed bool      `json:"killed"` // it had to be, after -grace

	KilledAfter float64  `json:"killed_after_ms,omitempty"` // after the signal
	Left        []string `json:"left_behind,omitempty"`     // processes that outlived it
}

// causeKilled is the cause of what was lost when the server was killed after
// -grace.
const causeKilled = "killed"

// cause returns the cause of a loss, in a load that began so long before the
// signal.
func (s Stop) cause(m traffic.Sample, signal time.Duration) string {
	if s.Killed && ms(m.End-signal) >= s.KilledAfter {
		return causeKilled
	}
	return m.Cause
}

// A Spread is what a time was in several stops.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// String returns "1,059 ms (145 to 1,092)".
func (s Spread) String() string {
	out := thousands(int(math.Round(s.Median))) + " ms"
	if math.Round(s.Min) != math.Round(s.Max) {
		out += fmt.Sprintf(" (%s to %s)", thousands(int(math.Round(s.Min))), thousands(int(math.Round(s.Max))))
	}
	return out
}

// A Loss is a lost request, by a server that must not lose any.
type Loss struct {
	Stop     int      `json:"stop"` // the first is 1
	Kind     string   `json:"kind"`
	Began    float64  `json:"began_ms"` // after the signal, as is Lost
	Lost     float64  `json:"lost_ms"`
	Cause    string   `json:"cause"`
	ID       string   `json:"id"`
	Balancer []string `json:"balancer,omitempty"` // what it wrote of the request
}

// sameLosses is how many losses of the same kind and cause are told.
const sameLosses = 3

// noteLosses takes up what res, of s's last stop, says was lost of the kind.
func (s *Subject) noteLosses(res *traffic.Result, kind string, d deployment) {
	stop := s.Stops[len(s.Stops)-1]
	signal := stop.Began.Sub(res.Began)
	same := map[string]int{}
	for _, l := range s.Losses {
		if l.Kind == kind {
			same[l.Cause]++
		}
	}
	for _, m := range res.Samples {
		cause := stop.cause(m, signal)
		if m.Outcome == traffic.Lost && same[cause] < sameLosses {
			same[cause]++
			s.Losses = append(s.Losses, Loss{
				Stop: len(s.Stops), Kind: kind, Began: ms(m.Start - signal), Lost: ms(m.End - signal),
				Cause: cause, ID: m.ID, Balancer: d.said(m.ID),
			})
		}
	}
}

// String returns one line about the loss.
func (l Loss) String() string {
	line := fmt.Sprintf("stop %d, %s: begun %.1f ms and lost %.1f ms after the signal (%s)", l.Stop, l.Kind, l.Began, l.Lost, l.Cause)
	for _, said := range l.Balancer {
		line += "; the balancer: " + said
	}
	return line
}

// A Lane is what happened to one kind of traffic, over all stops.
type Lane struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Skipped string `json:"skipped,omitempty"` // why there was none of it
	Status  int    `json:"status,omitempty"`  // with which the server answers

	Sent     int               `json:"sent"`
	Answered int               `json:"answered"`
	Refused  map[string]int    `json:"refused"`
	Lost     map[string]int    `json:"lost"`
	Early    int               `json:"lost_before_the_stop"` // of the lost: the stop's doing they are not
	Resent   int               `json:"waited_for_backlog"`   // connections that waited for a second, because the accept queue was full
	Doubled  int               `json:"doubled"`
	Errors   map[string]string `json:"errors,omitempty"` // the first of each cause

	Before Latency `json:"latency_before"`
	During Latency `json:"latency_during"`

	// Timeline counts outcomes by when they came, in bins of binMS from
	// firstMS, relative to the signal, over all stops.
	Timeline []Bin `json:"timeline"`

	any            bool                    // answers are not traffic.Handler's
	tls            bool                    // over TLS, because the server wants it
	kind           traffic.Kind            // instead of the lane's; the zero Kind: the lane's
	before, during *hdrhistogram.Histogram // how long answers took, in microseconds
}

func newLane(l lane) *Lane {
	took := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, longest.Microseconds(), 3) }
	return &Lane{
		Name: l.Name, About: l.about(),
		Refused: map[string]int{}, Lost: map[string]int{}, Errors: map[string]string{},
		before: took(), during: took(),
	}
}

// longest is the longest time that a request may take.
const longest = 10 * time.Minute

// Latency is how long answered requests took.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// A Bin is what came in one bin of time.
type Bin struct {
	MS       int `json:"ms"` // its beginning, after the signal
	Answered int `json:"answered,omitempty"`
	Refused  int `json:"refused,omitempty"`
	Lost     int `json:"lost,omitempty"`
}

const (
	binMS   = 10
	firstMS = -500
	lastMS  = 30_000
)

func (c *config) newReport(args []string) *Report {
	return &Report{
		Schema: schemaVersion, Version: version(),
		Command: strings.Join(args, " "), When: time.Now().UTC().Truncate(time.Second),
		System: runtime.GOOS + "/" + runtime.GOARCH + ", " + runtime.Version(),
		Rounds: c.rounds, Clients: c.clients, Rate: c.rate, Replace: c.replace, Via: c.via, Demo: c.demo,
	}
}

// add counts a run of l around s. The latency before the stop is that of the
// last warm: what came earlier is the clients' start.
func (l *Lane) add(res *traffic.Result, s Stop, warm time.Duration) {
	l.Sent += res.Sent
	l.Answered += res.Answered
	l.Doubled += res.Doubled
	for cause, n := range res.Refused {
		l.Refused[cause] += n
	}
	l.Resent += res.Resent
	for cause, text := range res.Errors {
		if _, ok := l.Errors[cause]; !ok {
			l.Errors[cause] = text
		}
	}
	signal := s.Began.Sub(res.Began)
	bins := map[int]Bin{}
	for _, b := range l.Timeline {
		bins[b.MS] = b
	}
	for _, m := range res.Samples {
		if m.Outcome == traffic.Lost {
			l.Lost[s.cause(m, signal)]++
		}
		if m.Outcome == traffic.Answered {
			switch {
			case m.End >= signal:
				l.during.RecordValue((m.End - m.Start).Microseconds())
			case m.End >= signal-warm:
				l.before.RecordValue((m.End - m.Start).Microseconds())
			}
		}
		if m.Outcome == traffic.Lost && m.End < signal {
			l.Early++
		}
		at := int((m.End - signal).Milliseconds())
		at -= ((at % binMS) + binMS) % binMS
		if at < firstMS || at > lastMS {
			continue
		}
		b := bins[at]
		b.MS = at
		switch m.Outcome {
		case traffic.Answered:
			b.Answered++
		case traffic.Refused:
			b.Refused++
		case traffic.Lost:
			b.Lost++
		}
		bins[at] = b
	}
	l.Timeline = sortedBins(bins)
}

// sortedBins returns bins by their beginnings.
func sortedBins(bins map[int]Bin) (sorted []Bin) {
	for _, at := range slices.Sorted(maps.Keys(bins)) {
		sorted = append(sorted, bins[at])
	}
	return sorted
}

// finish works out what needs all rounds so far.
func (s *Subject) finish() {
	for _, l := range s.Lanes {
		l.finish()
	}
	s.spreads()
	s.Advice = s.advise()
}

func (s *Subject) spreads() {
	s.Closed = s.spread(func(st Stop) float64 { return st.Closed })
	s.Exit = s.spread(func(st Stop) float64 { return st.Exit })
}

// note adds a sentence to what there is to know of s.
func (s *Subject) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// finish works out what needs all rounds so far.
func (l *Lane) finish() {
	l.Before, l.During = latencyOf(l.before), latencyOf(l.during)
}

func latencyOf(took *hdrhistogram.Histogram) Latency {
	at := func(q float64) float64 { return float64(took.ValueAtQuantile(q)) / 1000 }
	return Latency{at(50), at(99), float64(took.Max()) / 1000}
}

// totals of a subject or a lane.
func (l *Lane) lost() int    { return sum(l.Lost) }
func (l *Lane) refused() int { return sum(l.Refused) }

func (s *Subject) sent() (n int) {
	for _, l := range s.Lanes {
		n += l.Sent
	}
	return n
}

func (s *Subject) lost() (n int) {
	for _, l := range s.Lanes {
		n += l.lost()
	}
	return n
}

func (s *Subject) lostByKill() (n int) {
	for _, l := range s.Lanes {
		n += l.Lost[causeKilled]
	}
	return n
}

func (s *Subject) lostBefore() (n int) {
	for _, l := range s.Lanes {
		n += l.Early
	}
	return n
}

// skipped says which kinds of traffic were skipped, and why: one line for each
// reason.
func (s *Subject) skipped() []string {
	var whys []string
	names := map[string][]string{}
	for _, l := range s.Lanes {
		if l.Skipped == "" {
			continue
		}
		if names[l.Skipped] == nil {
			whys = append(whys, l.Skipped)
		}
		names[l.Skipped] = append(names[l.Skipped], l.Name)
	}
	for i, why := range whys {
		whys[i] = strings.Join(names[why], ", ") + ": " + why
	}
	return whys
}

// spread returns the spread over the stops of what get returns of each.
func (s *Subject) spread(get func(Stop) float64) Spread {
	var all []float64
	for _, st := range s.Stops {
		all = append(all, get(st))
	}
	if len(all) == 0 {
		return Spread{}
	}
	slices.Sort(all)
	median := (all[len(all)/2] + all[(len(all)-1)/2]) / 2
	return Spread{Median: median, Min: all[0], Max: all[len(all)-1]}
}

// unheeded returns in how many of the stops the signal ended s, because it has no
// handler for it: a shell says 128 and the signal's number.
func (s *Subject) unheeded() (n int) {
	for _, st := range s.Stops {
		if !st.Killed && st.Signal != "SIGKILL" && (strings.HasPrefix(st.Status, "signal: ") || st.Status == "143" && st.Signal == "SIGTERM") {
			n++
		}
	}
	return n
}

// killed returns in how many of the stops s had to be killed.
func (s *Subject) killed() (n int) {
	for _, st := range s.Stops {
		if st.Killed {
			n++
		}
	}
	return n
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// byCount returns m's causes, the most frequent first.
func byCount(m map[string]int) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
}
