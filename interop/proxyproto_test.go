package interop

import (
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/seed-121bbccf/graceful"
)

// TestProxyProtocol: a balancer's header before each connection's first request.
// No request is lost, and each is served as that of the client that the header
// names.
func TestProxyProtocol(t *testing.T) {
	play(t, func() server {
		srv := &graceful.Server{
			Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, r.RemoteAddr)
			})},
			IdleGrace: grace,
		}
		l := listen(t)
		g := newGroup()
		g.Add("web", srv, func() error { return srv.Serve(&proxyproto.Listener{Listener: l}) })
		return start(t, l.Addr().String(), g)
	}, func(l *load, n int) {
		client := &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(n)), Port: 1000 + n}
		http1Client(l, n, func(nc net.Conn) error {
			_, err := proxyproto.HeaderProxyFromAddrs(2, client, nc.RemoteAddr()).WriteTo(nc)
			return err
		}, client.String())
	}).wantNoLoss()
}
