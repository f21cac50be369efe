package interop

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/seed-121bbccf/graceful"
)

// TestHTTP3: quic-go's HTTP/3 server in a group. A request that crosses the
// GOAWAY on the wire is rejected: so the client knows that it was not begun (RFC
// 9114, section 5.2). And quic-go's client, told to leave, sometimes closes its
// connection before it has read the last response. Neither is the group's to
// prevent; nothing else is lost.
func TestHTTP3(t *testing.T) {
	cert, clientTLS := certificate(t)
	var rejected, selfClosed atomic.Int64
	l := play(t, func() server {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
			io.WriteString(w, r.Proto)
		})
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})}
		g := newGroup()
		g.AddFuncs("http3", func() error { return srv.Serve(pc) }, graceful.ShutdownThenClose(srv))
		g.Defer("socket", func(context.Context) error { return pc.Close() })
		return start(t, pc.LocalAddr().String(), g)
	}, func(l *load, n int) {
		tr := &http3.Transport{
			TLSClientConfig: clientTLS.Clone(),
			Dial: func(ctx context.Context, _ string, tlsCfg *tls.Config, cfg *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, l.addr.Load().(string), tlsCfg, cfg)
			},
		}
		defer tr.Close()
		for i := 0; !l.ended(); i++ {
			err := post(tr, "https://example.com/", message(n, i), "HTTP/3.0")
			var e *http3.Error
			switch errors.As(err, &e); {
			case e != nil && e.Remote && e.ErrorCode == http3.ErrCodeRequestRejected:
				rejected.Add(1)
			case e != nil && !e.Remote && e.ErrorCode == http3.ErrCodeNoError:
				selfClosed.Add(1)
			default:
				l.exchange(err)
			}
		}
	})
	l.wantNoLoss()
	t.Logf("%d rejected, %d closed by their clients", rejected.Load(), selfClosed.Load())
	// A client has one connection, with one request on it.
	if n := rejected.Load() + selfClosed.Load(); n > stops*clients {
		t.Errorf("%d were not answered, want at most one for each connection", n)
	}
}
