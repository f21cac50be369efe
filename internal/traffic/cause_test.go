package traffic_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
