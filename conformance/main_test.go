package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHookMethods(t *testing.T) {
	const src = `package http

func (srv *Server) Serve(l net.Listener) error {
	return nil
}

func (s *Server) SetKeepAlivesEnabled(v bool) {}

func (o *Other) Serve(l net.Listener) error { return nil }
`
	const want = `package http

func (srv *Server) Serve(l net.Listener) error { if h := conformanceHooksFor(srv); h != nil { return h.Serve(srv, l) };
	return nil
}

func (s *Server) SetKeepAlivesEnabled(v bool) { if h := conformanceHooksFor(s); h != nil { h.SetKeepAlivesEnabled(s, v); return };}

func (o *Other) Serve(l net.Listener) error { return nil }
`
	got, err := hookMethods("server.go", []byte(src), []string{"Serve", "SetKeepAlivesEnabled"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}

	// A method that a later release renames must not go unnoticed.
	if _, err := hookMethods("server.go", []byte(src), []string{"Serve", "Shutdown"}); err == nil || !strings.Contains(err.Error(), "Shutdown") {
		t.Errorf("a method that is missing: %v", err)
	}
}

func TestMarkTests(t *testing.T) {
	const src = `package http_test

func TestMain(m *testing.M) {}
func TestA(t *testing.T) { run(t, testA) }
func testA(t *testing.T, mode testMode) {}
func BenchmarkB(b *testing.B) {}
func TestC(t testing.TB) {}
`
	got, tests, err := markTests("x_test.go", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(src, "TestA(t *testing.T) {", `TestA(t *testing.T) { conformanceTest("TestA");`, 1)
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"TestA"}, tests); diff != "" {
		t.Error(diff)
	}
}

func TestMoveImports(t *testing.T) {
	const src = `package p

import (
	"net/http"

	"example.com/m"
	"example.com/m/internal/x"
)

import "example.com/more"
`
	got, err := moveImports("p.go", []byte(src), "example.com/m")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(`"example.com/m"`, `"net/http/graceful"`,
		`"example.com/m/internal/x"`, `"net/http/graceful/internal/x"`).Replace(src)
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestReadResults(t *testing.T) {
	const events = `{"Action":"run","Package":"net/http","Test":"TestA"}
{"Action":"run","Package":"net/http","Test":"TestA/h1"}
{"Action":"output","Package":"net/http","Test":"TestA/h1","Output":"want 2\n"}
{"Action":"fail","Package":"net/http","Test":"TestA/h1"}
{"Action":"run","Package":"net/http","Test":"TestA/h2"}
{"Action":"pass","Package":"net/http","Test":"TestA/h2"}
{"Action":"fail","Package":"net/http","Test":"TestA"}
{"Action":"run","Package":"net/http","Test":"TestB"}
{"Action":"pass","Package":"net/http","Test":"TestB"}
{"Action":"run","Package":"net/http","Test":"TestC"}
{"Action":"fail","Package":"net/http"}
`
	r, err := readResults(strings.NewReader(events), false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]testName{"net/http.TestA/h1"}, r.failures()); diff != "" {
		t.Error(diff)
	}
	counts := map[outcome]int{passed: 1, failed: 1, begun: 1, skipped: 0}
	for o, want := range counts {
		if got := r.count(o); got != want {
			t.Errorf("%d tests %q, want %d", got, o, want)
		}
	}
	p := testPackage{ImportPath: "net/http", tests: []string{"TestA", "TestB", "TestC", "TestD"}}
	if diff := cmp.Diff([]string{"TestC", "TestD"}, r.unended(p)); diff != "" {
		t.Error(diff)
	}
	if got := r.outputOf("net/http.TestA/h1"); got != "want 2\n" {
		t.Errorf("printed %q", got)
	}
}
