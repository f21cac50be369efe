package traffic_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful/internal/traffic"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A variant is a kind, in the clear or over TLS.
type variant struct {
	traffic.Kind
	tls bool
}

func variants() []variant {
	var vs []variant
	for _, k := range append(traffic.Kinds(), traffic.SSE) {
		vs = append(vs, variant{k, false}, variant{k, true})
	}
	return vs
}

func (v variant) name() string {
	if v.tls {
		return v.Name + "/tls"
	}
	return v.Name
}

func (v variant) load(addr string) traffic.Load {
	l := traffic.Load{Addr: addr, Kind: v.Kind, Clients: 8}
	if v.tls {
		l.TLS = traffic.ClientTLS()
	}
	return l
}

// serve starts a plain net/http server for v, set up as change wants it.
func serve(t *testing.T, v variant, h http.Handler, change ...func(*http.Server)) (*http.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	for _, f := range change {
		f(srv)
	}
	serve := func() error { return srv.Serve(ln) }
	if v.tls {
		srv.TLSConfig = traffic.ServerTLS()
		serve = func() error { return srv.ServeTLS(ln, "", "") }
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		srv.Close()
		<-stopped
	})
	return srv, ln.Addr().String()
}

func start(t *testing.T, l traffic.Load) *traffic.Run {
	t.Helper()
	run, err := l.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// Without a stop nothing is lost, refused, doubled or executed twice.
func TestNoStopNoLoss(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name(), func(t *testing.T) {
			t.Parallel()
			h := &traffic.Handler{}
			_, addr := serve(t, v, h)
			l := v.load(addr)
			run := start(t, l)
			n := 24
			if v.Name == traffic.Idle.Name {
				n = l.Clients
			}
			if err := run.WaitSteady(n); err != nil {
				t.Fatal(err)
			}
			res := run.Stop()
			if res.LostCount() != 0 || res.RefusedCount() != 0 || res.Closed != 0 || res.Aborted != 0 {
				t.Error(res, res.Errors)
			}
			if res.Answered < n || res.Sent != res.Answered || len(res.Samples) != res.Sent {
				t.Errorf("%v, %d samples; want at least %d answers", res, len(res.Samples), n)
			}
			// Of an event stream, and of pings, Handler knows no requests.
			counted := v.Name != traffic.SSE.Name && v.Name != traffic.WebSocketPing.Name
			if counted && h.Executed() != res.Answered || h.Doubled() != 0 {
				t.Errorf("%d executed, %d doubled; %v", h.Executed(), h.Doubled(), res)
			}
		})
	}
}

// What a net/http server's stop costs is logged: it is not this package's to
// promise. Asserted is that the clients end by themselves, and that the books
// balance.
func TestShutdownOfNetHTTP(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name(), func(t *testing.T) {
			t.Parallel()
			h := &traffic.Handler{}
			srv, addr := serve(t, v, h)
			l := v.load(addr)
			l.Timeout = 3 * time.Second
			run := start(t, l)
			if err := run.WaitSteady(l.Clients); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			srv.Shutdown(ctx)
			if v.WebSocket() || v.EventStream() {
				run.Stop() // net/http leaves hijacked connections alone, and such handlers run on
			}
			<-run.Done()
			res := run.Stop()
			t.Log(res, "executed all the same:", h.Unacknowledged(res))
			if res.Sent != res.Answered+res.LostCount() || len(res.Samples) != res.Sent+res.RefusedCount() {
				t.Errorf("the books do not balance: %v, %d samples", res, len(res.Samples))
			}
			counted := v.Name != traffic.SSE.Name && v.Name != traffic.WebSocketPing.Name
			if counted && h.Executed() < res.Answered {
				t.Errorf("%d executed; %v", h.Executed(), res)
			}
		})
	}
}

// A connection that the server ended while the client was thinking is no loss,
// unless the client is deaf.
func TestClosedWhileThinking(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		h := &traffic.Handler{}
		_, addr := serve(t, variant{}, h, func(s *http.Server) { s.IdleTimeout = 20 * time.Millisecond })
		run := start(t, traffic.Load{Addr: addr, Kind: traffic.Think100, Clients: 2, Limit: 6, Deaf: deaf})
		<-run.Done()
		res := run.Stop()
		if !deaf && (res.LostCount() != 0 || res.Closed < 4) || deaf && (res.LostCount() == 0 || res.Closed != 0) {
			t.Errorf("deaf %v: %v, %d closed", deaf, res, res.Closed)
		}
	}
}

// A client that does not think sees, before it sends again, that the server has
// ended its connection; a deaf one does not look.
func TestClosedWithoutThinking(t *testing.T) {
	for _, tls := range []bool{false, true} {
		for _, deaf := range []bool{false, true} {
			v := variant{traffic.KeepAlive, tls}
			answered := make(chan net.Conn, 1)
			_, addr := serve(t, v, &traffic.Handler{}, func(s *http.Server) {
				s.ConnState = func(c net.Conn, state http.ConnState) {
					if state == http.StateIdle {
						// The client has the response and the end at once.
						c.Close()
						answered <- c
					}
				}
			})
			l := v.load(addr)
			l.Clients, l.Limit, l.Deaf = 1, 2, deaf
			l.Observe = func(s traffic.Sample) {
				if s.Outcome == traffic.Answered {
					<-answered // and then the next request
				}
			}
			run := start(t, l)
			<-run.Done()
			res := run.Stop()
			if lost := res.LostCount() > 0; lost != deaf {
				t.Errorf("tls %v, deaf %v: %v %v", tls, deaf, res, res.Errors)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	for _, k := range []traffic.Kind{traffic.KeepAlive, traffic.HTTP2, traffic.WebSocket} {
		for _, c := range []*tls.Config{nil, traffic.ClientTLS()} {
			run := start(t, traffic.Load{Addr: addr, Kind: k, Clients: 3, TLS: c})
			if err := run.WaitSteady(1); !errors.Is(err, traffic.ErrEnded) {
				t.Errorf("%v: WaitSteady returned %v", k, err)
			}
			res := run.Stop()
			if d := cmp.Diff(map[string]int{"refused": 3}, res.Refused); d != "" || res.Sent != 0 {
				t.Errorf("%v %v (-want +got):\n%s", res, res.Errors, d)
			}
		}
	}
}

// With Redial the clients wait for a server that comes back.
func TestRedial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	ln.Close()
	run := start(t, traffic.Load{Addr: gone, Kind: traffic.KeepAlive, Clients: 1, Redial: time.Millisecond})
	for {
		if _, _, refused, _ := run.Progress(); refused >= 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if ln, err = net.Listen("tcp", gone); err != nil {
		run.Stop()
		t.Skip("the port was taken meanwhile:", err)
	}
	srv := &http.Server{Handler: &traffic.Handler{}}
	go srv.Serve(ln)
	defer srv.Close()
	if err := run.WaitSteady(1); err != nil {
		t.Error(err)
	}
	if res := run.Stop(); res.LostCount() != 0 {
		t.Error(res, res.Errors)
	}
}

// The end of the context cuts off what Stop would wait for.
func TestAbort(t *testing.T) {
	for _, v := range []variant{{traffic.KeepAlive, false}, {traffic.KeepAlive, true}, {traffic.HTTP2, true}, {traffic.Idle, false}} {
		ctx, cancel := context.WithCancel(t.Context())
		_, addr := serve(t, v, &traffic.Handler{})
		l := v.load(addr)
		l.Work = time.Minute
		l.Timeout = time.Hour
		run, err := l.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		res := run.Stop()
		if res.Answered != 0 || res.LostCount() != 0 || res.RefusedCount() != 0 {
			t.Errorf("%s: %v", v.name(), res)
		}
	}
}

func TestBadLoad(t *testing.T) {
	for _, l := range []traffic.Load{
		{},
		{Addr: "127.0.0.1:80"},
		{Addr: "127.0.0.1", Kind: traffic.KeepAlive},
		{Addr: "127.0.0.1:80", Kind: traffic.KeepAlive, Clients: -1},
		{Addr: "127.0.0.1:80", Kind: traffic.KeepAlive, Timeout: -1},
		{Addr: "127.0.0.1:80", Kind: traffic.KeepAlive, Path: "x"},
	} {
		if run, err := l.Start(t.Context()); err == nil {
			run.Stop()
			t.Errorf("%+v was accepted", l)
		}
	}
}
