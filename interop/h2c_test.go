package interop

//lint:file-ignore SA1019 programs still use the deprecated package

import (
	"io"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"

	"github.com/seed-121bbccf/graceful"
)

// TestH2C: golang.org/x/net's h2c hijacks the connection and serves HTTP/2 on it
// by itself. WaitHijacked waits until the client has left, and the handler asks
// it to: from "Connection: close" x/net's server makes a GOAWAY. It also says one
// by itself when the http.Server that it was configured with is shut down, but
// not where it hands over to net/http (x/net 0.55, Go 1.27), for there it serves
// each connection with an http.Server of its own. A request that crosses the
// GOAWAY on the wire is not begun, and its client, told so, sends it again.
func TestH2C(t *testing.T) {
	play(t, func() server {
		h2s := new(http2.Server)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-graceful.Draining(r.Context()):
				w.Header().Set("Connection", "close")
			default:
			}
			io.Copy(w, r.Body)
			io.WriteString(w, r.Proto)
		})
		srv := &graceful.Server{
			Server:       &http.Server{Handler: h2c.NewHandler(h, h2s)},
			WaitHijacked: true,
			IdleGrace:    grace,
		}
		if err := http2.ConfigureServer(srv.Server, h2s); err != nil {
			t.Fatal(err)
		}
		l := listen(t)
		g := newGroup()
		g.Add("web", srv, func() error { return srv.Serve(l) })
		return start(t, l.Addr().String(), g)
	}, func(l *load, n int) {
		tr := &http.Transport{DialContext: l.dialContext, Protocols: new(http.Protocols)}
		tr.Protocols.SetUnencryptedHTTP2(true)
		defer tr.CloseIdleConnections()
		for i := 0; !l.ended(); i++ {
			l.exchange(post(tr, "http://server/", message(n, i), "HTTP/2.0"))
		}
	}).wantNoLoss()
}
