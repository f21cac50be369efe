package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func writeResults(dir string) error {
	text, err := resultsText(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.md"), text, 0o644)
}

// resultsText is docs/results.md, made of what is in dir/results.
func resultsText(dir string) ([]byte, error) {
	var b bytes.Buffer
	f := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	f(`# What stops cost

Made by ` + "`go run ./cmd/draincheck results`" + `. Each server is stopped by SIGTERM again and again, under all kinds of
traffic at once. A request is lost if any of its bytes were sent and no complete, correct response came back;
the cells say lost/sent. A refused new connection is not a loss. Nothing is retried, but HTTP/2 requests that
the server itself handed back: http.Transport repeats them, and for ` + "`http2-once`" + ` it cannot. Clients listen
while they pause, and look whether their connection has ended before they send. Every server
may take 2 s for what is in progress; this library has its quiet window of 500 ms, and behind a balancer a
ShutdownDelay of 1 s, which is more than HAProxy needs to notice (checks every 100 ms, fall 2).

On a busy machine a client may pause for longer than the 500 ms for which this library takes care of idle
connections, and speak at the very moment at which its connection is closed. Such losses have the cause
` + "`paused`" + `; in HTTP/1.1 they are inherent.

The traffic ` + "`idle`" + ` is connections that make one request each and are left alone then, as many per stop as make
up the number, within a few seconds.

In the pictures each row is a kind of traffic, time runs to the right, and a red stroke is a loss.
`)
	var trials []mode
	for _, m := range modes {
		if m.known != "" {
			trials = append(trials, m)
			continue
		}
		rep, err := m.load(dir)
		if err != nil {
			return nil, err
		}
		if rep == nil {
			continue
		}
		f("## %s\n", m.title)
		f("%s\n", m.note)
		f("![%s](results/%s.svg)\n", m.title, m.name)
		rep.cells(f, m.inherent)
		f("%s of each, %d clients for each kind of traffic, at most %.0f requests per second of each. %s, %s:\n`go run ./cmd/%s`%s\n",
			count(len(rep.Subjects[0].Stops), "stop"), rep.Clients, rep.Rate, rep.When.Format("2006-01-02"), rep.System, rep.Command, rep.builds())
	}
	if err := trialsText(dir, trials, f); err != nil {
		return nil, err
	}
	if bench, err := os.ReadFile(filepath.Join(dir, "results", "bench.txt")); err == nil {
		f("## Performance\n")
		f("benchstat's output of what [performance.md](performance.md) has the commands for:\n")
		f("```\n%s\n```", bytes.TrimSpace(bench))
	}
	return b.Bytes(), nil
}

// builds says of which commits of this library the numbers are.
func (r *Report) builds() string {
	var parts []string
	for _, b := range r.Builds {
		part := "`" + b.Commit + "`"
		if b.Commit == "" {
			part = "an unknown commit"
		}
		if b.Stop > 1 {
			part = fmt.Sprintf("from stop %d on at %s", b.Stop, part)
		} else {
			part = "at " + part
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return ""
	}
	return "\nThis library " + strings.Join(parts, ", ") + "."
}

// trialsText is about the trials from before this command was there: their
// numbers and its own.
func trialsText(dir string, trials []mode, f func(string, ...any)) error {
	head := false
	for _, m := range trials {
		rep, err := m.load(dir)
		if err != nil {
			return err
		}
		if rep == nil {
			continue
		}
		if !head {
			f("## The trials, met again\n")
			f("What made this project begin: 20 restarts under some 2,000 requests per second of 50 clients, measured with another")
			f("client and a handler that took its time. The order of magnitude is what has to come back. `go run ./cmd/%s`\n", rep.Command)
			f("| | net/http Shutdown, then | net/http Shutdown | this library |\n|---|---:|---:|---:|")
			head = true
		}
		row := fmt.Sprintf("| %s | %s", m.title, m.known)
		for _, s := range rep.Subjects {
			row += fmt.Sprintf(" | %s/%s", thousands(s.lost()), thousands(s.sent()))
		}
		f("%s |", row)
	}
	if head {
		f("")
	}
	return nil
}

// ours is the name under which this library stands in a report.
const ours = "this library"

// cells writes the table of lost and sent requests, and what was lost by cause.
// inherent says why this library's losses are, if they are.
func (r *Report) cells(f func(string, ...any), inherent string) {
	head, line := "| traffic", "|---"
	for _, s := range r.Subjects {
		head += " | " + s.Name
		line += "|---:"
	}
	f("%s |\n%s|", head, line)
	marked := map[string]string{} // the footnotes
	for i, l := range r.Subjects[0].Lanes {
		row, any := "| "+l.Name, false
		for _, s := range r.Subjects {
			l := s.Lanes[i]
			if l.Skipped != "" {
				row += " | –"
				continue
			}
			any = true
			mark := ""
			switch {
			case s.Name != ours || l.lost() == 0:
			case l.lost() == l.Lost["paused"]:
				mark, marked["‡"] = "\u00a0‡", "inherent: its client had paused for longer than the quiet window"
			case inherent != "":
				mark, marked["†"] = "\u00a0†", inherent
			}
			row += " | " + lostOf(l.lost(), l.Sent) + mark
		}
		if any {
			f("%s |", row)
		}
	}
	rows := []string{"| all", "| exit after: median, range", "| p99 of keep-alive, before", "| p99 of keep-alive, from the signal on"}
	for _, s := range r.Subjects {
		rows[0] += fmt.Sprintf(" | **%s**/%s", thousands(s.lost()), thousands(s.sent()))
		rows[1] += fmt.Sprintf(" | %v", s.Exit)
		rows[2] += fmt.Sprintf(" | %.0f ms", s.Lanes[0].Before.P99)
		rows[3] += fmt.Sprintf(" | %.0f ms", s.Lanes[0].During.P99)
	}
	f("%s |\n", strings.Join(rows, " |\n"))
	for _, mark := range slices.Sorted(maps.Keys(marked)) {
		f("%s %s.\n", mark, marked[mark])
	}
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
		if n := s.lostBefore(); n > 0 {
			f("- %s lost %s before any stop", s.Name, thousands(n))
		}
	}
	for _, s := range r.Subjects {
		// Those of a mode in which losses are inherent are told by their cause.
		if s.Name == ours && inherent == "" {
			for _, l := range s.Losses {
				f("- %s, %v", s.Name, l)
			}
			if n := s.lost() - len(s.Losses); n > 0 {
				f("- %s, %d of which only the kind and the cause are known", s.Name, n)
			}
		}
	}
	f("")
}

// lostOf returns a cell.
func lostOf(lost, sent int) string {
	if lost == 0 {
		return "0/" + thousands(sent)
	}
	return fmt.Sprintf("**%s**/%s", thousands(lost), thousands(sent))
}
