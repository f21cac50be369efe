package graceful

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"
)

// http2Bencher returns a function that makes one request for size bytes, of
// net/http's server or of one with the layer.
func http2Bencher(b *testing.B, size int, layer bool) func() {
	body := bytes.Repeat([]byte{'x'}, size)
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) })}
	var addr string
	if layer {
		addr = serveHTTP2(b, hs, false, http2Config{}).addr
	} else {
		hs.Protocols = new(http.Protocols)
		hs.Protocols.SetUnencryptedHTTP2(true)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		addr = ln.Addr().String()
		served := make(chan struct{})
		go func() { hs.Serve(ln); close(served) }()
		b.Cleanup(func() { hs.Close(); <-served })
	}
	t := h2Transport(false)
	b.Cleanup(t.CloseIdleConnections)
	return func() {
		req, _ := http.NewRequest("GET", "http://"+addr, nil)
		resp, err := t.RoundTrip(req)
		if err != nil {
			b.Error(err)
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkHTTP2Layer has net/http's HTTP/2 beside the layer's: one time per
// request, client and all. They take turns in short batches, so that what else
// the machine does hits both, and the medians are compared.
func BenchmarkHTTP2Layer(b *testing.B) {
	const batch = 20
	for _, size := range []int{100, 1 << 20} {
		b.Run(fmt.Sprint("size=", size), func(b *testing.B) {
			do := [2]func(){http2Bencher(b, size, false), http2Bencher(b, size, true)}
			do[0]()
			do[1]()
			var took [2][]time.Duration
			for i := 0; b.Loop(); i++ {
				for j := range 2 {
					which := (i + j) % 2
					began := time.Now()
					for range batch {
						do[which]()
					}
					took[which] = append(took[which], time.Since(began)/batch)
				}
			}
			for i := range took {
				slices.Sort(took[i])
			}
			plain, layer := took[0][len(took[0])/2], took[1][len(took[1])/2]
			b.ReportMetric(float64(plain), "net/http-ns")
			b.ReportMetric(float64(layer), "layer-ns")
			b.ReportMetric(100*(float64(layer)/float64(plain)-1), "%more")
		})
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
