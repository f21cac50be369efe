package bench

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// BenchmarkIdleConn opens 10,000 connections in memory, makes one request on
// each and reports what each of them weighs then: heap and stacks, with the
// client's end, which is the same for every server.
func BenchmarkIdleConn(b *testing.B) {
	const n = 10_000
	each(b, servers, func(b *testing.B, c contender) {
		var weight int64
		for b.Loop() {
			// The runtime keeps what describes a goroutine for the next one: the
			// first contender would pay for all of them.
			goroutines := runtime.NumGoroutine()
			used := c.serve(b, newMemListener(), hello, nil)
			idleConns(b, used, n)
			used.stop()
			for i := 0; runtime.NumGoroutine() > goroutines && i < 500; i++ { // tylerb leaves some
				time.Sleep(time.Millisecond)
			}

			srv := c.serve(b, newMemListener(), hello, nil)
			few := idleConns(b, srv, 100) // what is there once
			before := memoryInUse()
			clients := idleConns(b, srv, n)
			weight += memoryInUse() - before
			runtime.KeepAlive(few)
			srv.stop()
			runtime.KeepAlive(clients)
		}
		b.ReportMetric(float64(weight)/float64(b.N)/n, "B/conn")
		b.ReportMetric(0, "ns/op") // not the matter here
	})
}

// BenchmarkDrainIdle shuts a server down that has nothing but idle connections
// in memory, and measures until the stop and Serve have returned. In a linear
// drain the time per connection does not depend on their number. net/http's,
// and with it ory's, returns when it has closed the connections; the others
// wait until their goroutines are done with them. gone-ns/conn compares what is
// the same for all: it counts until those goroutines have ended.
func BenchmarkDrainIdle(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 50_000, 100_000} {
		b.Run(fmt.Sprintf("conns=%d", n), func(b *testing.B) {
			each(b, stoppers, func(b *testing.B, c contender) {
				var t, gone stopwatch
				for b.Loop() {
					// A few are the server's own, and tylerb leaves some.
					goroutines := runtime.NumGoroutine() + 20
					srv := c.serve(b, newMemListener(), hello, nil)
					clients := idleConns(b, srv, n)
					runtime.GC() // and by its end all are idle
					t.start()
					gone.start()
					srv.stop()
					t.stop()
					for runtime.NumGoroutine() > goroutines {
						time.Sleep(20 * time.Microsecond)
					}
					gone.stop()
					runtime.KeepAlive(clients)
				}
				t.report(b)
				b.ReportMetric(float64(t.sum)/float64(b.N)/float64(n), "ns/conn")
				b.ReportMetric(float64(gone.sum)/float64(b.N)/float64(n), "gone-ns/conn")
			})
		})
	}
}

// BenchmarkStopAfterLast measures from when the last handler is let go, so with
// the answer's way to the client, until both the stop and Serve have returned.
// How long the stop had waited by then matters: net/http looks whether it is
// done in intervals that double up to half a second.
func BenchmarkStopAfterLast(b *testing.B) {
	for _, after := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		b.Run(fmt.Sprintf("after=%v", after), func(b *testing.B) {
			each(b, stoppers, func(b *testing.B, c contender) {
				var t stopwatch
				for b.Loop() {
					stopAfterLast(b, c, after, &t)
				}
				t.report(b)
			})
		})
	}
}

func stopAfterLast(b *testing.B, c contender, after time.Duration, t *stopwatch) {
	began, release := make(chan struct{}), make(chan struct{})
	srv := c.serve(b, networks[0].listen(b), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-release
		hello(w, r)
	}), nil)
	nc := srv.dial(b)
	defer nc.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		nc.Write(request)
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			b.Error(err)
			return
		}
		io.Copy(io.Discard, resp.Body)
	}()
	<-began
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		srv.stop()
	}()
	time.Sleep(after)
	t.start()
	close(release)
	<-stopped
	t.stop()
	<-answered
}

// BenchmarkKillDeafTLS kills a server whose TLS clients have stopped to read.
// net/http and tylerb wait up to 5 s for each, so they get no more than 2. ory
// has no way to kill.
func BenchmarkKillDeafTLS(b *testing.B) {
	for _, bc := range []struct {
		conns      int
		contenders []contender
	}{
		{2, servers},
		{200, []contender{ours}},
	} {
		b.Run(fmt.Sprintf("conns=%d", bc.conns), func(b *testing.B) {
			each(b, bc.contenders, func(b *testing.B, c contender) {
				var t stopwatch
				for b.Loop() {
					killDeafTLS(b, c, bc.conns, &t)
				}
				t.report(b)
			})
		})
	}
}

func killDeafTLS(b *testing.B, c contender, n int, t *stopwatch) {
	srv := c.serve(b, newMemListener(), hello, traffic.ServerTLS())
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = newClient(tls.Client(srv.dial(b), clientTLS()))
		clients[i].get(b)
	}
	t.start()
	srv.kill()
	t.stop()
	for _, c := range clients {
		c.nc.(*tls.Conn).NetConn().Close()
	}
}

// A stopwatch measures a part of what a benchmark does. b.StopTimer would let
// it repeat the rest without end.
type stopwatch struct {
	sum   time.Duration
	since time.Time
}

func (t *stopwatch) start() { t.since = time.Now() }

func (t *stopwatch) stop() { t.sum += time.Since(t.since) }

func (t *stopwatch) report(b *testing.B) {
	b.ReportMetric(float64(t.sum.Nanoseconds())/float64(b.N), "ns/op")
}

// memoryInUse returns the bytes in use by the heap and by stacks, when nothing
// is left to collect.
func memoryInUse() int64 {
	for range 3 { // once more for each generation of a sync.Pool
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
