package graceful_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

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
