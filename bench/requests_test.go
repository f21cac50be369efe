package bench

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "hello, world\n")
})

// served runs f against each server on each network. The allocations that it
// reports are the server's, unless f's clients make some.
func served(b *testing.B, config *tls.Config, f func(*testing.B, *server)) {
	for _, network := range networks {
		b.Run("net="+network.name, func(b *testing.B) {
			each(b, servers, func(b *testing.B, c contender) {
				srv := c.serve(b, network.listen(b), hello, config)
				// Not stop: tylerb's waits for its timeout if a connection is
				// about to become idle when it begins.
				defer srv.kill()
				b.ReportAllocs()
				f(b, srv)
				b.StopTimer()
			})
		})
	}
}

// BenchmarkKeepAlive is a request on a connection that is kept, with several
// clients at it at once. The clients allocate nothing, so that the allocations
// are the server's. In memory there is less noise, since no kernel is in it.
func BenchmarkKeepAlive(b *testing.B) {
	served(b, nil, func(b *testing.B, srv *server) {
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			c := newClient(srv.dial(b))
			defer c.close()
			for pb.Next() {
				c.get(b)
			}
		})
	})
}

// BenchmarkNewConn is a connection with one request.
func BenchmarkNewConn(b *testing.B) {
	served(b, nil, func(b *testing.B, srv *server) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				c := newClient(srv.dial(b))
				c.get(b)
				c.close()
			}
		})
	})
}

// BenchmarkTLS is BenchmarkKeepAlive over TLS.
func BenchmarkTLS(b *testing.B) {
	served(b, traffic.ServerTLS(), func(b *testing.B, srv *server) {
		config := clientTLS()
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			c := newClient(tls.Client(srv.dial(b), config))
			defer c.close()
			for pb.Next() {
				c.get(b)
			}
		})
	})
}

// BenchmarkHTTP2 is a request over HTTP/2, all on one connection. Its
// allocations are the client's as well.
func BenchmarkHTTP2(b *testing.B) {
	served(b, traffic.ServerTLS(), func(b *testing.B, srv *server) {
		transport := &http.Transport{
			DialContext:     func(context.Context, string, string) (net.Conn, error) { return srv.dial(b), nil },
			TLSClientConfig: clientTLS(),
			Protocols:       new(http.Protocols),
		}
		transport.Protocols.SetHTTP2(true)
		defer transport.CloseIdleConnections()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				req, _ := http.NewRequest("GET", "https://127.0.0.1/", nil)
				resp, err := transport.RoundTrip(req)
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
