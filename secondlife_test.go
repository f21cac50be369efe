package graceful

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A handler that has written enough for the header to be composed, but not for
// it to be sent, is taken for one that has not begun: its response went out
// without "Connection: close", net/http closed the connection behind it, and
// the client's next request was lost.
func TestSecondLife(t *testing.T) {
	for _, ahead := range []bool{false, true} {
		t.Run(fmt.Sprintf("ahead=%v", ahead), func(t *testing.T) { testSecondLife(t, ahead) })
	}
}

func testSecondLife(t *testing.T, ahead bool) {
	const composed = 3000 // bytes: over net/http's 2 KiB, with the header below 4 KiB
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	var states []http.ConnState
	hs := &http.Server{
		Addr: "127.0.0.1:0",
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(composed+1))
			io.WriteString(w, strings.Repeat("x", composed))
			if r.URL.Path == "/slow" {
				entered <- struct{}{}
				<-leave
			}
			io.WriteString(w, "y")
		}),
		ConnState: func(_ net.Conn, s http.ConnState) { states = append(states, s) },
	}
	srv := &Server{Server: hs, IdleGrace: 20 * time.Millisecond, Timeout: 20 * time.Second, NoSignalHandling: true}
	nc, stopped := startAndDial(t, srv)
	br := bufio.NewReader(nc)
	request := func(path string) { fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) }
	response := func() *http.Response {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != composed+1 || err != nil {
			t.Fatal(n, err)
		}
		return resp
	}

	request("/slow")
	<-entered
	srv.Stop(20 * time.Second)
	for !srv.life.shutting.Load() || !srv.life.m.settled.Load() {
		time.Sleep(time.Millisecond)
	}
	for srv.side.hs.Serve(noListener{}) != http.ErrServerClosed {
		time.Sleep(time.Millisecond)
	}
	if ahead {
		request("/next")
		for !trackedOf(srv).has(flagAhead) {
			time.Sleep(time.Millisecond)
		}
	}
	close(leave)
	if resp := response(); resp.Close {
		t.Fatal("the first response says close: this test tests nothing")
	}
	if !ahead {
		request("/next")
	}
	if resp := response(); !resp.Close {
		t.Error("the second response does not say close")
	}
	<-stopped
	want := []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateActive, http.StateClosed}
	if fmt.Sprint(states) != fmt.Sprint(want) {
		t.Errorf("states %v, want %v", states, want)
	}
}

// A request that does not say how long its body is can't be served on. net/http
// must not be shut down while it is in its handler: the response would not say
// close, net/http would close behind it, and the next request would be lost.
//
// Nor can a request that follows such a one on its connection.
func TestNoSecondLifeForChunked(t *testing.T) {
	const chunked = "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"
	t.Run("alone", func(t *testing.T) { testNoSecondLife(t, "", fmt.Sprintf(chunked, "/slow")) })
	t.Run("before", func(t *testing.T) {
		testNoSecondLife(t, fmt.Sprintf(chunked, "/first"), "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	})
}

// testNoSecondLife sends first, if it is not empty, and awaits its answer; slow
// is in the handler when the stop comes.
func testNoSecondLife(t *testing.T, first, slow string) {
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	srv := &Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				w.WriteHeader(http.StatusOK)
				io.WriteString(w, strings.Repeat("x", 3000)) // composed, not sent
				entered <- struct{}{}
				<-leave
			}
		})},
		IdleGrace: 100 * time.Millisecond, Timeout: 20 * time.Second, NoSignalHandling: true,
	}
	nc, stopped := startAndDial(t, srv)
	br := bufio.NewReader(nc)
	if first != "" {
		io.WriteString(nc, first)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	io.WriteString(nc, slow)
	<-entered
	srv.Stop(20 * time.Second)
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if srv.life.m.settled.Load() {
			t.Fatal("net/http is shut down while a chunked request is in its handler")
		}
	}
	close(leave)
	for i, wantClose := range []bool{false, true} {
		if i == 1 {
			io.WriteString(nc, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("response %d: %v", i, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close != wantClose {
			t.Errorf("response %d: close %v, %v", i, resp.Close, err)
		}
	}
	<-stopped
}

// startAndDial starts srv and returns a connection to it.
func startAndDial(t *testing.T, srv *Server) (net.Conn, <-chan struct{}) {
	t.Helper()
	stopped, err := srv.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", srv.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc, stopped
}

// trackedOf returns the only connection of srv.
func trackedOf(srv *Server) *conn { return srv.life.m.conns()[0] }
