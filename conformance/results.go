package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// An outcome is what became of a test: the Action of its last event.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
	begun   outcome = "run" // and not ended: the test binary has
)

// A testName is a test or subtest with its package: "net/http.TestX/h1".
type testName string

// top returns the name of the test that the subtest is of.
func (n testName) top() testName {
	pkg, test := n.split()
	test, _, _ = strings.Cut(test, "/")
	return nameOf(pkg, test)
}

// split returns the package and the test. Neither a package's path nor a
// test's name has a dot in it before the one between them.
func (n testName) split() (pkg, test string) {
	pkg, test, _ = strings.Cut(string(n), ".")
	return pkg, test
}

func nameOf(pkg, test string) testName { return testName(pkg + "." + test) }

// results are what tests of one package or several have ended with.
type results struct {
	outcomes map[testName]outcome
	printed  map[testName]*strings.Builder // "" for what belongs to no test
	library  map[testName]bool             // the library served in it
	took     time.Duration
}

func newResults() *results {
	return &results{
		outcomes: make(map[testName]outcome),
		printed:  make(map[testName]*strings.Builder),
		library:  make(map[testName]bool),
	}
}

// readResults reads the events of go test -json. With echo it passes on what
// the tests print.
func readResults(from io.Reader, echo bool) (*results, error) {
	r := newResults()
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return r, nil
		}
		if err != nil && err != io.EOF {
			return r, err
		}
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(line, &e) != nil {
			e.Action, e.Output = "output", string(line)
		}
		switch name := nameOf(e.Package, e.Test); e.Action {
		case "output", "build-output":
			if e.Test == "" {
				name = ""
			}
			b := r.printed[name]
			if b == nil {
				b = new(strings.Builder)
				r.printed[name] = b
			}
			b.WriteString(e.Output)
			if echo {
				io.WriteString(os.Stdout, e.Output)
			}
		case "run", "pass", "fail", "skip":
			if e.Test != "" {
				r.outcomes[name] = outcome(e.Action)
			}
		}
	}
}

// noteServed takes in the tests of a package in which the library served.
func (r *results) noteServed(pkg string, tests []string) {
	for _, t := range tests {
		if t != "" {
			r.library[nameOf(pkg, t)] = true
		}
	}
}

// add takes in the results of another run or package.
func (r *results) add(other *results) {
	maps.Copy(r.outcomes, other.outcomes)
	maps.Copy(r.printed, other.printed)
	maps.Copy(r.library, other.library)
	r.took += other.took
}

// count returns how many tests have ended so; subtests do not count.
func (r *results) count(o outcome) int {
	n := 0
	for name, got := range r.outcomes {
		if got == o && name == name.top() {
			n++
		}
	}
	return n
}

// served returns in how many tests the library has served a request.
func (r *results) served() int { return len(r.library) }

// failures returns the tests that have failed, in order, by the most exact
// name: if it was a subtest, by that.
func (r *results) failures() []testName {
	var names []testName
	for name, o := range r.outcomes {
		if o == failed && !r.hasFailedSubtest(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// unended returns the tests of p that have not begun, or not ended: the binary
// has.
func (r *results) unended(p testPackage) []string {
	return slices.DeleteFunc(slices.Clone(p.tests), func(test string) bool {
		o, ok := r.outcomes[nameOf(p.ImportPath, test)]
		return ok && o != begun
	})
}

func (r *results) hasFailedSubtest(name testName) bool {
	for other, o := range r.outcomes {
		if o == failed && strings.HasPrefix(string(other), string(name)+"/") {
			return true
		}
	}
	return false
}

// output returns what was printed outside the tests.
func (r *results) output() string {
	if b := r.printed[""]; b != nil {
		return b.String()
	}
	return ""
}

// outputOf returns what a test and the one that it is part of have printed.
func (r *results) outputOf(name testName) string {
	var s string
	if b := r.printed[name]; b != nil {
		s = b.String()
	}
	if top := name.top(); top != name {
		if b := r.printed[top]; b != nil {
			s += b.String()
		}
	}
	return s
}

// judge compares the results with what is expected, prints the comparison, and
// reports whether they agree.
func (c *command) judge(r *results, tests []testPackage, env environment) (bool, error) {
	expected := expectedFailures(env.release)
	var asExpected, alone, everywhere, unexpected int
	for _, p := range tests {
		if left := r.unended(p); len(left) > 0 && c.run == "" {
			unexpected += len(left)
			fmt.Printf("UNEXPECTED: the test binary of %s ends before %s have\n%s\n", p.ImportPath, strings.Join(left, ", "), r.output())
		}
	}
	for _, name := range r.failures() {
		if reason, ok := expected[name]; ok {
			asExpected++
			fmt.Printf("expected:   %s: %s\n", name, reason)
			continue
		}
		kind, err := c.tryAlone(name)
		if err != nil {
			return false, err
		}
		switch kind {
		case passesAlone:
			alone++
			fmt.Printf("unsteady:   %s fails among the others and passes alone\n", name)
		case failsWithNetHTTP:
			everywhere++
			fmt.Printf("net/http's: %s fails here without the library too\n", name)
		default:
			unexpected++
			fmt.Printf("UNEXPECTED: %s\n%s\n", name, r.outputOf(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		got, ran := r.outcomes[name]
		if got == failed || got == skipped || !ran && c.run != "" {
			continue
		}
		unexpected++
		if ran {
			fmt.Printf("UNEXPECTED: %s passes, and is expected to fail: %s\n", name, expected[name])
		} else {
			fmt.Printf("UNEXPECTED: %s is expected to fail, and was not run\n", name)
		}
	}
	if r.served() == 0 {
		unexpected++
		fmt.Println("UNEXPECTED: the library has served in no test")
	}
	fmt.Printf("%s, %s: %d passed, %d failed, %d skipped; the library served in %d; failures: %d expected, %d unsteady, %d of net/http, %d unexpected\n",
		env.GOVERSION, r.took.Round(time.Second), r.count(passed), r.count(failed), r.count(skipped), r.served(),
		asExpected, alone, everywhere, unexpected)
	return unexpected == 0, nil
}

// A failure is what a test does when it is run by itself.
type failure int

const (
	failsAlone       failure = iota // with the library, not with net/http
	passesAlone                     // so other tests, or the machine, disturb it
	failsWithNetHTTP                // the library is not the reason
)

// tryAlone runs the test of a failure by itself, with the library and without.
func (c *command) tryAlone(name testName) (failure, error) {
	pkg, test := name.top().split()
	served := "CONFORMANCE_SERVED=" + os.DevNull
	for _, try := range []struct {
		env  string
		kind failure
	}{{served, passesAlone}, {"CONFORMANCE_SERVED=", failsWithNetHTTP}} {
		r, err := c.goTest(c.args(pkg, "^"+test+"$", 3), try.env)
		if err != nil {
			return failsAlone, err
		}
		if fails := r.outcomes[name] != passed; fails == (try.kind == failsWithNetHTTP) {
			return try.kind, nil
		}
	}
	return failsAlone, nil
}
