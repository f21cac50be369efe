package bench

import (
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// BenchmarkTurns is a keep-alive request over TCP, over TLS and over HTTP/2, in
// short turns: each contender serves its own clients for a while, in an order that
// changes with every round, for b.N rounds. What the machine does meanwhile then
// falls upon all of them alike, so that a difference of one percent is seen.
// net/http is in it twice: the second, whose metrics are again-%, says how far the
// figures can be trusted. The others are net/http with the listener's connections
// in a wrapper that does nothing, and this library.
//
// The metrics are the median over the rounds of net/http's time per request, and
// how many percent more each of the others takes: wall time (-%), and processor
// time of the whole process, clients included (-cpu%).
func BenchmarkTurns(b *testing.B) {
	b.Run("over=tcp", func(b *testing.B) {
		turns(b, nil, func(b *testing.B, srv *server) []func(testing.TB) {
			return eachClient(8, func() func(testing.TB) {
				c := newClient(srv.dial(b))
				b.Cleanup(c.close)
				return c.get
			})
		})
	})
	b.Run("over=tls", func(b *testing.B) {
		config := clientTLS()
		turns(b, traffic.ServerTLS(), func(b *testing.B, srv *server) []func(testing.TB) {
			return eachClient(8, func() func(testing.TB) {
				c := newClient(tls.Client(srv.dial(b), config))
				b.Cleanup(c.close)
				return c.get
			})
		})
	})
	b.Run("over=http2", func(b *testing.B) {
		turns(b, traffic.ServerTLS(), func(b *testing.B, srv *server) []func(testing.TB) {
			transport := &http.Transport{
				DialContext:     func(context.Context, string, string) (net.Conn, error) { return srv.dial(b), nil },
				TLSClientConfig: clientTLS(),
				Protocols:       new(http.Protocols),
			}
			transport.Protocols.SetHTTP2(true)
			b.Cleanup(transport.CloseIdleConnections)
			return eachClient(8, func() func(testing.TB) {
				return func(tb testing.TB) {
					req, _ := http.NewRequest("GET", "https://127.0.0.1/", nil)
					resp, err := transport.RoundTrip(req)
					if err != nil {
						tb.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	})
}

func eachClient(n int, f func() func(testing.TB)) []func(testing.TB) {
	clients := make([]func(testing.TB), n)
	for i := range clients {
		clients[i] = f()
	}
	return clients
}

func turns(b *testing.B, config *tls.Config, clients func(*testing.B, *server) []func(testing.TB)) {
	const turn = 40 * time.Millisecond
	plain := func(tb testing.TB, l net.Listener) *server { return serveNetHTTP(tb, l, hello, config) }
	contenders := []*inTurns{
		{name: "nethttp", serve: plain},
		{name: "again", serve: plain},
		{name: "wrapped", serve: func(tb testing.TB, l net.Listener) *server {
			return serveNetHTTP(tb, wrapListener{l}, hello, config)
		}},
		{name: "graceful", serve: func(tb testing.TB, l net.Listener) *server {
			return serveGraceful(tb, l, hello, config)
		}},
	}
	for _, c := range contenders {
		srv := c.serve(b, networks[0].listen(b))
		b.Cleanup(srv.kill)
		c.clients = clients(b, srv)
		for _, get := range c.clients {
			get(b)
		}
		c.turn(b, turn) // to get warm
		c.wall, c.cpu = nil, nil
	}
	order := slices.Clone(contenders)
	for b.Loop() {
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			c.turn(b, turn)
		}
	}
	b.ReportMetric(0, "ns/op") // of a round it says nothing
	wall, cpu := median(contenders[0].wall), median(contenders[0].cpu)
	b.ReportMetric(wall, "nethttp-ns/req")
	b.ReportMetric(cpu, "nethttp-cpu-ns/req")
	for _, c := range contenders[1:] {
		b.ReportMetric(100*(median(c.wall)/wall-1), c.name+"-%")
		b.ReportMetric(100*(median(c.cpu)/cpu-1), c.name+"-cpu%")
	}
}

type inTurns struct {
	name      string
	serve     func(testing.TB, net.Listener) *server
	clients   []func(testing.TB) // each makes a request
	wall, cpu []float64          // per request, in ns, of each turn
}

// turn has all clients make requests for d, and notes how long one took.
func (c *inTurns) turn(tb testing.TB, d time.Duration) {
	const between = 16 // looks at the clock
	var wg sync.WaitGroup
	rounds := make([]int, len(c.clients))
	used, began := processorTime(), time.Now()
	for i, get := range c.clients {
		wg.Go(func() {
			for time.Since(began) < d {
				for range between {
					get(tb)
				}
				rounds[i]++
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	used = processorTime() - used
	n := 0
	for _, r := range rounds {
		n += r * between
	}
	c.wall = append(c.wall, float64(took)/float64(n))
	c.cpu = append(c.cpu, float64(used)/float64(n))
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2]
}

// A wrapListener hands out connections in a wrapper that only passes on.
type wrapListener struct{ net.Listener }

type wrapConn struct{ *net.TCPConn }

func (l wrapListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wrapConn{nc.(*net.TCPConn)}, nil
}

func (c *wrapConn) Read(p []byte) (int, error)  { return c.TCPConn.Read(p) }
func (c *wrapConn) Write(p []byte) (int, error) { return c.TCPConn.Write(p) }
