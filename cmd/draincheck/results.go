package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// resultsCommand is the first argument that has the proof made.
const resultsCommand = "results"

// A mode is one way to put servers in front of the clients.
type mode struct {
	name    string // of its picture
	title   string
	via     string
	replace bool
	note    string
}

var modes = []mode{
	{"direct", "Clients speak to the server, nobody takes its place", "", false,
		`After the listener is closed new connections are refused, whatever the server does. That is not a loss: nothing was sent.`},
	{"direct-replace", "Clients speak to the server, its successor already listens (SO_REUSEPORT)", "", true,
		`With a successor on the same port nobody need be refused either.`},
	{"haproxy", "Through HAProxy, one of two instances down in between", "haproxy", false,
		`HAProxy checks every 100 ms and takes two failures for an end. A server that closes its listener at the signal is down for it before it has noticed: 503. This library serves on for its ShutdownDelay (1 s here) while its readiness says 503, so HAProxy leaves in peace.`},
	{"haproxy-replace", "Through HAProxy, the successor overlaps", "haproxy", true,
		`What is lost here are requests that HAProxy sent over connections that were just being closed.`},
	{"nginx", "Through nginx, one of two instances down in between", "nginx", false,
		`nginx (the free one) has no active checks: it goes on sending every second request to an instance that is down, and answers 502. With proxy_next_upstream off nothing that the server does can help; a successor that overlaps can. (Its default, max_fails=1 with fail_timeout=10s, would mark both instances down when two restarts come close together, and fail nearly everything.) These losses are inherent; the longer a server takes to leave, the more of them there are, so this library, which waits for its clients, has most.`},
	{"nginx-replace", "Through nginx, the successor overlaps", "nginx", true,
		`The only way to roll servers behind nginx without a loss.`},
}

// resultsMain makes docs/results.md, and results/ beside it with a picture and
// the numbers of each mode. A mode that is not run again keeps the numbers that
// it had: all of them take hours.
func resultsMain(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet("draincheck "+resultsCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("o", "docs", "the `directory` for results.md and its pictures")
	only := fs.String("modes", "", "the `modes` to run, separated by commas; empty: all")
	textOnly := fs.Bool("text", false, "only make results.md again, of the numbers that are there")
	c := &config{demo: true, path: "/", health: "/ready", signal: syscall.SIGTERM, grace: 15 * time.Second}
	fs.IntVar(&c.rounds, "rounds", 50, "how many times each server is stopped in each mode")
	fs.IntVar(&c.clients, "clients", 32, "how many clients each kind of traffic has")
	fs.Float64Var(&c.rate, "rate", 300, "how many requests per second each kind of traffic may begin")
	fs.DurationVar(&c.warm, "warm", 500*time.Millisecond, "how long the load lasts before each stop")
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
	if *textOnly {
		wanted = nil
	}
	for _, m := range wanted {
		rep, err := c.mode(ctx, m, stderr)
		if err == nil {
			err = rep.save(filepath.Join(*dir, "results", m.name))
		}
		if err != nil {
			fmt.Fprintf(stderr, "draincheck: %s: %v\n", m.name, err)
			return exitLost
		}
		fmt.Fprintf(stderr, "%s: %s\n", m.name, rep.headline())
	}
	text, err := resultsText(*dir)
	if err == nil {
		err = os.WriteFile(filepath.Join(*dir, "results.md"), text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitLost
	}
	return 0
}

func modesByName(names string) ([]mode, error) {
	if names == "" {
		return modes, nil
	}
	var out []mode
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(modes, func(m mode) bool { return m.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-modes %q: there is no such mode", name)
		}
		out = append(out, modes[i])
	}
	return out, nil
}

// save writes the picture and the numbers, without the timeline that the
// picture is made of.
func (r *Report) save(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".svg", r.svg(), 0o644); err != nil {
		return err
	}
	for _, s := range r.Subjects {
		for _, l := range s.Lanes {
			l.Timeline = nil
		}
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name+".json", append(b, '\n'), 0o644)
}

// mode has all contenders go through m.
func (c *config) mode(ctx context.Context, m mode, stderr io.Writer) (*Report, error) {
	one := *c
	one.via, one.replace, one.subjects = m.via, m.replace, nil
	var names []string
	for _, k := range contenders {
		names = append(names, k.name)
	}
	if err := one.contest(names...); err != nil {
		return nil, err
	}
	return one.checkSubjects(ctx, stderr)
}

// resultsText is docs/results.md, made of what is in dir/results.
func resultsText(dir string) ([]byte, error) {
	var b bytes.Buffer
	f := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	f("# What stops cost\n")
	f("Made by `go run ./cmd/draincheck results`. Each server is stopped by SIGTERM again and again, under all kinds of")
	f("traffic at once. A request is lost if any of its bytes were sent and no complete, correct response came back;")
	f("the cells say lost/sent. A refused new connection is not a loss. Nothing is retried, but HTTP/2 requests that")
	f("the server itself handed back: http.Transport repeats them, and for `http2-once` it cannot.\n")
	f("On a busy machine a client may pause for longer than the 500 ms for which this library takes care of idle")
	f("connections, and speak at the very moment at which its connection is closed. Such losses have the cause")
	f("`paused`; in HTTP/1.1 they are inherent.\n")
	f("In the pictures each row is a kind of traffic, time runs to the right, and a red stroke is a loss.\n")
	for _, m := range modes {
		text, err := os.ReadFile(filepath.Join(dir, "results", m.name+".json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var rep Report
		if err := json.Unmarshal(text, &rep); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		f("## %s\n", m.title)
		f("%s\n", m.note)
		f("![%s](results/%s.svg)\n", m.title, m.name)
		rep.cells(f)
		f("%d stops of each, %d clients for each kind of traffic, at most %.0f requests per second of each. %s, %s:\n`go run ./cmd/%s`\n",
			rep.Rounds, rep.Clients, rep.Rate, rep.When.Format("2006-01-02"), rep.System, rep.Command)
	}
	if bench, err := os.ReadFile(filepath.Join(dir, "bench.txt")); err == nil {
		f("## Performance\n")
		f("benchstat's output:\n")
		f("```\n%s\n```", bytes.TrimSpace(bench))
	}
	return b.Bytes(), nil
}

// cells writes the table of lost and sent requests, and what was lost by cause.
func (r *Report) cells(f func(string, ...any)) {
	head, line := "| traffic", "|---"
	for _, s := range r.Subjects {
		head += " | " + s.Name
		line += "|---:"
	}
	f("%s |\n%s|", head, line)
	for i, l := range r.Subjects[0].Lanes {
		row, any := "| "+l.Name, false
		for _, s := range r.Subjects {
			l := s.Lanes[i]
			switch {
			case l.Skipped != "":
				row += " | –"
			case l.lost() == 0:
				row += fmt.Sprintf(" | 0/%s", thousands(l.Sent))
				any = true
			default:
				row += fmt.Sprintf(" | **%s**/%s", thousands(l.lost()), thousands(l.Sent))
				any = true
			}
		}
		if any {
			f("%s |", row)
		}
	}
	row := "| all"
	exit := "| exit after, median"
	for _, s := range r.Subjects {
		row += fmt.Sprintf(" | **%s**/%s", thousands(s.lost()), thousands(s.sent()))
		exit += fmt.Sprintf(" | %s ms", thousands(int(s.median(func(st Stop) float64 { return st.Exit }))))
	}
	f("%s |\n%s |\n", row, exit)
	for _, s := range r.Subjects {
		all := map[string]int{}
		for _, l := range s.Lanes {
			for cause, n := range l.Lost {
				all[cause] += n
			}
		}
		if len(all) > 0 {
			f("- %s lost by cause: %s", s.Name, causes(all))
		}
	}
	f("")
}
