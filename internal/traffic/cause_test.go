package traffic_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

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
		{"early hints first", true, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + head + "\r\nokok", true, map[string]int{}},
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

// serving calls serve with each connection to the address that it returns,
// after a request's header was read from it, and closes it then.
func serving(t *testing.T, serve func(c net.Conn, r *http.Request)) string {
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
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				serve(c, r)
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

// A server that never ends a header, or a body, costs its clients no memory.
// The header took draincheck to 5 GB once.
func TestEndless(t *testing.T) {
	const much = 64 << 20
	for name, tc := range map[string]struct {
		begin, more string
		want        string
	}{
		"header line": {"HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 4096), "long header"},
		"headers":     {"HTTP/1.1 200 OK\r\n", strings.Repeat("X: y\r\n", 512), "long header"},
		"status line": {"HTTP/1.1 200 ", strings.Repeat("x", 4096), "long header"},
		"body":        {"HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 4096), ""}, // ends after much
	} {
		t.Run(name, func(t *testing.T) {
			addr := serving(t, func(c net.Conn, r *http.Request) {
				io.WriteString(c, tc.begin)
				more := []byte(tc.more)
				for sent := 0; sent < much; sent += len(more) {
					if _, err := c.Write(more); err != nil {
						return
					}
				}
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			run := start(t, traffic.Load{Addr: addr, Kind: traffic.NewConn, Clients: 1, Limit: 1, Any: true, Method: "GET"})
			<-run.Done()
			res := run.Stop()
			runtime.ReadMemStats(&after)
			want := map[string]int{}
			if tc.want != "" {
				want[tc.want] = 1
			}
			if d := cmp.Diff(want, res.Lost); d != "" {
				t.Errorf("%v %v (-want +got):\n%s", res, res.Errors, d)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > much/4 {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
}

// What a close frame, or an end without one, means for a message on its way.
func TestWebSocketClose(t *testing.T) {
	frame := func(payload string) string { return fmt.Sprintf("\x88%c%s", len(payload), payload) }
	for _, tc := range []struct {
		name          string
		says          string
		refused, lost map[string]int
	}{
		{"1000", frame("\x03\xe8"), map[string]int{"close frame 1000": 1}, nil},
		{"1001", frame("\x03\xe9bye"), map[string]int{"close frame 1001": 1}, nil},
		{"1012", frame("\x03\xf4"), map[string]int{"close frame 1012": 1}, nil},
		{"no code", frame(""), map[string]int{"close frame 1005": 1}, nil},
		{"1011", frame("\x03\xf3"), nil, map[string]int{"close frame 1011": 1}},
		{"none", "", nil, map[string]int{"EOF": 1}},
		{"a message, then none", "\x81\x02hi", nil, map[string]int{"EOF": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := serving(t, func(c net.Conn, r *http.Request) {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "+
					traffic.AcceptKey(r.Header.Get("Sec-WebSocket-Key"))+"\r\n\r\n")
				c.Read(make([]byte, 512)) // the message
				io.WriteString(c, tc.says)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
			})
			run := start(t, traffic.Load{Addr: addr, Kind: traffic.WebSocket, Clients: 1, Limit: 1, Any: true})
			<-run.Done()
			res := run.Stop()
			if d := cmp.Diff([2]map[string]int{tc.refused, tc.lost}, [2]map[string]int{res.Refused, res.Lost}, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%v %v, refused and lost (-want +got):\n%s", res, res.Errors, d)
			}
		})
	}
}

// An event stream that ends between two events is in order; one that ends in the
// middle of one, or of its framing, is lost.
func TestEventStreamEnd(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	for _, tc := range []struct {
		name, says string
		lost       map[string]int
	}{
		{"last chunk", head + "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n0\r\n\r\n", nil},
		{"no last chunk", head + "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n", map[string]int{"truncated": 1}},
		{"closed between events", head + "\r\ndata: x\n\n", nil},
		{"closed in an event", head + "\r\ndata: x\n", map[string]int{"truncated": 1}},
		{"closed in a line", head + "\r\ndata: x\n\ndat", map[string]int{"truncated": 1}},
		{"no event stream", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", map[string]int{"wrong": 1}},
		{"404", "HTTP/1.1 404 Not Found\r\n\r\n", map[string]int{"status 404": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := serving(t, func(c net.Conn, r *http.Request) { io.WriteString(c, tc.says) })
			run := start(t, traffic.Load{Addr: addr, Kind: traffic.SSE, Clients: 1, Limit: 1, Any: true})
			<-run.Done()
			res := run.Stop()
			if d := cmp.Diff(tc.lost, res.Lost, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%v %v (-want +got):\n%s", res, res.Errors, d)
			}
		})
	}
}

// The download of a large response takes a while, that of a small one does not.
func TestDownloadPace(t *testing.T) {
	for size, slow := range map[int]bool{1000: false, 2 << 20: true} {
		body := strings.Repeat("x", size)
		for _, k := range []traffic.Kind{traffic.Stream, traffic.HTTP2Stream} {
			_, addr := serve(t, variant{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }))
			run := start(t, traffic.Load{Addr: addr, Kind: k, Clients: 1, Limit: 1, Any: true, Method: "GET"})
			<-run.Done()
			res := run.Stop()
			if res.Answered != 1 || slow && res.Longest < 90*time.Millisecond || !slow && res.Longest > 45*time.Millisecond {
				t.Errorf("%s of %d bytes: %v in %v", k, size, res, res.Longest)
			}
		}
	}
}
