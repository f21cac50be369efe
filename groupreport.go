package graceful

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// GroupReport says how a Group's shutdown went, or how it goes. In JSON, the names are in
// lower case, durations are numbers of seconds with names that end in _seconds, errors
// are their texts, and Began is missing before the shutdown.
type GroupReport struct {
	Reason  string        `json:"reason"`         // why it began; "" before
	Began   time.Time     `json:"began,omitzero"` // when it began
	Took    time.Duration `json:"-"`              // until now, or until it was over; took_seconds
	Budget  time.Duration `json:"-"`              // the group's; 0 means none; budget_seconds
	Killed  bool          `json:"killed"`         // whether a kill cut it short
	Over    bool          `json:"over"`           // whether the report is final
	Entries []GroupEntry  `json:"entries"`        // servers, workers, cleanup, servers that stop last: the order in which they are shut down
}

// GroupEntry describes the shutdown of one server, worker or cleanup function.
type GroupEntry struct {
	Kind    string        `json:"kind"`    // "server", "worker" or "cleanup"
	Name    string        `json:"name"`    // as it was added
	Outcome GroupOutcome  `json:"outcome"` // whether it has returned, and how
	Took    time.Duration `json:"-"`       // from when it was told to end (a cleanup: to begin); 0 if it ended before, or did not start; took_seconds
	Errors  []error       `json:"-"`       // its errors, without its name; errors
	Detail  string        `json:"detail"`  // a server's connections and the errors of its serve functions, or the busy workers of a Pool
}

// GroupOutcome says whether a server, worker or cleanup function of a Group has
// returned, and how.
type GroupOutcome string

// The outcomes of a server, worker or cleanup function.
const (
	GroupNotStarted GroupOutcome = "not started"
	GroupRunning    GroupOutcome = "running"     // has not been told to end
	GroupEnding     GroupOutcome = "ending"      // has been told to end, and has not returned
	GroupDone       GroupOutcome = "done"        // returned without an error
	GroupFailed     GroupOutcome = "failed"      // returned an error, panicked, or did not start
	GroupCut        GroupOutcome = "cut"         // returned only after its time was up
	GroupLeftBehind GroupOutcome = "left behind" // had not returned when the next step began
)

// Report returns the report of the group's shutdown so far. It may be called at
// any time and from any goroutine. Once Start's channel is closed the report is
// final.
func (g *Group) Report() GroupReport {
	g.mu.Lock()
	r := GroupReport{
		Reason: g.reason,
		Began:  g.began,
		Took:   g.took,
		Budget: g.Budget,
		Killed: !g.killTime.IsZero(),
		Over:   g.state == groupStopped,
	}
	if !r.Over && r.Reason != "" {
		r.Took = time.Since(g.began)
	}
	tasks := g.tasksLocked()
	for _, t := range tasks {
		r.Entries = append(r.Entries, t.entryLocked())
	}
	g.mu.Unlock()
	// Outside the lock, since it calls methods of members.
	for i, t := range tasks {
		r.Entries[i].Detail = t.describe()
	}
	return r
}

// MarshalJSON writes the durations as numbers of seconds.
func (r GroupReport) MarshalJSON() ([]byte, error) {
	type plain GroupReport
	r.Entries = append([]GroupEntry{}, r.Entries...) // [], not null
	return json.Marshal(struct {
		plain
		Took   seconds `json:"took_seconds"`
		Budget seconds `json:"budget_seconds"`
	}{plain(r), seconds(r.Took), seconds(r.Budget)})
}

// MarshalJSON writes Took as a number of seconds, and the errors as their texts.
func (e GroupEntry) MarshalJSON() ([]byte, error) {
	type plain GroupEntry
	texts := make([]string, len(e.Errors))
	for i, err := range e.Errors {
		texts[i] = err.Error()
	}
	return json.Marshal(struct {
		plain
		Took   seconds  `json:"took_seconds"`
		Errors []string `json:"errors"`
	}{plain(e), seconds(e.Took), texts})
}

// LogValue returns the report as a group: the reason, how long the shutdown took, its
// budget, whether it was killed, and for each outcome the names of what has it.
func (r GroupReport) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("reason", r.Reason),
		slog.Duration("took", r.Took),
		slog.Bool("killed", r.Killed),
	}
	if r.Budget > 0 {
		attrs = append(attrs, slog.Duration("budget", r.Budget))
	}
	names := make(map[GroupOutcome][]string)
	for _, e := range r.Entries {
		names[e.Outcome] = append(names[e.Outcome], e.Name)
	}
	for _, o := range slices.Sorted(maps.Keys(names)) {
		attrs = append(attrs, slog.Any(strings.ReplaceAll(string(o), " ", "_"), names[o]))
	}
	return slog.GroupValue(attrs...)
}

// String returns the report as text: a line about the shutdown, and a table with
// a line for each server, worker and cleanup function.
func (r GroupReport) String() string {
	var b strings.Builder
	if r.Reason == "" {
		b.WriteString("running\n")
	} else {
		fmt.Fprintf(&b, "shutdown at %s: %s; ", r.Began.Format(time.DateTime), r.Reason)
		took := r.Took.Round(time.Millisecond).String()
		if r.Budget > 0 {
			took += " of " + r.Budget.String()
		}
		switch {
		case !r.Over:
			b.WriteString("under way for " + took)
		case r.Killed:
			b.WriteString("killed, took " + took)
		default:
			b.WriteString("took " + took)
		}
		b.WriteString("\n")
	}
	// Notes are the last column, so that a long note does not widen a column.
	// Trailing blanks are removed, since an example's Output cannot have them.
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAME\tTOOK\tOUTCOME\tNOTE")
	for _, e := range r.Entries {
		took := "-"
		if e.Took > 0 {
			took = e.Took.Round(time.Millisecond).String()
		}
		notes := make([]string, 0, 2)
		for _, err := range e.Errors {
			notes = append(notes, firstLine(err))
		}
		if e.Detail != "" && e.Outcome != GroupLeftBehind {
			notes = append(notes, e.Detail)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Kind, e.Name, took, e.Outcome, strings.Join(notes, "; "))
	}
	w.Flush()
	for line := range strings.Lines(table.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

// summary counts the outcomes: "3 done, 1 left behind (mail)".
func (r GroupReport) summary() string {
	count := map[GroupOutcome]int{}
	var left []string
	for _, e := range r.Entries {
		count[e.Outcome]++
		if e.Outcome == GroupLeftBehind {
			left = append(left, e.Name)
		}
	}
	var parts []string
	for _, o := range []GroupOutcome{GroupDone, GroupFailed, GroupCut, GroupLeftBehind, GroupNotStarted} {
		if count[o] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[o], o))
		}
	}
	s := strings.Join(parts, ", ")
	if left != nil {
		s += " (" + strings.Join(left, ", ") + ")"
	}
	return s
}

func (t *groupTask) entryLocked() GroupEntry {
	e := GroupEntry{Kind: t.kind, Name: t.name, Errors: slices.Clone(t.errs)}
	switch {
	case t.left:
		e.Outcome = GroupLeftBehind
	case t.parts > 0 && t.asked.IsZero():
		e.Outcome = GroupRunning
	case t.parts > 0:
		e.Outcome = GroupEnding
	case t.cut:
		e.Outcome = GroupCut
	case len(t.errs) > 0:
		e.Outcome = GroupFailed
	case !t.started:
		e.Outcome = GroupNotStarted
	default:
		e.Outcome = GroupDone
	}
	switch {
	case !t.started, t.asked.IsZero(), !t.ended.IsZero() && t.ended.Before(t.asked):
	case t.ended.IsZero():
		e.Took = time.Since(t.asked)
	default:
		e.Took = t.ended.Sub(t.asked)
	}
	return e
}

// describe returns the summary of the task's member or Pool, followed by the
// errors with which its serve functions ended.
func (t *groupTask) describe() string {
	t.g.mu.Lock()
	detail, notes := t.detail, slices.Clone(t.stopErrors)
	t.g.mu.Unlock()
	own := ""
	switch {
	case t.member != nil:
		own = t.member.groupSummary()
	case detail != nil:
		own = detail()
	}
	if own != "" {
		notes = slices.Insert(notes, 0, own)
	}
	return strings.Join(notes, "; ")
}

// errorsLocked joins the errors of all tasks, with their names, in Wait's order.
func (g *Group) errorsLocked() error {
	var errs []error
	add := func(t *groupTask) {
		for _, err := range t.errs {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if g.first != nil {
		add(g.first)
	}
	for _, t := range g.tasksLocked() {
		if t != g.first {
			add(t)
		}
	}
	return errors.Join(errs...)
}

// tasksLocked returns all tasks in the order in which they are shut down.
func (g *Group) tasksLocked() []*groupTask {
	cleanups := slices.Clone(g.cleanups)
	slices.Reverse(cleanups)
	servers, last := g.split()
	return slices.Concat(servers, g.workers, cleanups, last)
}

// names returns the names of the tasks that are not over.
func (g *Group) names(tasks []*groupTask) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for _, t := range tasks {
		if t.parts > 0 {
			names = append(names, t.name)
		}
	}
	return names
}

// firstLine returns the first line of err's text, without a stack, for example.
func firstLine(err error) string {
	s := err.Error()
	for i, c := range s {
		if c == '\n' {
			return s[:i]
		}
	}
	return s
}

// log queues e for the log. It does not block.
func (g *Group) log(e logEvent) { g.lines.add(e) }

// write writes e. It blocks as long as the log does.
func (g *Group) write(e logEvent) {
	e.format = "graceful: " + e.format
	logSink{g.Slog, g.LogFunc, g.Logger}.log(e)
}
