package bench

import (
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkTurns is BenchmarkKeepAlive in short turns: each contender serves
// its own clients for turn, in an order that changes with every round, for b.N
// rounds. What the machine does meanwhile then falls upon all of them alike, so
// that a difference of one percent is seen. net/http is in it twice: the second,
// whose metric is again-%, says how far the figures can be trusted. The others
// are net/http with the listener's connections in a wrapper that does nothing,
// and this library.
//
// The metrics are the median over the rounds of net/http's time per request and
// how many percent more than that each of the others takes.
func BenchmarkTurns(b *testing.B) {
	const turn = 40 * time.Millisecond
	wrapped := func(tb testing.TB, l net.Listener) *server {
		return serveNetHTTP(tb, wrapListener{l}, hello, nil)
	}
	plain := func(tb testing.TB, l net.Listener) *server { return serveNetHTTP(tb, l, hello, nil) }
	contenders := []*inTurns{
		{name: "nethttp", serve: plain},
		{name: "again", serve: plain},
		{name: "wrapped", serve: wrapped},
		{name: "graceful", serve: func(tb testing.TB, l net.Listener) *server {
			return serveGraceful(tb, l, hello, nil)
		}},
	}
	for _, c := range contenders {
		srv := c.serve(b, networks[0].listen(b))
		defer srv.kill()
		for range 8 {
			client := newClient(srv.dial(b))
			defer client.close()
			client.get(b)
			c.clients = append(c.clients, client)
		}
		c.turn(b, turn) // to get warm
	}
	order := slices.Clone(contenders)
	for b.Loop() {
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			c.took = append(c.took, c.turn(b, turn))
		}
	}
	base := contenders[0].median()
	b.ReportMetric(0, "ns/op") // of a round it says nothing
	b.ReportMetric(base, "nethttp-ns/req")
	for _, c := range contenders[1:] {
		b.ReportMetric(100*(c.median()/base-1), c.name+"-%")
	}
}

type inTurns struct {
	name    string
	serve   func(testing.TB, net.Listener) *server
	clients []*client
	took    []float64 // per request, in ns, of each turn
}

// turn has all clients make requests for d, and returns how long one took.
func (c *inTurns) turn(tb testing.TB, d time.Duration) float64 {
	const between = 16 // looks at the clock
	var wg sync.WaitGroup
	rounds := make([]int, len(c.clients))
	began := time.Now()
	for i, client := range c.clients {
		wg.Go(func() {
			for time.Since(began) < d {
				for range between {
					client.get(tb)
				}
				rounds[i]++
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	n := 0
	for _, r := range rounds {
		n += r * between
	}
	return float64(took.Nanoseconds()) / float64(n)
}

func (c *inTurns) median() float64 {
	s := slices.Sorted(slices.Values(c.took))
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
