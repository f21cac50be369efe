package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// results.md is made of what was saved for each mode, whenever that was.
func TestResultsText(t *testing.T) {
	dir := t.TempDir()
	rep := &Report{
		Command: "draincheck results -rounds 3", When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Rounds: 3, Clients: 7, Rate: 100,
		Subjects: []*Subject{
			{Name: "theirs", Stops: []Stop{{Signal: "SIGTERM", Exit: 1234}}, Lanes: []*Lane{
				{Name: "keep-alive", Sent: 12345, Answered: 12340, Lost: map[string]int{"EOF": 4, "reset": 1}},
				{Name: "tls", Skipped: "why not"},
			}},
			{Name: "ours", Stops: []Stop{{Signal: "SIGTERM", Exit: 5}}, Lanes: []*Lane{
				{Name: "keep-alive", Sent: 10, Answered: 10, Timeline: []Bin{{MS: 0, Answered: 10}}},
				{Name: "tls", Skipped: "why not"},
			}},
		},
	}
	for _, m := range modes[:2] {
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
		"## " + modes[0].title, "## " + modes[1].title, "](results/direct.svg)",
		"| traffic | theirs | ours |", "| keep-alive | **5**/12,345 | 0/10 |", "| exit after, median | 1,234 ms | 5 ms |",
		"theirs lost by cause: 4 EOF, 1 reset", "3 stops of each, 7 clients", "2026-01-02", "`go run ./cmd/draincheck results -rounds 3`",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, not := range []string{"why not", "| tls", modes[2].title, "Performance"} {
		if strings.Contains(text, not) {
			t.Errorf("%q in\n%s", not, text)
		}
	}
}
