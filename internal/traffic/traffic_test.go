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
	for _, k := range traffic.Kinds() {
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
			if h.Executed() != res.Answered || h.Doubled() != 0 {
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
			if v.WebSocket() {
				run.Stop() // net/http leaves hijacked connections alone
			}
			<-run.Done()
			res := run.Stop()
			t.Log(res, "executed all the same:", h.Unacknowledged(res))
			if res.Sent != res.Answered+res.LostCount() || len(res.Samples) != res.Sent+res.RefusedCount() {
				t.Errorf("the books do not balance: %v, %d samples", res, len(res.Samples))
			}
			if h.Executed() < res.Answered {
				t.Errorf("%d executed; %v", h.Executed(), res)
			}
		})
	}
}

// Each way to lose a request is seen, and under its name.
func TestCauses(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"
	for _, tc := range []struct {
		name   string
		any    bool
		answer string // what the server says to each request; then it closes
		linger bool   // it stays silent instead of closing
		want   map[string]int
	}{
		{"EOF", true, "", false, map[string]int{"EOF": 1}},
		{"half a header", true, head, false, map[string]int{"truncated": 1}},
		{"half a body", true, head + "\r\nok", false, map[string]int{"truncated": 1}},
		{"silence", true, "", true, map[string]int{"timeout": 1}},
		{"silence in the body", true, head + "\r\nok", true, map[string]int{"timeout": 1}},
		{"5xx", true, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", true, map[string]int{"status 503": 1}},
		{"4xx", false, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true, map[string]int{"status 404": 1}},
		{"4xx of anyone's server", true, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true, map[string]int{}},
		{"not ours", false, head + "\r\nokok", true, map[string]int{"wrong": 1}},
		{"twice", true, head + "\r\nokok" + head + "\r\nokok", true, map[string]int{"doubled": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ln := answering(t, tc.answer, tc.linger)
			limit := 1
			if tc.name == "twice" {
				limit = 2
			}
			l := traffic.Load{Addr: ln, Kind: traffic.KeepAlive, Clients: 1, Limit: limit, Timeout: time.Second / 4, Any: tc.any}
			run := start(t, l)
			<-run.Done()
			res := run.Stop()
			if d := cmp.Diff(tc.want, res.Lost); d != "" {
				t.Errorf("%v %v (-want +got):\n%s", res, res.Errors, d)
			}
		})
	}
}

// answering starts a server that reads a request's header and body and answers
// with the same bytes to each.
func answering(t *testing.T, answer string, linger bool) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			for n := 0; n < 256; {
				m, err := c.Read(buf)
				if n += m; err != nil {
					break
				}
			}
			// The request's body follows its header in a write of its own.
			c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			io.Copy(io.Discard, c)
			c.SetReadDeadline(time.Time{})
			io.WriteString(c, answer)
			if linger {
				io.Copy(io.Discard, c)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-stopped
	})
	return ln.Addr().String()
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
