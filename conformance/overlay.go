package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// libraryPath and harnessPath are where the library and the harness stand
// while they are part of the standard library.
const (
	libraryPath = "net/http/graceful"
	harnessPath = "net/http/graceful/harness"
)

//go:embed testdata/hooks.go
var hooksSource []byte

//go:embed testdata/harness.go
var harnessSource []byte

// hooked are the methods of http.Server that the library has as well, and
// those of its tests that look at its connections, by file. For each there is
// a field of ConformanceHooks of that name that takes its place.
var hooked = map[string][]string{
	"net/http/server.go": {
		"Serve", "ServeTLS", "ListenAndServe", "ListenAndServeTLS",
		"Shutdown", "Close", "SetKeepAlivesEnabled",
	},
	"net/http/export_test.go": {"ExportAllConnsIdle", "ExportAllConnsByState"},
}

// An overlay replaces files of GOROOT for one build, as the -overlay flag of
// the go command does, and leaves GOROOT alone.
type overlay struct {
	goroot  string
	dir     string            // where the replacements are
	replace map[string]string // a file's place in GOROOT to its replacement
}

// newOverlay returns an empty overlay whose files are written to dir.
func newOverlay(goroot, dir string) *overlay {
	return &overlay{goroot: goroot, dir: dir, replace: make(map[string]string)}
}

// put lays content over the file name, a slash-separated path below GOROOT/src.
func (o *overlay) put(name string, content []byte) error {
	to := filepath.Join(o.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return err
	}
	o.replace[filepath.Join(o.goroot, "src", filepath.FromSlash(name))] = to
	return os.WriteFile(to, content, 0o666)
}

// content returns the content of a file as it is so far.
func (o *overlay) content(name string) ([]byte, error) {
	file := filepath.Join(o.goroot, "src", filepath.FromSlash(name))
	if to, ok := o.replace[file]; ok {
		file = to
	}
	return os.ReadFile(file)
}

// write writes the file for the -overlay flag and returns its name.
func (o *overlay) write() (string, error) {
	b, err := json.MarshalIndent(map[string]any{"Replace": o.replace}, "", "\t")
	if err != nil {
		return "", err
	}
	name := filepath.Join(o.dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o666)
}

// addHooks makes net/http's Server ask the harness first.
func (o *overlay) addHooks() error {
	if err := o.put("net/http/conformance.go", hooksSource); err != nil {
		return err
	}
	for name, methods := range hooked {
		src, err := o.content(name)
		if err != nil {
			return err
		}
		if src, err = hookMethods(name, src, methods); err != nil {
			return err
		}
		if err := o.put(name, src); err != nil {
			return err
		}
	}
	return nil
}

// hookMethods returns src with a call of the hook at the beginning of each of
// the named methods of Server. The line numbers stay.
func hookMethods(name string, src []byte, methods []string) ([]byte, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, 0)
	if err != nil {
		return nil, err
	}
	var edits insertions
	missing := slices.Clone(methods)
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || !isMethodOf(f, "Server") {
			continue
		}
		i := slices.Index(missing, f.Name.Name)
		if i < 0 {
			continue
		}
		missing = slices.Delete(missing, i, i+1)
		receiver := f.Recv.List[0].Names[0].Name
		args := []string{receiver}
		for _, p := range f.Type.Params.List {
			for _, n := range p.Names {
				args = append(args, n.Name)
			}
		}
		call := fmt.Sprintf("h.%s(%s)", f.Name.Name, strings.Join(args, ", "))
		if f.Type.Results == nil {
			call += "; return"
		} else {
			call = "return " + call
		}
		edits.add(fset.Position(f.Body.Lbrace).Offset+1,
			fmt.Sprintf(" if h := conformanceHooksFor(%s); h != nil { %s };", receiver, call))
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s: http.Server has no method %s", name, strings.Join(missing, ", "))
	}
	return edits.apply(src), nil
}

// isMethodOf reports whether f is a method of *name.
func isMethodOf(f *ast.FuncDecl, name string) bool {
	if f.Recv == nil || len(f.Recv.List) != 1 || len(f.Recv.List[0].Names) != 1 {
		return false
	}
	star, ok := f.Recv.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	id, ok := star.X.(*ast.Ident)
	return ok && id.Name == name
}

// addLibrary copies the library and the packages of its module that it needs
// to below net/http. The go command says which files belong to the release.
func (o *overlay) addLibrary(module moduleInfo, g goCommand) error {
	out, err := g.output("list", "-deps", "-json=ImportPath,Dir,GoFiles,Standard", module.Path)
	if err != nil {
		return err
	}
	found := false
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p struct {
			ImportPath, Dir string
			GoFiles         []string
			Standard        bool
		}
		if err := dec.Decode(&p); err != nil {
			return err
		}
		below, ok := moved(p.ImportPath, module.Path)
		if !ok {
			if !p.Standard {
				return fmt.Errorf("the library needs %s, which can't become part of the standard library", p.ImportPath)
			}
			continue
		}
		found = true
		for _, name := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				return err
			}
			if src, err = moveImports(name, src, module.Path); err != nil {
				return err
			}
			if err := o.put(path.Join(below, name), src); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("no package %s", module.Path)
	}
	src, err := moveImports("harness.go", harnessSource, module.Path)
	if err != nil {
		return err
	}
	return o.put(harnessPath+"/harness.go", src)
}

// moved returns the import path inside the standard library of a package of
// the module, and whether it is one.
func moved(importPath, module string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, module)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return libraryPath + rest, true
}

// moveImports returns src with the imports of the module's packages changed to
// their places inside the standard library.
func moveImports(name string, src []byte, module string) ([]byte, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	changed := false
	for _, imp := range file.Imports {
		p, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return nil, err
		}
		if to, ok := moved(p, module); ok {
			imp.Path.Value = strconv.Quote(to)
			changed = true
		}
	}
	if !changed {
		return src, nil
	}
	var b bytes.Buffer
	err = format.Node(&b, fset, file)
	return b.Bytes(), err
}

// addTests makes the tests of a package of the standard library tell the
// harness their names, and their binary link it. It sets p.tests.
func (o *overlay) addTests(p *testPackage) error {
	for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
		inside := slices.Contains(p.TestGoFiles, name)
		name = path.Join(p.ImportPath, name)
		src, err := o.content(name)
		if err != nil {
			return err
		}
		src, tests, err := markTests(name, src)
		if err != nil {
			return err
		}
		p.tests = append(p.tests, tests...)
		if len(tests) == 0 || inside && p.belowHTTP {
			continue // what net/http needs can't import it, so nor the hooks
		}
		if err := o.put(name, src); err != nil {
			return err
		}
	}
	if len(p.tests) == 0 {
		return fmt.Errorf("%s has no tests", p.ImportPath)
	}

	const call = "func conformanceTest(name string) { http.ConformanceTest(name) }\n"
	switch {
	case p.ImportPath == "net/http":
		if err := o.put(p.ImportPath+"/conformance_inside_test.go", fmt.Appendf(nil,
			"package http\n\n%s", strings.Replace(call, "http.", "", 1))); err != nil {
			return err
		}
	case len(p.TestGoFiles) > 0 && !p.belowHTTP:
		if err := o.put(p.ImportPath+"/conformance_inside_test.go", fmt.Appendf(nil,
			"package %s\n\nimport http \"net/http\"\n\n%s", p.Name, call)); err != nil {
			return err
		}
	}
	// The external test package links the harness for both, and exists from
	// here on: a package's own tests can't import what imports the package.
	return o.put(p.ImportPath+"/conformance_outside_test.go", fmt.Appendf(nil,
		"package %s_test\n\nimport http \"net/http\"\nimport _ %q\n\n%s", p.Name, harnessPath, call))
}

// markTests returns the source of a test file in which every test says its
// name first, and those names. The line numbers stay.
func markTests(name string, src []byte) ([]byte, []string, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, 0)
	if err != nil {
		return nil, nil, err
	}
	var edits insertions
	var tests []string
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") || f.Name.Name == "TestMain" ||
			f.Type.TypeParams != nil || f.Type.Params.NumFields() != 1 || !isTestingT(f.Type.Params.List[0].Type) {
			continue
		}
		edits.add(fset.Position(f.Body.Lbrace).Offset+1, fmt.Sprintf(" conformanceTest(%q);", f.Name.Name))
		tests = append(tests, f.Name.Name)
	}
	return edits.apply(src), tests, nil
}

// isTestingT reports whether the type is *testing.T.
func isTestingT(e ast.Expr) bool {
	star, ok := e.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := star.X.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "T" {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == "testing"
}

// insertions are texts to insert into a file, in the order of their offsets.
type insertions []insertion

type insertion struct {
	offset int
	text   string
}

func (e *insertions) add(offset int, text string) { *e = append(*e, insertion{offset, text}) }

func (e insertions) apply(src []byte) []byte {
	var out []byte
	from := 0
	for _, i := range e {
		out = append(append(out, src[from:i.offset]...), i.text...)
		from = i.offset
	}
	return append(out, src[from:]...)
}
