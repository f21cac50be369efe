package graceful_test

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
// client's end, which is the same for both servers.
func BenchmarkIdleConn(b *testing.B) {
	const n = 10_000
	eachServer(b, func(b *testing.B, serve serveFunc) {
		var weight int64
		for b.Loop() {
			srv := serve(b, newMemListener(), hello, nil)
			few := idleConns(b, srv, 100) // what is there once
			before := memoryInUse()
			clients := idleConns(b, srv, n)
			weight += memoryInUse() - before
			runtime.KeepAlive(few)
			runtime.KeepAlive(clients)
			srv.close()
		}
		b.ReportMetric(float64(weight)/float64(b.N)/n, "B/conn")
	})
}

// BenchmarkDrainIdle shuts a server down that has nothing but idle connections
// in memory, and measures until Shutdown and Serve have returned. In a linear
// drain the time per connection does not depend on their number.
func BenchmarkDrainIdle(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 50_000} {
		b.Run(fmt.Sprintf("conns=%d", n), func(b *testing.B) {
			eachServer(b, func(b *testing.B, serve serveFunc) {
				var t stopwatch
				for b.Loop() {
					srv := serve(b, newMemListener(), hello, nil)
					clients := idleConns(b, srv, n)
					runtime.GC()
					t.start()
					srv.stop(b)
					t.stop()
					runtime.KeepAlive(clients)
				}
				t.report(b)
				b.ReportMetric(float64(t.sum)/float64(b.N)/float64(n), "ns/conn")
			})
		})
	}
}

// BenchmarkStopAfterLast measures from the end of the last answer, 300 ms after
// the shutdown began, until both Shutdown and Serve have returned.
func BenchmarkStopAfterLast(b *testing.B) {
	eachServer(b, func(b *testing.B, serve serveFunc) {
		var t stopwatch
		for b.Loop() {
			began, release := make(chan struct{}), make(chan struct{})
			srv := serve(b, benchNetworks[0].listen(b), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(began)
				<-release
				hello(w, r)
			}), nil)
			nc := srv.dial(b)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				nc.Write(benchRequest)
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
				srv.stop(b)
			}()
			time.Sleep(300 * time.Millisecond) // net/http polls ever more seldom
			close(release)
			<-answered
			t.start()
			<-stopped
			t.stop()
			nc.Close()
		}
		t.report(b)
	})
}

// BenchmarkCloseDeafTLS closes a server whose TLS clients have stopped to read.
// net/http waits up to 5 s for each, so it gets no more than 2.
func BenchmarkCloseDeafTLS(b *testing.B) {
	deaf := func(n int, serve serveFunc) func(*testing.B) {
		return func(b *testing.B) {
			var t stopwatch
			for b.Loop() {
				srv := serve(b, newMemListener(), hello, traffic.ServerTLS())
				clients := make([]*benchClient, n)
				for i := range clients {
					clients[i] = newBenchClient(b, tls.Client(srv.dial(b), benchClientTLS()))
					clients[i].get(b)
				}
				t.start()
				srv.close()
				t.stop()
				for _, c := range clients {
					c.nc.(*tls.Conn).NetConn().Close()
				}
			}
			t.report(b)
		}
	}
	b.Run("conns=2", func(b *testing.B) {
		b.Run("server=nethttp", deaf(2, serveNetHTTP))
		b.Run("server=graceful", deaf(2, serveGraceful))
	})
	b.Run("conns=200/server=graceful", deaf(200, serveGraceful))
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

// idleConns opens n connections and makes a request on each.
func idleConns(b *testing.B, srv *benchServer, n int) []*benchClient {
	clients := make([]*benchClient, n)
	answer := make([]byte, 4096)
	for i := range clients {
		c := newBenchClient(b, srv.dial(b))
		if _, err := c.nc.Write(benchRequest); err != nil {
			b.Fatal(err)
		}
		if _, err := c.nc.Read(answer); err != nil {
			b.Fatal(err)
		}
		clients[i] = c
	}
	return clients
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
