package graceful

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The server that serves has every exported field of the caller's, those of a
// later Go release included, but for the hooks that stand between.
func TestEveryFieldOfHTTPServer(t *testing.T) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	user := &http.Server{
		Addr:                         "127.0.0.1:0",
		Handler:                      http.NotFoundHandler(),
		DisableGeneralOptionsHandler: true,
		TLSConfig:                    &tls.Config{ServerName: "x"},
		ReadTimeout:                  1 * time.Second,
		ReadHeaderTimeout:            2 * time.Second,
		WriteTimeout:                 3 * time.Second,
		IdleTimeout:                  4 * time.Second,
		MaxHeaderBytes:               5,
		TLSNextProto:                 map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil},
		ConnState:                    func(net.Conn, http.ConnState) {},
		ErrorLog:                     log.New(io.Discard, "", 0),
		BaseContext:                  func(net.Listener) context.Context { return context.Background() },
		ConnContext:                  func(ctx context.Context, _ net.Conn) context.Context { return ctx },
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: 6},
		Protocols:                    protocols,
	}
	// Those of later Go releases.
	for i := range reflect.ValueOf(user).Elem().NumField() {
		v := reflect.ValueOf(user).Elem().Field(i)
		switch {
		case !v.CanSet() || !v.IsZero():
		case v.CanInt():
			v.SetInt(7)
		case v.Kind() == reflect.Bool:
			v.SetBool(true)
		}
	}
	// Those that are not copied: hooks and the handler stand between, and the
	// TLS configuration and its protocols are copies.
	between := map[string]bool{
		"Handler": true, "ConnState": true, "BaseContext": true, "ConnContext": true,
		"TLSConfig": true, "TLSNextProto": true,
	}
	srv := &Server{Server: user, NoSignalHandling: true}
	if err := srv.prepare(); err != nil {
		t.Fatal(err)
	}
	from, to := reflect.ValueOf(user).Elem(), reflect.ValueOf(srv.side.hs).Elem()
	for _, f := range reflect.VisibleFields(from.Type()) {
		if !f.IsExported() {
			continue
		}
		a, b := from.FieldByIndex(f.Index), to.FieldByIndex(f.Index)
		switch {
		case a.IsZero():
			t.Errorf("http.Server.%s is new to this test: set it", f.Name)
		case b.IsZero():
			t.Errorf("http.Server.%s is not in the server that serves", f.Name)
		case !between[f.Name] && !reflect.DeepEqual(a.Interface(), b.Interface()):
			t.Errorf("http.Server.%s is %v in the server that serves, want %v", f.Name, b, a)
		}
	}
}

// TestRequestsWhileServing: what a report reads of the request in the handler
// is that request's, however quickly one follows another.
func TestRequestsWhileServing(t *testing.T) {
	const times = 20_000
	h := &httpConn{c: &conn{m: newManager(drainRules{})}}
	var wg sync.WaitGroup
	wg.Go(func() {
		ring := []*http.Request{
			{Method: "GET", RequestURI: "GET"}, {Method: "DELETE", RequestURI: "DELETE"}, {Method: "QUERY", RequestURI: "QUERY"},
		}
		for i := range times {
			h.enter(ring[i%len(ring)])
			h.leave()
		}
	})
	for range 3 {
		wg.Go(func() {
			for range times {
				for _, line := range h.requests() {
					if line.method != line.target {
						t.Errorf("half of one request and half of another: %v", line)
					}
				}
			}
		})
	}
	wg.Wait()
	h.enter(&http.Request{Method: "GET", RequestURI: "/last"})
	if got := h.requests(); len(got) != 1 || got[0] != (requestLine{method: "GET", target: "/last"}) {
		t.Errorf("in the handler: %v", got)
	}
	h.leave()
	if got := h.requests(); len(got) != 0 {
		t.Errorf("after it: %v", got)
	}
}

// A signal that came while BeforeShutdown ran for Stop used to count as the one
// that began the shutdown. If BeforeShutdown then returned false, the next signal
// counted as the second, and killed a server that was still to serve.
func TestAskMeanwhile(t *testing.T) {
	for _, agreed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{
				NoSignalHandling: true,
				BeforeShutdown:   func() bool { time.Sleep(time.Second); return agreed },
			}
			s.Stop(0)
			synctest.Wait()
			began := time.Now()
			if got := s.life.tryBegin("terminated", nil); got != agreed || time.Since(began) != time.Second {
				t.Errorf("ask returned %v after %v, want %v", got, time.Since(began), agreed)
			}
			if got := s.Phase() != PhaseServing; got != agreed {
				t.Errorf("in %v, agreed: %v", s.Phase(), agreed)
			}
		})
	}
}
