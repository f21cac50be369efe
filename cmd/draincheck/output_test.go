package main

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// exampleReport is of a server that lost, was killed and skipped something.
func exampleReport() *Report {
	lost := newLane(laneNamed("keep-alive"))
	lost.Sent, lost.Answered, lost.Lost = 1000, 994, map[string]int{"EOF": 4, "reset": 1, causeKilled: 1}
	fresh := newLane(laneNamed("new-conn"))
	fresh.Sent, fresh.Answered, fresh.Lost, fresh.Resent = 100, 99, map[string]int{"EOF": 1}, 2
	fine := newLane(laneNamed("upload"))
	fine.Sent, fine.Answered, fine.Status = 10, 10, 404
	none := newLane(laneNamed("websocket"))
	none.Skipped = "no WebSocket at / (-ws-path)"
	s := &Subject{
		Name: "./server", Lanes: []*Lane{lost, fresh, fine, none},
		Stops: []Stop{
			{Signal: "SIGTERM", Exit: 145, Status: "0"},
			{Signal: "SIGTERM", Exit: 1065, Status: "0", Left: []string{"worker (12)"}},
			{Signal: "SIGTERM", Exit: 15001, Status: "signal: killed", Killed: true, KilledAfter: 15000},
		},
		Losses: []Loss{{Stop: 1, Kind: "keep-alive", Cause: "EOF"}, {Stop: 2, Kind: "keep-alive", Cause: "EOF"}, {Stop: 2, Kind: "new-conn", Cause: "EOF"}},
	}
	c := &config{rounds: 3, clients: 4, rate: 100}
	r := c.newReport([]string{"draincheck", "--", "./server"})
	r.When = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.Subjects = []*Subject{s}
	s.finish()
	r.judge(0, 0, 15*time.Second)
	return r
}

func TestVerdict(t *testing.T) {
	r := exampleReport()
	const want = "FAIL: ./server did not exit within 15s of SIGTERM in 1 of 3 stops: killed, by which it lost 1, " +
		"and lost 7 of 1,110 requests in 3 stops (keep-alive 6, new-conn 1). The pipeline should stop."
	if got := r.Verdict.String(); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	for _, tc := range []struct {
		lost    int
		percent float64
		passed  bool
	}{{6, 0, false}, {7, 0, true}, {0, 0.63, false}, {0, 0.64, true}, {1, 0.64, true}} {
		if r.judge(tc.lost, tc.percent, time.Second); r.Verdict.Passed != tc.passed {
			t.Errorf("-max-lost %d -max-lost-percent %v: %v", tc.lost, tc.percent, r.Verdict)
		}
	}
	r.Subjects[0].Foreign = true
	if r.judge(0, 0, time.Second); !r.Verdict.Passed {
		t.Errorf("of a server to be compared with: %v", r.Verdict)
	}
}

// What people read has the verdict at both ends, each loss once by kind and
// cause, and what to do.
func TestTable(t *testing.T) {
	var b strings.Builder
	r := exampleReport()
	r.writeTable(&b)
	text := b.String()
	if v := r.Verdict.String() + "\n"; !strings.HasPrefix(text, v) || !strings.HasSuffix(text, v) {
		t.Errorf("no verdict at both ends:\n%s", text)
	}
	for want, n := range map[string]int{
		"first lost: ":                          2,
		"exit 1,065 ms (145 to 15,001)":         1,
		"docs/draincheck.md#keep-alive":         1,
		"docs/draincheck.md#queue":              1,
		"docs/draincheck.md#killed":             1,
		"EOF, reset on keep-alive: the server":  1,
		"the status 404":                        1,
		"2 connections waited for a second":     1,
		"processes named worker outlived":       1,
		"skipped: websocket: no WebSocket at /": 1,
		"by which it lost 1":                    3,
	} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q is there %d times, want %d:\n%s", want, got, n, text)
		}
	}
}

// Each remedy has a heading in the manual, under which its link leads.
func TestAdviceLinks(t *testing.T) {
	text, err := os.ReadFile("../../docs/draincheck.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range remedies {
		if !strings.Contains(string(text), `<a id="`+r.anchor+`"></a>`) {
			t.Errorf("docs/draincheck.md has no anchor %q", r.anchor)
		}
	}
}

// What -json writes is what docs/draincheck.schema.json says.
func TestSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("../../docs/draincheck.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	status, out, errs := draincheck(t.Context(), "-rounds", "1", "-clients", "2", "-warm", "0s", "-traffic", "keep-alive,tls", "-json", "-")
	example, err := json.Marshal(exampleReport())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a run": out, "the example": string(example)} {
		// Standard output has the JSON and nothing else.
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			t.Errorf("%s: status %d, %v\n%s", name, status, err, errs)
		}
	}
	if !strings.Contains(errs, "PASS: ") {
		t.Errorf("the table is not on standard error: %q", errs)
	}
}

func TestJUnit(t *testing.T) {
	r := exampleReport()
	b, err := r.junit()
	if err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	s := got.Suites[0]
	if d := cmp.Diff([]int{4, 2, 1, 4}, []int{s.Tests, s.Failures, s.Skipped, len(s.Cases)}); d != "" {
		t.Errorf("tests, failures, skipped, cases (-want +got):\n%s", d)
	}
	if f := s.Cases[0].Failure; f == nil || f.Message != "lost 6 of 1,000 (0.6 %): 4 EOF, 1 killed, 1 reset" || !strings.Contains(f.Text, "Connection: close") {
		t.Errorf("the failure: %+v", f)
	}
	r.judge(7, 0, time.Second)
	if b, err = r.junit(); err != nil || strings.Contains(string(b), "<failure") {
		t.Errorf("what is allowed fails a case: %v\n%s", err, b)
	}
}

func TestAnnotations(t *testing.T) {
	r := exampleReport()
	var b strings.Builder
	r.writeAnnotations(&b)
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "::error title=draincheck%3A keep-alive lost 6 of 1%2C000 (0.6 %25)::4 EOF, 1 killed, 1 reset (./server)%0A") {
		t.Errorf("%q", lines)
	}
	r.judge(7, 0, time.Second)
	b.Reset()
	if r.writeAnnotations(&b); strings.Contains(b.String(), "::error") || !strings.Contains(b.String(), "::warning") {
		t.Errorf("what is allowed is an error:\n%s", b.String())
	}
}

func TestCompare(t *testing.T) {
	name := filepath.Join(t.TempDir(), "before.json")
	b, err := json.Marshal(exampleReport())
	if err == nil {
		err = os.WriteFile(name, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := loadReport(name)
	if err != nil {
		t.Fatal(err)
	}
	now := exampleReport()
	now.Subjects[0].Name = "./server -new"
	now.Subjects[0].Lanes[0].Lost = map[string]int{}
	want := []string{
		"./server -new: lost 1 of 1,110 (0.09 %), before 7 of 1,110 (0.63 %); exit 1,065 ms (145 to 15,001), before 1,065 ms (145 to 15,001)",
		"  keep-alive: lost 0 of 1,000, before 6 of 1,000 (0.6 %)",
		"  new-conn: lost 1 of 100 (1 %), before 1 of 100 (1 %)",
	}
	if d := cmp.Diff(want, now.since(before)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	os.WriteFile(name, []byte(`{"schema_version": 99}`), 0o644)
	if status, _, errs := draincheck(t.Context(), "-compare", name); status != exitUsage || !strings.Contains(errs, "schema_version is 99") {
		t.Errorf("another schema: status %d, %q", status, errs)
	}
}

// Every flag is in one group of the usage.
func TestFlagGroups(t *testing.T) {
	_, _, errs := draincheck(t.Context(), "-h")
	groups := map[string]int{}
	for _, g := range flagGroups {
		for _, name := range g.names {
			groups[name]++
		}
	}
	_, fs := newFlags()
	fs.VisitAll(func(f *flag.Flag) {
		if groups[f.Name] != 1 {
			t.Errorf("-%s is in %d groups", f.Name, groups[f.Name])
		}
	})
	for _, want := range []string{"\nWhat to run:\n", "\nOutput:\n", "draincheck results [flags]"} {
		if !strings.Contains(errs, want) {
			t.Errorf("no %q in\n%s", want, errs)
		}
	}
}

func TestVersion(t *testing.T) {
	if status, out, _ := draincheck(t.Context(), "-version"); status != 0 || !strings.HasPrefix(out, "draincheck ") {
		t.Errorf("status %d, %q", status, out)
	}
}

// The word results may stand before its flags and behind them.
func TestResultsArgs(t *testing.T) {
	for _, tc := range []struct {
		args, want string
		is         bool
	}{
		{"results", "", true}, {"results -text -o x", "-text -o x", true}, {"-text results", "-text", true},
		{"-rounds 1", "", false}, {"-- results", "", false}, {"./server results", "", false}, {"", "", false},
	} {
		got, is := resultsArgs(strings.Fields(tc.args))
		if strings.Join(got, " ") != tc.want || is != tc.is {
			t.Errorf("%q: %q, %v", tc.args, got, is)
		}
	}
}

func TestSpread(t *testing.T) {
	for want, exits := range map[string][]float64{
		"0 ms": nil, "7 ms": {7}, "15 ms (10 to 20)": {20, 10}, "1,059 ms (145 to 1,092)": {145, 1065, 1059, 1092, 149},
	} {
		s := &Subject{}
		for _, ms := range exits {
			s.Stops = append(s.Stops, Stop{Exit: ms})
		}
		if s.spreads(); s.Exit.String() != want {
			t.Errorf("%v: %q, want %q", exits, s.Exit, want)
		}
	}
}
