// Command conformance runs the tests of net/http against the library. Run it
// from the root of the repository:
//
//	go run ./conformance
//	GOTOOLCHAIN=go1.27.3 go run ./conformance
//
// It copies the library, and the files of GOROOT's net/http that it changes,
// to a temporary folder, and builds Go's tests with those laid over GOROOT
// (go test -overlay): each http.Server in them, in httptest and in httputil is
// then served, shut down and closed by this library. docs/conformance.md has
// the rest. GOROOT is not changed.
//
// The exit status is 0 if each test passes but those that expected.go lists
// with a reason, and each of those fails.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packages are those of the standard library whose tests start an
// http.Server. net/http/internal/http2 is Go 1.27's.
var packages = []string{
	"net/http", "net/http/httptest", "net/http/httputil", "net/http/cgi",
	"net/http/internal/http2", "net/rpc",
}

func main() {
	var c command
	flag.StringVar(&c.run, "run", "", "run only the tests that match `regexp`")
	flag.BoolVar(&c.race, "race", false, "run with the race detector")
	flag.BoolVar(&c.long, "long", false, "run without -short")
	flag.BoolVar(&c.keep, "keep", false, "keep the temporary folder")
	flag.BoolVar(&c.verbose, "v", false, "print what the tests print")
	flag.Parse()
	ok, err := c.main()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

type command struct {
	run                       string
	race, long, keep, verbose bool

	goCommand
	goroot  string
	dir     string // temporary
	overlay string // the file for -overlay
}

// main reports whether everything is as expected.
func (c *command) main() (bool, error) {
	var err error
	if c.dir, err = os.MkdirTemp("", "conformance"); err != nil {
		return false, err
	}
	if c.keep {
		fmt.Println("files are in", c.dir)
	} else {
		defer os.RemoveAll(c.dir)
	}
	env, err := c.environment()
	if err != nil {
		return false, err
	}
	c.goroot = env.GOROOT
	tests, err := c.prepare(env)
	if err != nil {
		return false, err
	}
	all := newResults()
	for _, p := range tests {
		r, err := c.test(p)
		if err != nil {
			return false, err
		}
		fmt.Printf("%-24s %4d passed, %2d failed, %2d skipped; the library served in %d (%s)\n", p.ImportPath,
			r.count(passed), r.count(failed), r.count(skipped), r.served(), r.took.Round(time.Second))
		all.add(r)
	}
	return c.judge(all, tests, env)
}

// A moduleInfo is the library's.
type moduleInfo struct{ Path, Dir string }

// An environment is what the go command says of itself.
type environment struct {
	GOROOT, GOVERSION string
	release           string // go1.26
}

// A goCommand runs the go command.
type goCommand struct{}

func (goCommand) output(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

func (g goCommand) environment() (e environment, err error) {
	out, err := g.output("env", "-json", "GOROOT", "GOVERSION")
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(out, &e); err != nil {
		return e, err
	}
	parts := strings.SplitN(e.GOVERSION, ".", 3)
	if len(parts) < 2 {
		return e, fmt.Errorf("the go command is of version %q", e.GOVERSION)
	}
	e.release = parts[0] + "." + parts[1]
	return e, nil
}

// A testPackage is one of the standard library's, as go list describes it.
type testPackage struct {
	ImportPath, Name          string
	TestGoFiles, XTestGoFiles []string

	belowHTTP bool     // net/http imports it
	tests     []string // all there are
}

// prepare writes the overlay, and returns the packages that there are.
func (c *command) prepare(env environment) ([]testPackage, error) {
	out, err := c.output("list", "-f", "{{with .Module}}{{.Path}}\t{{.Dir}}{{end}}", ".")
	if err != nil {
		return nil, err
	}
	var module moduleInfo
	var ok bool
	if module.Path, module.Dir, ok = strings.Cut(strings.TrimSpace(string(out)), "\t"); !ok {
		return nil, errors.New("there is no module here: run it from the root of the repository")
	}
	o := newOverlay(env.GOROOT, c.dir)
	if err := o.addHooks(); err != nil {
		return nil, err
	}
	if err := o.addLibrary(module, c.goCommand); err != nil {
		return nil, err
	}
	if out, err = c.output("list", "-deps", "net/http"); err != nil {
		return nil, err
	}
	below := strings.Fields(string(out))
	if out, err = c.output(append([]string{"list", "-e", "-json=ImportPath,Name,TestGoFiles,XTestGoFiles"}, packages...)...); err != nil {
		return nil, err
	}
	var tests []testPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p testPackage
		if err := dec.Decode(&p); err != nil {
			return nil, err
		}
		if p.Name == "" && p.ImportPath == "net/http/internal/http2" {
			continue // Go 1.26
		}
		p.belowHTTP = p.ImportPath != "net/http" && slices.Contains(below, p.ImportPath)
		if err := o.addTests(&p); err != nil {
			return nil, err
		}
		tests = append(tests, p)
	}
	c.overlay, err = o.write()
	return tests, err
}

// args returns the arguments of the go command that run tests of a package.
func (c *command) args(pkg, run string, count int) []string {
	args := []string{"test", "-json", "-vet=off", "-timeout=3m", fmt.Sprintf("-count=%d", count), "-overlay=" + c.overlay}
	if !c.long {
		args = append(args, "-short")
	}
	if c.race {
		args = append(args, "-race")
	}
	if run != "" {
		args = append(args, "-run="+run)
	}
	return append(args, pkg)
}

// test runs the tests of one package against the library. A test that ends the
// binary, by a panic or since it hangs, does not keep the others from being
// run: those that have not ended are, once more, without it.
func (c *command) test(p testPackage) (*results, error) {
	served := filepath.Join(c.dir, "served")
	if err := os.WriteFile(served, nil, 0o666); err != nil {
		return nil, err
	}
	r := newResults()
	run := c.run
	for rest := len(p.tests) + 1; ; {
		again, err := c.goTest(c.args(p.ImportPath, run, 1), "CONFORMANCE_SERVED="+served)
		if err != nil {
			return nil, err
		}
		r.add(again)
		left := r.unended(p)
		if len(left) == 0 || len(left) == rest || run == c.run && c.run != "" {
			break
		}
		rest = len(left)
		run = "^(" + strings.Join(left, "|") + ")$"
	}
	b, err := os.ReadFile(served)
	if err != nil {
		return nil, err
	}
	r.noteServed(p.ImportPath, strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"))
	return r, nil
}

// goTest runs the go command and reads its events.
func (c *command) goTest(args []string, env ...string) (*results, error) {
	// The go command refuses to lay anything over its module cache, which is
	// where a release that GOTOOLCHAIN brings has its GOROOT. The tests need no
	// module, so they get a cache of their own, and no module to be run in.
	cmd := exec.Command(filepath.Join(c.goroot, "bin", "go"), args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off", "GOMODCACHE="+filepath.Join(c.dir, "mod"))
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r, err := readResults(out, c.verbose)
	if werr := cmd.Wait(); err == nil && werr != nil && r.count(failed)+r.count(begun) == 0 {
		err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), werr, r.output())
	}
	r.took = time.Since(began)
	return r, err
}
