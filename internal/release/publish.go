package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// A Module is a module of the checkout, as it was published.
type Module struct {
	module.Version
	Dir  string // in the repository, with slashes; "." is the root module's
	Mod  *modfile.File
	Size int64 // of the zip file, in bytes
}

// publish writes every module of the repository that contains dir into the
// module proxy at out, all of them at the version of the root module that the
// nested ones require. It takes the files that git tracks and those that it
// would add, so that the tree can be tested before it is committed.
func publish(dir, out string) ([]*Module, error) {
	top, err := git(dir, "rev-parse", "--show-toplevel")
	if err != nil {
		return nil, err
	}
	root := strings.TrimSpace(top)
	listed, err := git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	var files []string
	for name := range strings.SplitSeq(listed, "\x00") {
		// A file that was removed is listed until that is committed.
		if _, err := os.Lstat(filepath.Join(root, name)); name != "" && err == nil {
			files = append(files, name)
		}
	}
	modules, err := findModules(root, files)
	if err != nil {
		return nil, err
	}
	for _, m := range modules {
		if err := m.write(root, filesOf(m, modules, files), out); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Path, err)
		}
	}
	return modules, nil
}

func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, stderr.Bytes())
	}
	return string(out), nil
}

// findModules returns the modules among files, the root module first.
func findModules(root string, files []string) ([]*Module, error) {
	var modules []*Module
	for _, name := range files {
		if path.Base(name) != "go.mod" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		mod, err := modfile.Parse(name, text, nil)
		if err != nil {
			return nil, err
		}
		m := &Module{Dir: path.Dir(name), Mod: mod}
		m.Path = mod.Module.Mod.Path
		if m.Dir == "." {
			modules = append([]*Module{m}, modules...)
		} else {
			modules = append(modules, m)
		}
	}
	if len(modules) == 0 || modules[0].Dir != "." {
		return nil, errors.New("there is no go.mod at the root")
	}
	version, err := requiredVersion(modules)
	for _, m := range modules {
		m.Version.Version = version
	}
	return modules, err
}

// requiredVersion returns the version of the root module that the nested ones
// require, which has to be the same.
func requiredVersion(modules []*Module) (string, error) {
	version, by := "", ""
	for _, m := range modules[1:] {
		for _, r := range m.Mod.Require {
			switch {
			case r.Mod.Path != modules[0].Path:
			case version != "" && r.Mod.Version != version:
				return "", fmt.Errorf("%s/go.mod requires %s and %s/go.mod %s", by, version, m.Dir, r.Mod.Version)
			default:
				version, by = r.Mod.Version, m.Dir
			}
		}
	}
	if version == "" {
		return "", errors.New("no nested module requires the root module")
	}
	return version, nil
}

// filesOf returns those of files that belong to m and to none of the modules
// below it.
func filesOf(m *Module, modules []*Module, files []string) []string {
	var own []string
	for _, name := range files {
		owner := modules[0]
		for _, n := range modules[1:] {
			if strings.HasPrefix(name, n.Dir+"/") && (owner.Dir == "." || len(n.Dir) > len(owner.Dir)) {
				owner = n
			}
		}
		if owner == m {
			own = append(own, name)
		}
	}
	return own
}

// write writes what a module proxy answers for m: the list of its versions, and
// the .info, .mod and .zip of this one.
func (m *Module) write(root string, files []string, out string) error {
	escaped, err := module.EscapePath(m.Path)
	if err != nil {
		return err
	}
	dir := filepath.Join(out, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var contents []zip.File
	license := false
	for _, name := range files {
		in := name
		if m.Dir != "." {
			in = strings.TrimPrefix(name, m.Dir+"/")
		}
		license = license || in == "LICENSE"
		contents = append(contents, file{in, filepath.Join(root, filepath.FromSlash(name))})
	}
	if !license { // as the go command does when it makes the zip of a nested module
		contents = append(contents, file{"LICENSE", filepath.Join(root, "LICENSE")})
	}
	var archive bytes.Buffer
	if err := zip.Create(&archive, m.Version, contents); err != nil {
		return err
	}
	m.Size = int64(archive.Len())
	mod, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.Dir), "go.mod"))
	if err != nil {
		return err
	}
	version := m.Version.Version
	info := fmt.Sprintf(`{"Version":%q,"Time":%q}`, version, time.Now().UTC().Format(time.RFC3339))
	for name, text := range map[string][]byte{
		"list": []byte(version + "\n"), version + ".info": []byte(info), version + ".mod": mod, version + ".zip": archive.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A file is one of a module's, for zip.Create.
type file struct{ in, from string }

func (f file) Path() string                 { return f.in }
func (f file) Lstat() (os.FileInfo, error)  { return os.Lstat(f.from) }
func (f file) Open() (io.ReadCloser, error) { return os.Open(f.from) }
