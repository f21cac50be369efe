package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// resultsCommand is the first argument that has the proof made.
const resultsCommand = "results"

// passStops is how often each server is stopped in a mode before it is the next
// mode's turn: what is written grows everywhere at the same time, and a run that
// is cut off has all of it.
const passStops = 5

// resultsMain makes docs/results.md, and results/ beside it with a picture and
// the numbers of each mode. It takes hours: what was found so far is kept, and
// another run goes on from there.
func resultsMain(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet("draincheck "+resultsCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("o", "docs", "the `directory` for results.md and its pictures")
	only := fs.String("modes", "", "the `modes` to run, separated by commas; empty: all")
	textOnly := fs.Bool("text", false, "only make results.md and the pictures again, of the numbers that are there")
	fresh := fs.Bool("fresh", false, "begin again, instead of going on from the numbers that are there")
	c := &config{demo: true, fixed: true, path: "/", health: "/ready", method: "GET", signal: syscall.SIGTERM, grace: 15 * time.Second}
	fs.IntVar(&c.rounds, "rounds", 20, "how many times each server is stopped in each mode, at the least")
	fs.IntVar(&c.requests, "requests", 30_000, "how many requests of each kind each server gets in each mode, at the least;\nbehind a balancer half as many")
	fs.IntVar(&c.clients, "clients", 32, "how many clients each kind of traffic has")
	fs.Float64Var(&c.rate, "rate", 250, "how many requests per second each kind of traffic may begin; behind a balancer half as many")
	fs.DurationVar(&c.warm, "warm", 0, "how long the load lasts before each stop (default as long as -requests need at -rate)")
	fs.DurationVar(&c.total, "timeout", 6*time.Hour, "how long all of it may take")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, c.total)
	defer cancel()
	c.lanes = slices.DeleteFunc(slices.Clone(lanes), func(l lane) bool { return l.foreign })
	if err := c.bounds(); err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitUsage
	}
	wanted, err := modesByName(*only, *textOnly)
	if err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitUsage
	}
	collectLess()
	if *textOnly {
		err = drawAgain(wanted, *dir)
	} else {
		err = c.contests(ctx, wanted, *dir, *fresh, stderr)
	}
	err = errors.Join(err, writeResults(*dir))
	if err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitLost
	}
	return 0
}

// A contest is a mode in which servers are being compared.
type contest struct {
	mode    mode
	c       *config
	rep     *Report
	dir     string
	files   string   // of the others; "": none
	backend *process // behind the others; nil: none
}

// compete makes the servers of the mode k's subjects.
func (k *contest) compete() error {
	if !k.mode.others {
		var names []string
		for _, one := range contenders {
			if k.mode.known == "" || one.name == "net-http" || one.name == "graceful" {
				names = append(names, one.name)
			}
		}
		return k.c.contest(names...)
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	if k.files, err = os.MkdirTemp("", "draincheck-"); err != nil {
		return err
	}
	if k.backend, err = startBackend(ports[0]); err != nil {
		return err
	}
	return k.c.compete(k.backend.addr(), k.files)
}

// end ends what k has started besides its subjects.
func (k *contest) end() {
	if k.backend != nil {
		k.backend.kill()
	}
	if k.files != "" {
		os.RemoveAll(k.files)
	}
}

// longEnough returns how long the load has to last before each stop, so that the
// stops that are wanted make the requests that are wanted.
func (c *config) longEnough() time.Duration {
	const least = 1500 * time.Millisecond
	if c.rate == 0 || c.requests == 0 {
		return least
	}
	perStop := float64(c.requests) / float64(c.rounds) / c.rate
	return max(least, time.Duration(perStop*1.05*float64(time.Second)))
}

// newContest goes on where the last run of m stopped, unless it is to be fresh.
func (c *config) newContest(m mode, dir string, fresh bool) (*contest, error) {
	one := *c
	one.via, one.replace, one.subjects = m.via, m.replace, nil
	switch {
	case m.known != "":
		one.trial()
	case m.via != "" || m.others:
		one.rate, one.requests = one.rate/2, one.requests/2 // the proxy takes its share of the machine
	}
	if one.warm == 0 {
		one.warm = one.longEnough()
	}
	k := &contest{mode: m, c: &one, dir: dir}
	if err := k.compete(); err != nil {
		return nil, err
	}
	k.rep = one.newReport(append([]string{"draincheck"}, os.Args[1:]...))
	if !fresh {
		old, err := loadState(k.file())
		if err != nil {
			return nil, err
		}
		if old != nil {
			k.rep.Subjects, k.rep.Builds = old.Subjects, old.Builds
		}
	}
	k.rep.built(libraryCommit())
	for i, s := range one.subjects {
		now := one.newSubject(s)
		if i == len(k.rep.Subjects) {
			k.rep.Subjects = append(k.rep.Subjects, now)
		}
		before := k.rep.Subjects[i]
		if before.Name != now.Name || !slices.EqualFunc(before.Lanes, now.Lanes, func(a, b *Lane) bool { return a.Name == b.Name }) {
			k.end()
			return nil, fmt.Errorf("%s has numbers of other servers or kinds of traffic, to which none can be added: -fresh begins again", k.file())
		}
		before.Foreign, before.via = now.Foreign, now.via
	}
	return k, nil
}

// built notes that the next stops are of the library at that commit.
func (r *Report) built(commit string) {
	next := 1
	if len(r.Subjects) > 0 {
		next += len(r.Subjects[0].Stops)
	}
	if len(r.Builds) == 0 && next > 1 {
		r.Builds = append(r.Builds, Build{"", 1})
	}
	switch last := len(r.Builds) - 1; {
	case last >= 0 && r.Builds[last].Commit == commit:
	case last >= 0 && r.Builds[last].Stop == next:
		r.Builds[last].Commit = commit
	default:
		r.Builds = append(r.Builds, Build{commit, next})
	}
}

// libraryCommit returns the last commit that changed the library in the current
// directory, and a plus sign if there are changes besides; "" where git does not
// know.
func libraryCommit() string {
	const files, tests = ":(glob)*.go", ":(exclude,glob)*_test.go"
	commit, err := exec.Command("git", "log", "-1", "--format=%h", "--", files, tests).Output()
	if err != nil {
		return ""
	}
	name := strings.TrimSpace(string(commit))
	if exec.Command("git", "diff", "--quiet", "HEAD", "--", files, tests).Run() != nil {
		name += "+"
	}
	return name
}

func (k *contest) file() string { return filepath.Join(k.dir, "results", k.mode.name) }

// trial makes c what was tried before this command was there: 20 restarts under
// 2,000 requests per second of 50 clients.
func (c *config) trial() {
	c.lanes, _ = lanesByName("keep-alive")
	c.rounds, c.clients, c.rate, c.requests = 20, 50, 2000, 0
}

// contests compares the contenders in each of the modes, pass by pass, and
// writes after each pass what has been found.
func (c *config) contests(ctx context.Context, wanted []mode, dir string, fresh bool, stderr io.Writer) error {
	var all []*contest
	defer func() {
		for _, k := range all {
			k.end()
		}
	}()
	var failed error
	for _, m := range wanted {
		k, err := c.newContest(m, dir, fresh)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", m.name, err))
			continue
		}
		all = append(all, k)
	}
	for ctx.Err() == nil {
		more := slices.DeleteFunc(slices.Clone(all), (*contest).complete)
		if len(more) == 0 {
			break
		}
		for _, k := range more {
			if err := k.pass(ctx, stderr); err != nil {
				// The other modes go on; what this one has is kept.
				failed = errors.Join(failed, fmt.Errorf("%s: %w", k.mode.name, err))
				fmt.Fprintln(stderr, "draincheck:", k.mode.name, "goes no further:", err)
				k.end()
				all = slices.DeleteFunc(all, func(one *contest) bool { return one == k })
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(failed, context.Cause(ctx))
}

// complete reports whether every contender was stopped as often as is wanted,
// under as many requests of each kind.
func (k *contest) complete() bool {
	return !slices.ContainsFunc(k.rep.Subjects, func(s *Subject) bool {
		return len(s.Stops) < k.c.rounds || slices.ContainsFunc(s.Lanes, func(l *Lane) bool {
			return l.Skipped == "" && l.Sent < k.c.requestsOf(laneNamed(l.Name))
		})
	})
}

// pass stops each contender passStops times more, or as often as is left.
func (k *contest) pass(ctx context.Context, stderr io.Writer) error {
	stops := passStops
	if left := k.c.rounds - len(k.rep.Subjects[0].Stops); left > 0 {
		stops = min(stops, left)
	}
	bar := newProgress(stderr, stops*len(k.c.subjects), false)
	defer bar.end()
	if k.backend != nil {
		if err := k.backend.ready(ctx, true); err != nil {
			return err
		}
	}
	for i, s := range k.c.subjects {
		if err := k.c.stopTimes(ctx, stops, s, k.rep.Subjects[i], bar, stderr); err != nil {
			return err
		}
	}
	k.rep.judge(0, 0, k.c.grace)
	if err := k.rep.save(k.file()); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s %s: %v\n", time.Now().Format(time.TimeOnly), k.mode.name, k.rep.Verdict.Sentence)
	return writeResults(k.dir)
}

// drawAgain makes the pictures and the numbers for people again, of the modes
// whose state is there.
func drawAgain(wanted []mode, dir string) error {
	for _, m := range wanted {
		name := filepath.Join(dir, "results", m.name)
		rep, err := loadState(name)
		if err != nil {
			return err
		}
		if rep == nil {
			continue
		}
		for _, s := range rep.Subjects {
			s.Foreign, s.via = s.Name != ours, m.via != ""
			s.finish()
		}
		rep.Schema = schemaVersion
		rep.judge(0, 0, 0)
		if err := rep.save(name); err != nil {
			return err
		}
	}
	return nil
}

// save writes the picture, the state from which another run goes on, and the
// numbers for people: without the timeline that the picture is made of, and in
// whole milliseconds, for each digit more is a byte that everybody downloads.
func (r *Report) save(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".svg", r.svg(), 0o644); err != nil {
		return err
	}
	if err := r.saveState(name); err != nil {
		return err
	}
	short := *r
	short.Subjects = nil
	for _, s := range r.Subjects {
		subject := *s
		subject.Lanes, subject.Stops = nil, nil
		for _, st := range s.Stops {
			st.Began, st.Closed, st.Exit = time.Time{}, math.Round(st.Closed), math.Round(st.Exit)
			subject.Stops = append(subject.Stops, st)
		}
		for _, l := range s.Lanes {
			lane := *l
			lane.Timeline = nil
			subject.Lanes = append(subject.Lanes, &lane)
		}
		short.Subjects = append(short.Subjects, &subject)
	}
	b, err := json.MarshalIndent(&short, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name+".json", append(b, '\n'), 0o644)
}
