package graceful

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

func TestFarewellIn(t *testing.T) {
	const rest = "Date: x\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct{ p, want string }{ // want "": nothing is said; "=": it says so itself
		{"HTTP/1.1 200 OK\r\n" + rest, "HTTP/1.1 200 OK\r\nConnection: close\r\n" + rest},
		{"HTTP/1.0 200 OK\r\n" + rest, "HTTP/1.0 200 OK\r\nConnection: close\r\n" + rest},
		{"HTTP/1.1 299 status code 299\r\n" + rest, "HTTP/1.1 299 status code 299\r\nConnection: close\r\n" + rest},
		{"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"HTTP/1.1 200 OK\r\nconnection:Keep-Alive\r\n\r\nbody", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody"},
		{"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\n\r\n", "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nConnection: Upgrade\r\n\r\n"},
		{"HTTP/1.1 200 OK\r\nConnection: keep-alive, X\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive, X\r\n\r\n"},
		{"HTTP/1.1 200 OK\r\n\r\nConnection: keep-alive\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nConnection: keep-alive\r\n"},
		{"HTTP/1.1 200 OK\r\nX: cut", "HTTP/1.1 200 OK\r\nConnection: close\r\nX: cut"},
		{"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "="},
		{"HTTP/1.1 101 Switching Protocols\r\n\r\n", ""},
		{"HTTP/1.1 100 Continue\r\n\r\n", ""},
		{"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", ""},
		{"HTTP/1.1 200 OK", ""},
		{"HTTP/2.0 200 OK\r\n\r\n", ""},
		{"5\r\nhello\r\n", ""},
		{"", ""},
	} {
		at, old, field, ok := farewellIn([]byte(tc.p))
		got := ""
		switch {
		case ok && field == "":
			got = "="
		case ok:
			got = tc.p[:at] + field + tc.p[at+old:]
		}
		if got != tc.want {
			t.Errorf("%q:\n got %q\nwant %q", tc.p, got, tc.want)
		}
	}
}

// inShutdown returns a connection with a request in progress, of a server that
// shuts down.
func inShutdown(nc net.Conn) *conn {
	m := newManager(drainRules{})
	m.shutting.Store(true)
	_, c := track(m, nc, nil, nil)
	c.setState(connActive)
	return c
}

// A cutConn takes so many bytes, and fails then.
type cutConn struct {
	net.Conn
	left int
	out  strings.Builder
}

func (c *cutConn) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	c.out.Write(p[:n])
	if n < len(p) {
		return n, errors.New("cut")
	}
	return n, nil
}

// TestFarewellShortWrite: a Write that is cut short says how much of its own bytes
// was written.
func TestFarewellShortWrite(t *testing.T) {
	for _, p := range []string{
		"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbody",
		"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nbody",
	} {
		_, old, field, _ := farewellIn([]byte(p))
		whole := len(p) - old + len(field)
		last := 0
		for cut := range whole + 1 {
			c := inShutdown(&cutConn{left: cut})
			n, err := c.Write([]byte(p))
			if n < last || n > len(p) || (err == nil) != (n == len(p)) || (cut == whole) != (n == len(p)) {
				t.Errorf("%q cut at %d of %d: %d, %v", p, cut, whole, n, err)
			}
			last = n
		}
	}
}

// TestFarewellOnce: what looks like a response within a body is left alone, also
// in the body of a response that began before the shutdown.
func TestFarewellOnce(t *testing.T) {
	const text = "HTTP/1.1 200 OK\r\n\r\n"
	below := &cutConn{left: 1 << 20}
	c := inShutdown(below)
	io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
	io.WriteString(c, text)
	io.WriteString(c, text) // its body
	want := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text
	if got := below.out.String(); got != want {
		t.Errorf("got %q", got)
	}

	below = &cutConn{left: 1 << 20}
	c = inShutdown(below)
	c.m.shutting.Store(false)
	io.WriteString(c, text)
	c.m.shutting.Store(true)
	io.WriteString(c, text)
	if got := below.out.String(); got != text+text {
		t.Errorf("got %q", got)
	}
}

// TestBlank: line ends that net/http ignores before a request do not begin one,
// however they are cut.
func TestBlank(t *testing.T) {
	for _, tc := range []struct {
		reads []string
		want  connState
	}{
		{[]string{"\r\n"}, connIdle},
		{[]string{"\r", "\n"}, connIdle},
		{[]string{"\n", "\n", "\n"}, connIdle},
		{[]string{"\r\n", "G"}, connReceiving},
		{[]string{"\r\nG"}, connReceiving},
		{[]string{"G\r\n"}, connReceiving},
	} {
		m := newManager(drainRules{})
		client, server := net.Pipe()
		nc, c := track(m, server, nil, nil)
		c.h1.buffer = 16
		c.setState(connActive)
		c.setState(connIdle)
		buffered := 0
		for _, s := range tc.reads {
			go io.WriteString(client, s)
			n, _ := nc.Read(make([]byte, 16-buffered))
			buffered += n
		}
		if got := c.load().state(); got != tc.want {
			t.Errorf("%q: %v, want %v", tc.reads, got, tc.want)
		}
		client.Close()
		server.Close()
	}
}

// TestBufferedRequest pins what is assumed of net/http, of each Go release: it
// reads requests into a buffer of one size, from its beginning, and sets a read
// deadline before and behind the wait for four bytes of a request. However little
// or much of a request has come with the one before it, it is seen.
func TestBufferedRequest(t *testing.T) {
	const next = "GET /next HTTP/1.1\r\nHost: x\r\nA: b\r\n\r"
	for _, clear := range []bool{false, true} {
		for n := range len(next) + 1 {
			half := next[:n]
			hs := &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
			if clear { // net/http looks for HTTP/2's preface first
				hs.Protocols = new(http.Protocols)
				hs.Protocols.SetHTTP1(true)
				hs.Protocols.SetUnencryptedHTTP2(true)
			}
			srv := &Server{Server: hs, NoSignalHandling: true}
			nc, stopped := startAndDial(t, srv)
			br := bufio.NewReader(nc)
			for i, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + half} {
				io.WriteString(nc, request)
				if _, err := http.ReadResponse(br, nil); err != nil {
					t.Fatal(i, err)
				}
			}
			want := Stats{Idle: 1}
			if n > 0 {
				want = Stats{Receiving: 1}
			}
			Eventually(t, func() (bool, any) {
				s := srv.Stats()
				return s == want, fmt.Sprintf("HTTP/2 without TLS %v, %q in the buffer: %v", clear, half, s)
			})
			nc.Close()
			srv.Close()
			<-stopped
		}
	}
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

// TestFarewell: a response that net/http has composed before the stop, and sends
// after it, says close, whatever the request was and whatever the handler says of
// the connection. The connection ends with it, without a quiet window; what was
// sent behind the request is not served. Hooks see what they see of net/http's own
// close.
func TestFarewell(t *testing.T) {
	const (
		get     = "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
		chunked = "POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"
		trailer = "POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n1\r\nz\r\n0\r\nT: u\r\n\r\n"
		old     = "GET /slow HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
	)
	for _, tc := range []farewellCase{
		{name: "nothing written", request: get},
		{name: "composed", request: get, composed: 3000},
		{name: "chunked", request: chunked, composed: 3000},
		{name: "with a trailer", request: trailer, composed: 3000},
		{name: "behind a chunked one", before: strings.Replace(chunked, "/slow", "/", 1), request: get, composed: 3000},
		{name: "HTTP/1.0", request: old, composed: 3000},
		{name: "keep-alive by the handler", request: get, composed: 3000, connection: "keep-alive"},
		{name: "a header over 4 KiB, keep-alive at its end", request: get, large: true, connection: "keep-alive"},
		{name: "pipelined", request: get + "GET /behind HTTP/1.1\r\nHost: x\r\n\r\n", composed: 3000},
		{name: "pipelined nonsense", request: get + "nonsense\r\n\r\n"},
		{name: "pipelined in part", request: get + "GET /beh"},
		{name: "one byte ahead", request: get, behind: "G"},
		{name: "one ahead", request: get, behind: "GET /behind HTTP/1.1\r\nHost: x\r\n\r\n"},
		{name: "a stray line end", request: chunked, behind: "\r\n"},
	} {
		for _, over := range []string{"TCP", "TLS", "a TLS listener"} {
			t.Run(tc.name+"/"+over, func(t *testing.T) { tc.play(t, over) })
		}
	}
}

type farewellCase struct {
	name, before, request, behind string

	composed   int    // how many bytes are written before the stop
	connection string // the handler's Connection field
	large      bool   // its header is over 4 KiB
}

func (tc farewellCase) play(t *testing.T, over string) {
	const size = 3001
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	var states []http.ConnState
	var paths []string
	hs := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			paths = append(paths, r.URL.Path)
			io.Copy(io.Discard, r.Body)
			if tc.connection != "" {
				w.Header().Set("Connection", tc.connection)
			}
			if tc.large {
				w.Header().Set("A", strings.Repeat("a", 5000)) // net/http sorts, and so writes it before
			}
			w.Header().Set("Content-Length", fmt.Sprint(size))
			io.WriteString(w, strings.Repeat("x", tc.composed))
			if r.URL.Path == "/slow" {
				entered <- struct{}{}
				<-leave
			}
			io.WriteString(w, strings.Repeat("x", size-tc.composed))
		}),
		ConnState: func(_ net.Conn, s http.ConnState) { states = append(states, s) },
	}
	srv := &Server{Server: hs, IdleGrace: time.Hour, Timeout: 20 * time.Second, NoSignalHandling: true}
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	config := traffic.ServerTLS()
	config.NextProtos = []string{"http/1.1"}
	switch over {
	case "TCP":
		go srv.Serve(l)
	case "TLS":
		hs.TLSConfig = config
		go srv.ServeTLS(l, "", "")
	default:
		go srv.Serve(tls.NewListener(l, config))
	}
	if over != "TCP" {
		trust := traffic.ClientTLS()
		trust.ServerName, trust.NextProtos = "localhost", config.NextProtos
		nc = tls.Client(nc, trust)
	}
	br := bufio.NewReader(nc)
	response := func() *http.Response {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Fatal(n, err)
		}
		return resp
	}
	want := []http.ConnState{http.StateNew, http.StateActive, http.StateClosed}
	if tc.before != "" {
		io.WriteString(nc, tc.before)
		response()
		want = []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateActive, http.StateClosed}
	}
	io.WriteString(nc, tc.request)
	<-entered
	srv.Stop(20 * time.Second)
	waitPhase(t, srv, PhaseDraining)
	if tc.behind != "" {
		io.WriteString(nc, tc.behind)
		if over == "TCP" && strings.TrimSpace(tc.behind) != "" {
			Eventually(t, func() (bool, any) {
				c := srv.life.m.conns()[0]
				return c.has(flagAhead), c.load().state()
			})
		}
	}
	close(leave)
	resp := response()
	if !resp.Close || !tc.large && len(resp.Header["Connection"]) > 0 && resp.Header["Connection"][0] != "close" {
		t.Errorf("the response does not say close: %v", resp.Header)
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("and then %q", rest)
	}
	nc.Close()
	<-srv.StopChan()
	if fmt.Sprint(states) != fmt.Sprint(want) {
		t.Errorf("states %v, want %v", states, want)
	}
	if last := paths[len(paths)-1]; last != "/slow" {
		t.Errorf("%s was served as well", last)
	}
	if r := srv.Report(); r.Finished != 1 || r.KillReason != "" {
		t.Errorf("%v", r)
	}
}
