// Package harness puts the library in the place of net/http's Server in the
// tests of net/http. The command adds it to the standard library for one run.
package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"sync"
	"unsafe"

	"github.com/seed-121bbccf/graceful"
)

func init() {
	name := os.Getenv("CONFORMANCE_SERVED")
	if name == "" {
		return // net/http alone
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	h := &harness{
		out:     f,
		servers: make(map[*http.Server]*server),
		tests:   make(map[unsafe.Pointer]string),
		served:  make(map[string]bool),
	}
	http.Conformance = &http.ConformanceHooks{
		Serve: func(s *http.Server, l net.Listener) error {
			return h.server(s).serve(l)
		},
		ServeTLS: func(s *http.Server, l net.Listener, certFile, keyFile string) error {
			return ended(h.server(s).ServeTLS(l, certFile, keyFile))
		},
		ListenAndServe: func(s *http.Server) error {
			return ended(h.server(s).ListenAndServe())
		},
		ListenAndServeTLS: func(s *http.Server, certFile, keyFile string) error {
			return ended(h.server(s).ListenAndServeTLS(certFile, keyFile))
		},
		Shutdown: func(s *http.Server, ctx context.Context) error {
			return h.server(s).Shutdown(ctx)
		},
		Close: func(s *http.Server) error {
			return h.server(s).Close()
		},
		SetKeepAlivesEnabled: func(s *http.Server, v bool) {
			h.server(s).SetKeepAlivesEnabled(v)
		},
		ExportAllConnsIdle: func(s *http.Server) bool {
			states := h.server(s).states()
			delete(states, http.StateIdle)
			return len(states) == 0
		},
		ExportAllConnsByState: func(s *http.Server) map[http.ConnState]int {
			return h.server(s).states()
		},
		Test:    h.begin,
		Library: "net/http/graceful",
	}
}

// A harness has the library's Server for each http.Server of the tests.
type harness struct {
	mu      sync.Mutex // guards what follows
	out     *os.File   // a line for each test in which the library served
	servers map[*http.Server]*server
	tests   map[unsafe.Pointer]string // by the labels of their goroutines
	served  map[string]bool
}

// server returns what stands in for s.
func (h *harness) server(s *http.Server) *server {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.servers[s]
	if g == nil {
		test := h.tests[profLabel()]
		g = &server{conns: make(map[net.Conn]http.ConnState), changed: make(chan struct{}, 1)}
		g.Server = graceful.Server{
			Server:           s,
			NoSignalHandling: true,
			ConnState: func(nc net.Conn, state http.ConnState) {
				g.note(nc, state)
				if state == http.StateActive {
					h.serving(test)
				}
			},
		}
		h.servers[s] = g
	}
	return g
}

// serving notes that the library has read a request in the named test.
func (h *harness) serving(test string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.served[test] {
		h.served[test] = true
		h.out.WriteString(test + "\n")
	}
}

// begin labels the goroutine of a test, and with it those that it starts.
func (h *harness) begin(name string) {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("test", name)))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tests[profLabel()] = name
}

//go:linkname profLabel runtime/pprof.runtime_getProfLabel
func profLabel() unsafe.Pointer

// A server is the library's Server in the place of an http.Server.
type server struct {
	graceful.Server
	changed chan struct{} // conns has become empty; holds one value at the most

	mu    sync.Mutex // guards conns
	conns map[net.Conn]http.ConnState
}

func (s *server) note(nc net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[nc] = state
	if state == http.StateClosed || state == http.StateHijacked {
		delete(s.conns, nc)
	}
	if len(s.conns) == 0 {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// states counts the open connections by their states.
func (s *server) states() map[http.ConnState]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[http.ConnState]int)
	for _, state := range s.conns {
		m[state]++
	}
	return m
}

// serve is the library's Serve, but for a listener of the tests that has one
// connection, and then an error for an Accept: http.Server returns the error
// and goes on with the connection; the library, as its documentation says,
// begins the shutdown. The tests are about the connection, so the library does
// not see the error before that has gone.
func (s *server) serve(l net.Listener) error {
	if _, ok := l.(http2Config); ok {
		return s.Server.Server.Serve(l) // net/http's
	}
	if fmt.Sprintf("%T", l) != "*http_test.oneConnListener" {
		return ended(s.Serve(l))
	}
	one := &lastingListener{Listener: l, failed: make(chan error, 1), server: s}
	returned := make(chan error, 1)
	go func() { returned <- ended(s.Serve(one)) }()
	select {
	case err := <-one.failed:
		return err
	case err := <-returned:
		return err
	}
}

// An http2Config is what golang.org/x/net/http2 hands to the Serve of an
// http.Server, which takes it for settings (Go 1.27).
type http2Config interface {
	ServeConnFunc(func(context.Context, net.Conn, http.Handler, bool, *http.Request, []byte))
}

type lastingListener struct {
	net.Listener
	failed chan error
	server *server
}

func (l *lastingListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		l.failed <- err
		<-l.server.changed
	}
	return nc, err
}

// ended returns what http.Server returns in the place of the library's err:
// the one documented difference that every test would see.
func ended(err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		return http.ErrServerClosed
	}
	return err
}
