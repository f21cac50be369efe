package graceful

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// BenchmarkHTTP2Layer has net/http's HTTP/2 beside the layer's. A difference of a
// percent needs many alternating runs on a quiet machine:
//
//	go test -run '^$' -bench 'HTTP2Layer/' -count 20 . | benchstat -col /server -
func BenchmarkHTTP2Layer(b *testing.B) {
	for _, size := range []int{100, 1 << 20} {
		body := bytes.Repeat([]byte{'x'}, size)
		user := func() *http.Server {
			return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) })}
		}
		for _, server := range []string{"net_http", "graceful"} {
			b.Run(fmt.Sprintf("size=%d/server=%s", size, server), func(b *testing.B) {
				var addr string
				if server == "graceful" {
					addr = serveHTTP2(b, user(), false, http2Config{}).addr
				} else {
					hs := user()
					hs.Protocols = new(http.Protocols)
					hs.Protocols.SetUnencryptedHTTP2(true)
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						b.Fatal(err)
					}
					addr = ln.Addr().String()
					go hs.Serve(ln)
					defer hs.Close()
				}
				t := h2Transport(false)
				defer t.CloseIdleConnections()
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						req, _ := http.NewRequest("GET", "http://"+addr, nil)
						resp, err := t.RoundTrip(req)
						if err != nil {
							b.Error(err)
							return
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			})
		}
	}
}

// sink is a connection that costs nothing.
type sink struct {
	net.Conn
	in []byte
	at int
}

func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

func (s *sink) Read(p []byte) (int, error) {
	n := copy(p, s.in[s.at:])
	s.at = (s.at + n) % len(s.in)
	return n, nil
}

// h2Exchange has a request and its response pass c, as net/http reads and writes.
func h2Exchange(c *http2Conn, response, buf []byte) {
	c.Read(buf[:9])
	c.Read(buf[:30])
	c.Write(response)
	c.streams.highest = 0 // the next request is stream 1 again
}

func newH2Exchange() (c *http2Conn, response, buf []byte) {
	end := byte(flagEndStream | flagEndHeaders)
	c = newHTTP2Conn(&sink{in: frame(frameHeaders, end, 1, make([]byte, 30)...)})
	response = concat(
		frame(frameHeaders, flagEndHeaders, 1, make([]byte, 50)...),
		frame(frameData, flagEndStream, 1, make([]byte, 100)...))
	return c, response, make([]byte, 30)
}

// BenchmarkHTTP2Follower is what the follower adds to one request: compare with
// an operation of BenchmarkHTTP2Layer.
func BenchmarkHTTP2Follower(b *testing.B) {
	c, response, buf := newH2Exchange()
	b.ReportAllocs()
	for b.Loop() {
		h2Exchange(c, response, buf)
	}
}

func TestHTTP2FollowerAllocatesNothing(t *testing.T) {
	c, response, buf := newH2Exchange()
	if n := testing.AllocsPerRun(1000, func() { h2Exchange(c, response, buf) }); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
	if n := c.streamCount(); n != 0 {
		t.Errorf("%d streams left: the test does not do what it says", n)
	}
}
