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
const passStops = 10

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
	c := &config{demo: true, path: "/", health: "/ready", signal: syscall.SIGTERM, grace: 15 * time.Second}
	fs.IntVar(&c.rounds, "rounds", 50, "how many times each server is stopped in each mode, at the least")
	fs.IntVar(&c.requests, "requests", 100_000, "how many requests of each kind each server gets in each mode, at the least")
	fs.IntVar(&c.clients, "clients", 64, "how many clients each kind of traffic has")
	fs.Float64Var(&c.rate, "rate", 400, "how many requests per second each kind of traffic may begin; behind a balancer half as many")
	fs.DurationVar(&c.warm, "warm", 1500*time.Millisecond, "how long the load lasts before each stop")
	fs.DurationVar(&c.total, "timeout", 6*time.Hour, "how long all of it may take")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, c.total)
	defer cancel()
	c.lanes = slices.Clone(lanes)
	if err := c.bounds(); err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitUsage
	}
	wanted, err := modesByName(*only)
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

// A contest is a mode in which the contenders are being compared.
type contest struct {
	mode mode
	c    *config
	rep  *Report
	dir  string
}

// newContest goes on where the last run of m stopped, unless it is to be fresh.
func (c *config) newContest(m mode, dir string, fresh bool) (*contest, error) {
	one := *c
	one.via, one.replace, one.subjects = m.via, m.replace, nil
	var names []string
	for _, k := range contenders {
		if m.known == "" || k.name == "net-http" || k.name == "graceful" {
			names = append(names, k.name)
		}
	}
	switch {
	case m.known != "":
		one.trial()
	case m.via != "":
		one.rate /= 2 // the balancer takes its share of the machine
	}
	if err := one.contest(names...); err != nil {
		return nil, err
	}
	k := &contest{m, &one, one.newReport(append([]string{"draincheck"}, os.Args[1:]...)), dir}
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
			return nil, fmt.Errorf("%s has numbers of other servers or kinds of traffic, to which none can be added: -fresh begins again", k.file())
		}
		before.Foreign = now.Foreign
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
	for _, m := range wanted {
		k, err := c.newContest(m, dir, fresh)
		if err != nil {
			return err
		}
		all = append(all, k)
	}
	for more := true; more; {
		more = false
		for _, k := range all {
			if !k.complete() {
				more = true
				if err := k.pass(ctx, stderr); err != nil {
					return fmt.Errorf("%s: %w", k.mode.name, err)
				}
			}
		}
	}
	return nil
}

// complete reports whether every contender was stopped as often as is wanted,
// under as many requests of each kind.
func (k *contest) complete() bool {
	return !slices.ContainsFunc(k.rep.Subjects, func(s *Subject) bool {
		return len(s.Stops) < k.c.rounds || slices.ContainsFunc(s.Lanes, func(l *Lane) bool {
			return l.Skipped == "" && l.Sent < k.c.requests
		})
	})
}

// pass stops each contender passStops times more.
func (k *contest) pass(ctx context.Context, stderr io.Writer) error {
	bar := newProgress(stderr, passStops*len(k.c.subjects), false)
	defer bar.end()
	for i, s := range k.c.subjects {
		if err := k.c.stopTimes(ctx, passStops, s, k.rep.Subjects[i], bar, stderr); err != nil {
			return err
		}
	}
	if err := k.rep.save(k.file()); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s, %d stops: %s\n", k.mode.name, len(k.rep.Subjects[0].Stops), k.rep.headline())
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
