package graceful_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

var (
	stops   = flag.Int("stops", 0, "how often each server of TestNoLoss is stopped; 0 means 20, or 2 with -race")
	clients = flag.Int("clients", 0, "how many clients are at it meanwhile; 0 means 64, or 12 with -race")
	only    = flag.String("only", "", "play this kind of traffic in TestNoLoss and no other")
	wide    = flag.Int("wide", 6, "how many kinds of traffic TestNoLoss plays at once")
)

// A lossCase is a kind of traffic, and what is done to the server under it.
type lossCase struct {
	kind      traffic.Kind
	tls       bool
	successor bool // binds the same port before the stop
}

func (c lossCase) String() string {
	s := c.kind.Name
	if c.tls {
		s += "/tls"
	}
	if c.successor {
		s += "/successor"
	}
	return s
}

func lossCases() []lossCase {
	var cases []lossCase
	for _, k := range traffic.Kinds() {
		for _, tls := range []bool{false, true} {
			for _, successor := range []bool{false, true} {
				cases = append(cases, lossCase{k, tls, successor})
			}
		}
	}
	return cases
}

// TestNoLoss stops servers in full flow and counts what their clients lost.
// That the clients can see a loss is theirs to prove: internal/traffic's tests
// do, on servers made to lose, and so does BenchmarkLossOfNetHTTP.
func TestNoLoss(t *testing.T) {
	if *stops == 0 {
		*stops = 20
		if raceDetector {
			*stops = 2
		}
	}
	if *clients == 0 {
		*clients = 64
		if raceDetector {
			*clients = 12
		}
	}
	room := make(chan struct{}, *wide)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range lossCases() {
		if *only != "" && c.String() != *only {
			continue
		}
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			began := time.Now()
			res := playLoss(t, c, *stops)
			if res == nil {
				return
			}
			if res.LostCount() > res.Paused() {
				t.Errorf("%v: %v %v", c, res, res.Errors)
			}
			refused := res.RefusedCount()
			if c.kind.Name == traffic.HTTP2Once.Name {
				// When a GOAWAY comes between the choice of a connection and
				// its use, net/http's client closes the body that it has not
				// read, and then finds it closed. Nothing has been sent.
				refused -= res.Refused["handshake"]
			}
			if c.successor && refused > 0 {
				t.Errorf("%v: refused: %v %v", c, res, res.Errors)
			}
			if c.successor && res.Resent > 0 {
				t.Errorf("%v: %d waited for a second to be connected: %v %v", c, res.Resent, res, res.Errors)
			}
			if testing.Verbose() {
				fmt.Printf("%-30v %6.2fs %v\n", c, time.Since(began).Seconds(), res)
			}
		})
	}
}

// playLoss stops n servers, one after the other on one port, and returns what
// happened to clients that were there all the time.
func playLoss(t *testing.T, c lossCase, n int) *traffic.Result {
	h := &traffic.Handler{Draining: graceful.Draining}
	srv, addr := startServer(t, c, h, "127.0.0.1:0")
	if srv == nil {
		return nil
	}
	load := traffic.Load{
		Addr: addr, Kind: c.kind, Clients: *clients, Conns: 8,
		Redial: 5 * time.Millisecond, Work: time.Millisecond,
		Window: graceOfServers,
	}
	if c.tls {
		load.TLS = traffic.ClientTLS()
	}
	run, err := load.Start(t.Context())
	if err != nil {
		t.Error(err)
		return nil
	}
	for i := range n {
		// An idle client makes one request on each connection, and no more.
		wait := func() error { return run.WaitMore(2 * *clients) }
		if c.kind.Name == traffic.Idle.Name {
			wait = func() error { return run.WaitSteady((i + 1) * *clients) }
		}
		if err := wait(); err != nil {
			t.Error(c, err)
			break
		}
		stopping := srv
		if c.successor {
			srv, _ = startServer(t, c, h, addr)
		}
		stopServer(t, c, stopping, i)
		if !c.successor {
			srv, _ = startServer(t, c, h, addr)
		}
		if srv == nil {
			break
		}
	}
	res := run.Stop()
	if srv != nil {
		srv.Close()
	}
	return res
}

// graceOfServers is the quiet window of the servers that are stopped.
const graceOfServers = 300 * time.Millisecond

// startServer starts a server for c.
func startServer(t *testing.T, c lossCase, h http.Handler, addr string) (*graceful.Server, string) {
	hs := &http.Server{Addr: addr, Handler: h, Protocols: new(http.Protocols)}
	hs.Protocols.SetHTTP1(true)
	hs.Protocols.SetHTTP2(true)
	hs.Protocols.SetUnencryptedHTTP2(true)
	if c.tls {
		hs.TLSConfig = traffic.ServerTLS()
	}
	srv := &graceful.Server{
		Server:           hs,
		Timeout:          30 * time.Second,
		IdleGrace:        graceOfServers,
		ReusePort:        c.successor,
		WaitHijacked:     true,
		NoSignalHandling: true,
	}
	if os.Getenv("GRACEFUL_LOG") != "" {
		srv.Logger = graceful.DefaultLogger()
	}
	if _, err := srv.Start(t.Context()); err != nil {
		t.Error(c, err)
		return nil, ""
	}
	return srv, srv.Addrs()[0].String()
}

func stopServer(t *testing.T, c lossCase, srv *graceful.Server, i int) {
	began := time.Now()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Errorf("%v, stop %d: %v\n%v", c, i, err, srv.Report())
	}
	if r := srv.Report(); r.KillReason != "" || r.IncompleteClosed > 0 {
		t.Errorf("%v, stop %d took %v\n%v", c, i, time.Since(began), r)
	}
}

// BenchmarkLossOfNetHTTP plays TestNoLoss's traffic against http.Server's own
// Shutdown, with ours beside it, and reports how many requests a stop loses.
// An operation is a stop in full flow:
//
//	go test -run '^$' -bench LossOfNetHTTP -benchtime 20x
//
// It asserts nothing: that net/http's numbers are not 0 shows that the clients
// can see a loss.
func BenchmarkLossOfNetHTTP(b *testing.B) {
	for _, kind := range []traffic.Kind{
		traffic.KeepAlive, traffic.NewConn, traffic.HalfNew5, traffic.HalfKept5,
		traffic.Think10, traffic.HTTP2,
	} {
		b.Run("kind="+kind.Name, func(b *testing.B) {
			b.Run("server=nethttp", func(b *testing.B) {
				countLosses(b, kind, func(hs *http.Server, l net.Listener) (shutdown func(context.Context) error) {
					go func() {
						if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
							b.Error(err)
						}
					}()
					return hs.Shutdown
				})
			})
			b.Run("server=graceful", func(b *testing.B) {
				countLosses(b, kind, func(hs *http.Server, l net.Listener) (shutdown func(context.Context) error) {
					srv := &graceful.Server{
						Server: hs, OwnsListener: true, IdleGrace: graceOfServers,
						NoSignalHandling: true,
					}
					go func() {
						if err := srv.Serve(l); err != nil {
							b.Error(err)
						}
					}()
					return srv.Shutdown
				})
			})
		})
	}
}

// countLosses stops a server b.N times under 64 clients.
func countLosses(b *testing.B, kind traffic.Kind, serve func(*http.Server, net.Listener) func(context.Context) error) {
	var lost, sent int
	var took time.Duration
	for range b.N {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		hs := &http.Server{Handler: &traffic.Handler{}, Protocols: new(http.Protocols)}
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
		shutdown := serve(hs, l)
		load := traffic.Load{
			Addr: l.Addr().String(), Kind: kind, Clients: 64, Conns: 8,
			Work: time.Millisecond, Timeout: 5 * time.Second,
		}
		run, err := load.Start(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if err := run.WaitSteady(2 * load.Clients); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := shutdown(b.Context()); err != nil {
			b.Error(err)
		}
		took += time.Since(began)
		res := run.Stop()
		lost += res.LostCount()
		sent += res.Sent
	}
	n := float64(b.N)
	b.ReportMetric(float64(lost)/n, "lost/stop")
	b.ReportMetric(float64(sent)/n, "sent/stop")
	b.ReportMetric(float64(took.Nanoseconds())/n, "ns/op")
}
