package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// maxZip is how large the root module's zip file may be: everybody who uses the
// library downloads it. Most of it is tests. Pictures and numbers are what could
// exceed it by far.
const maxZip = 500_000

// TestRelease publishes the tree to a directory, and uses it from there as a user
// with nothing but the go command does: outside the checkout, by the modules'
// paths.
func TestRelease(t *testing.T) {
	proxy := t.TempDir()
	modules, err := publish(".", proxy)
	if err != nil {
		t.Fatal(err)
	}
	root := modules[0]
	if root.Size > maxZip {
		t.Errorf("the zip file of %v has %d bytes; want at most %d", root.Version, root.Size, maxZip)
	}
	u := newUser(t, proxy, root.Path)

	t.Run("draincheck", func(t *testing.T) {
		u.run(t, u.dir, "go", "install", root.Path+"/cmd/draincheck@latest")
		program := filepath.Join(u.bin, "draincheck"+exe())
		if got := u.run(t, u.dir, program, "-version"); !strings.Contains(got, root.Version.Version) {
			t.Errorf("draincheck -version: %q; want %s in it", got, root.Version.Version)
		}
		u.run(t, u.dir, program, "-rounds", "1", "-clients", "2", "-warm", "50ms", "-traffic", "new-conn")
	})
	for _, example := range examples(t, root) {
		t.Run(example, func(t *testing.T) {
			u.run(t, u.dir, "go", "install", root.Path+"/"+example+"@latest")
		})
	}
	t.Run("import", func(t *testing.T) {
		dir := t.TempDir()
		program := "package main\n\nimport (\n\t\"time\"\n\n\t\"" + root.Path + "\"\n)\n\n" +
			"func main() { graceful.Run(\"127.0.0.1:0\", time.Second, nil) }\n"
		if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644); err != nil {
			t.Fatal(err)
		}
		u.run(t, dir, "go", "mod", "init", "example.com/program")
		u.run(t, dir, "go", "get", root.Path)
		u.run(t, dir, "go", "mod", "tidy")
		u.run(t, dir, "go", "vet", ".")
		if got, want := u.run(t, dir, "go", "list", "-m", "all"), root.Path+" "+root.Version.Version; !strings.Contains(got, want) {
			t.Errorf("the program is built with\n%s\nwant %s", got, want)
		}
	})
}

// What others install must not replace a module: the go command refuses that.
func TestNoReplace(t *testing.T) {
	modules, err := publish(".", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		if installed(m) && len(m.Mod.Replace) > 0 {
			t.Errorf("%s/go.mod replaces %s: go install refuses that", m.Dir, m.Mod.Replace[0].Old.Path)
		}
	}
}

// installed reports whether others install m, so that it gets tags.
func installed(m *Module) bool {
	return strings.HasPrefix(m.Dir, "cmd/") || strings.HasPrefix(m.Dir, "examples/")
}

// examples returns the directories under examples/ that hold a program.
func examples(t *testing.T, root *Module) []string {
	cmd := exec.Command("go", "list", "-f", "{{if eq .Name \"main\"}}{{.ImportPath}}{{end}}", root.Path+"/examples/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, name := range strings.Fields(string(out)) {
		dirs = append(dirs, strings.TrimPrefix(name, root.Path+"/"))
	}
	if len(dirs) == 0 {
		t.Fatal("no examples found")
	}
	return dirs
}

// A user has a go command, a module cache of their own, and the proxy.
type user struct {
	dir, bin string
	env      []string
}

func newUser(t *testing.T, proxy, modulePath string) *user {
	u := &user{dir: t.TempDir(), bin: t.TempDir()}
	goEnv := func(name string) string {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	// What other modules need comes from this machine's module cache, or else
	// from where it comes from usually. It was verified when it got there.
	proxies := strings.Join([]string{
		fileURL(proxy), fileURL(filepath.Join(goEnv("GOMODCACHE"), "cache", "download")), goEnv("GOPROXY"),
	}, ",")
	u.env = append(os.Environ(),
		"GOPROXY="+proxies, "GONOSUMDB="+modulePath, "GOSUMDB=off", "GOWORK=off", "GONOPROXY=none", "GOPRIVATE=",
		"GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw", "GOBIN="+u.bin, "CGO_ENABLED=0", "GOTOOLCHAIN=local",
	)
	return u
}

func fileURL(dir string) string {
	dir = filepath.ToSlash(dir)
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	return "file://" + dir
}

func exe() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}

// run returns what the command writes; the test ends if it fails.
func (u *user) run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, u.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
