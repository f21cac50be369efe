// Package http is net/http, to which this file is added.
package http

import (
	"context"
	"net"
	"reflect"
	"runtime"
	"strings"
)

// ConformanceHooks take the place of the Server's methods. They are set before
// anything is served.
type ConformanceHooks struct {
	Serve                func(*Server, net.Listener) error
	ServeTLS             func(srv *Server, l net.Listener, certFile, keyFile string) error
	ListenAndServe       func(*Server) error
	ListenAndServeTLS    func(srv *Server, certFile, keyFile string) error
	Shutdown             func(*Server, context.Context) error
	Close                func(*Server) error
	SetKeepAlivesEnabled func(*Server, bool)

	// These look at the connections that are open.
	ExportAllConnsIdle    func(*Server) bool
	ExportAllConnsByState func(*Server) map[ConnState]int

	// Test is told the name of the test that begins on this goroutine.
	Test func(name string)

	// Library is the import path of the package whose http.Servers are to
	// stay net/http's; so do those that packages below it call.
	Library string
}

// Conformance is nil where the tests are to run with net/http alone.
var Conformance *ConformanceHooks

// ConformanceTest says which test begins on this goroutine.
func ConformanceTest(name string) {
	if Conformance != nil {
		Conformance.Test(name)
	}
}

// conformanceHooksFor returns the hooks to call in the place of a method of
// srv; nil if the library has made srv, or calls the method.
func conformanceHooksFor(srv *Server) *ConformanceHooks {
	h := Conformance
	if h == nil {
		return nil
	}
	for _, f := range []any{srv.BaseContext, srv.ConnContext, srv.ConnState} {
		if v := reflect.ValueOf(f); !v.IsNil() && h.isLibrary(runtime.FuncForPC(v.Pointer()).Name()) {
			return nil
		}
	}
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		switch {
		case h.isLibrary(f.Function):
			return nil
		case !more || !strings.HasPrefix(f.Function, "net/http.(*Server)."):
			return h
		}
	}
}

func (h *ConformanceHooks) isLibrary(function string) bool {
	return strings.HasPrefix(function, h.Library+".") || strings.HasPrefix(function, h.Library+"/")
}
