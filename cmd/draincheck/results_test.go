package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// results.md is made of what was saved for each mode, whenever that was.
func TestResultsText(t *testing.T) {
	dir := t.TempDir()
	rep := &Report{
		Command: "draincheck results -rounds 3", When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Rounds: 3, Clients: 7, Rate: 100,
		Subjects: []*Subject{
			{Name: "theirs", Stops: []Stop{{Signal: "SIGTERM", Exit: 1234}, {Exit: 1234}, {Exit: 5000}}, Lanes: []*Lane{
				{Name: "keep-alive", Sent: 12345, Answered: 12340, Early: 2, Lost: map[string]int{"EOF": 4, "reset": 1}},
				{Name: "tls", Skipped: "why not"}, {Name: "http2"}, {Name: "idle"},
			}},
			{Name: ours, Stops: []Stop{{Signal: "SIGTERM", Exit: 5}}, Lanes: []*Lane{
				{Name: "keep-alive", Sent: 10, Answered: 10, Timeline: []Bin{{MS: 0, Answered: 10}}},
				{Name: "tls", Skipped: "why not"},
				{Name: "http2", Sent: 7, Answered: 6, Lost: map[string]int{"paused": 1}},
				{Name: "idle", Sent: 8, Answered: 6, Lost: map[string]int{"paused": 1, "EOF": 1}},
			}, Losses: []Loss{{Stop: 2, Kind: "idle", Began: -3, Lost: 4.56, Cause: "EOF", Balancer: []string{"SD 502"}}}},
		},
	}
	for _, s := range rep.Subjects {
		for _, l := range s.Lanes {
			l.before, l.during = newLane(lane{}).before, newLane(lane{}).during
		}
	}
	rep.built("")
	rep.built("abc1")
	rep.built("abc2") // no stop between them
	some, err := modesByName("nginx,trial-haproxy", true)
	if err != nil {
		t.Fatal(err)
	}
	nginx, trial := some[0], some[1]
	for _, m := range []mode{modes[0], nginx, trial} {
		if err := rep.save(filepath.Join(dir, "results", m.name)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := resultsText(dir)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, want := range []string{
		"## " + modes[0].title, "## " + nginx.title, "](results/direct.svg)",
		"| traffic | theirs | this library |", "| **1**/7\u00a0‡ |", "\n‡ inherent:", "| **2**/8\u00a0† |", "\n† inherent: nginx",
		"| " + trial.title + " | " + trial.known + " | 5/12,345 | 3/25 |", "| keep-alive | **5**/12,345 | 0/10 |", "| exit after: median, range | 1,234 ms (1,234 to 5,000) | 5 ms |",
		"theirs lost by cause: 4 EOF, 1 reset", "theirs lost 2 before any stop", "3 stops of each, 7 clients", "2026-01-02", "`go run ./cmd/draincheck results -rounds 3`",
		"`\nThis library at an unknown commit, from stop 4 on at `abc2`.\n",
		"- this library, stop 2, idle: begun -3.0 ms and lost 4.6 ms after the signal (EOF); the balancer: SD 502\n",
		"- this library, 2 of which only the kind and the cause are known\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, not := range []string{"why not", "| tls", modes[1].title, "Performance"} {
		if strings.Contains(text, not) {
			t.Errorf("%q in\n%s", not, text)
		}
	}
}

// Another run goes on from what was found, and ends when there is enough.
func TestResultsGoOn(t *testing.T) {
	dir := t.TempDir()
	c := &config{path: "/", health: "/ready", signal: syscall.SIGTERM, grace: 5 * time.Second, rounds: 10, clients: 2, rate: 100}
	c.lanes, _ = lanesByName("keep-alive,idle")
	m := mode{name: "direct", title: "one"}
	began := func(fresh bool) *contest {
		t.Helper()
		k, err := c.newContest(m, dir, fresh)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := began(false)
	if first.complete() {
		t.Error("complete before it began")
	}
	for _, s := range first.rep.Subjects {
		s.Stops = make([]Stop, 10)
		l := s.Lanes[0]
		l.Sent, l.Timeline, l.Lost = 70, []Bin{{MS: 20, Answered: 3}}, map[string]int{"EOF": 2}
		l.before.RecordValue(2000)
		l.finish()
	}
	if err := first.rep.save(first.file()); err != nil {
		t.Fatal(err)
	}
	second := began(false)
	if !second.complete() {
		t.Error("not complete after as many stops as were wanted")
	}
	if diff := cmp.Diff(first.rep.Subjects, second.rep.Subjects, cmpopts.IgnoreUnexported(Subject{}, Lane{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("what was saved (-) and is there again (+):\n%s", diff)
	}
	l := second.rep.Subjects[3].Lanes[0]
	l.before.RecordValue(9000)
	if l.finish(); l.Before.P50 > 3 || l.Before.Max < 8.9 {
		t.Errorf("latencies of both runs: %+v", l.Before)
	}
	c.requests = 71
	if began(false).complete() {
		t.Error("complete with fewer requests than were wanted")
	}
	if began(true).rep.Subjects[0].Stops != nil {
		t.Error("-fresh goes on from what was there")
	}
	c.lanes, _ = lanesByName("keep-alive")
	if _, err := c.newContest(m, dir, false); err == nil || !strings.Contains(err.Error(), "-fresh") {
		t.Errorf("numbers of other kinds: %v", err)
	}
}

// What must not be lost is told one by one: when, and what the balancer wrote.
func TestNoteLosses(t *testing.T) {
	began := time.Unix(100, 0)
	b := &balanced{balancer: &process{out: new(tail)}}
	b.balancer.out.Write([]byte("of id-2, SD\nof id-3, SD\nof id-2, cut o"))
	res := &traffic.Result{Began: began, Samples: []traffic.Sample{
		{Start: time.Second, End: 2 * time.Second, ID: "id-1"},
		{Start: time.Second, End: 3 * time.Second, Outcome: traffic.Lost, ID: "id-2", Cause: "EOF"},
	}}
	s := &Subject{Stops: []Stop{{}, {Began: began.Add(1500 * time.Millisecond)}}}
	s.noteLosses(res, "tls", b)
	want := []Loss{{Stop: 2, Kind: "tls", Began: -500, Lost: 1500, Cause: "EOF", ID: "id-2", Balancer: []string{"of id-2, SD"}}}
	if diff := cmp.Diff(want, s.Losses); diff != "" {
		t.Error(diff)
	}
	for range 10 {
		s.noteLosses(res, "tls", b)
		s.noteLosses(res, "upload", b)
	}
	if len(s.Losses) != 2*sameLosses || len(s.firstLosses()) != 2 {
		t.Errorf("%d are kept, and %d told", len(s.Losses), len(s.firstLosses()))
	}
}

// A mode that fails does not end the others; and well-known servers, those that
// are installed, are among them.
func TestResultsOfOthers(t *testing.T) {
	if _, err := lookBalancer("nginx"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	c := &config{fixed: true, path: "/", health: "/ready", method: "GET", signal: syscall.SIGTERM, grace: 5 * time.Second, rounds: 1, clients: 2, rate: 100, warm: 50 * time.Millisecond}
	c.lanes, _ = lanesByName("keep-alive,download,tls,http2,websocket")
	bad := mode{name: "bad"}
	if err := os.MkdirAll(filepath.Join(dir, "results"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "results", bad.name+stateEnding), []byte("not gzip"), 0o644); err != nil {
		t.Fatal(err)
	}
	some, err := modesByName("others", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.contests(t.Context(), append([]mode{bad}, some...), dir, false, io.Discard); err == nil || !strings.HasPrefix(err.Error(), "bad: ") || strings.Contains(err.Error(), "others") {
		t.Errorf("%v; want the error of the mode bad, and no other", err)
	}
	rep, err := some[0].load(dir)
	if err != nil || rep == nil {
		t.Fatal("no numbers of the other mode:", err)
	}
	for _, s := range rep.Subjects {
		for _, l := range s.Lanes {
			// Those that answer by themselves do not take all.
			app := strings.HasPrefix(s.Name, "node") || strings.HasPrefix(s.Name, "Caddy")
			if l.Skipped != "" && (!app || l.Name == "keep-alive") || l.Skipped == "" && l.Answered == 0 {
				t.Errorf("%s, %s: %+v", s.Name, l.Name, l)
			}
		}
		if len(s.Stops) != 1 || s.Stops[0].Killed || s.Stops[0].Exit <= 0 {
			t.Errorf("%s: %+v", s.Name, s.Stops)
		}
	}
}
