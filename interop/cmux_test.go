package interop

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/soheilhy/cmux"
	"github.com/tidwall/redcon"

	"github.com/seed-121bbccf/graceful"
)

// TestCmux: HTTP and RESP on one port. cmux closes what it has accepted and not
// yet handed on when it ends, so a client that connects at that moment is lost,
// and nothing behind cmux can help it. If the load balancer stops sending new
// connections during ShutdownDelay, there is no such client, and no request is
// lost.
func TestCmux(t *testing.T) {
	next := func() server {
		root := listen(t)
		m := cmux.New(root)
		srv := &graceful.Server{
			Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "ok")
			})},
			IdleGrace: grace,
		}
		web := m.Match(cmux.HTTP1Fast())
		redis := graceful.NewListener(m.Match(cmux.Any()))
		redis.IdleGrace = grace
		g := newGroup()
		g.ShutdownDelay = 50 * time.Millisecond
		g.Add("web", srv, func() error { return srv.Serve(web) })
		g.Add("redis", redis, func() error {
			return redcon.Serve(redis, func(c redcon.Conn, _ redcon.Command) { c.WriteString("OK") }, nil, nil)
		})
		// The first of the other two that drains has closed root, as cmux's
		// listeners do.
		g.AddFuncs("cmux", m.Serve, func(context.Context) error { m.Close(); return nil })
		return start(t, root.Addr().String(), g)
	}
	play(t, next, func(l *load, n int) {
		if n%2 == 0 {
			http1Client(l, n, nil, "ok")
			return
		}
		respClient(l, n, 1)
	}).wantNoLoss()
}
