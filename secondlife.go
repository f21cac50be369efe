package graceful

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// serveOn serves an HTTP/1 connection on after net/http has been shut down. A
// response that went out before that, without saying close, leaves a client
// that may go on; net/http would close the connection behind it at once. So a
// second http.Server takes it over, which has not been shut down, until it
// ends as any other does: after a response that says close, or quiet.
//
// It is called from net/http's hook for StateIdle, on the connection's own
// goroutine, and returns when the connection is closed. The byte that net/http
// may have read ahead is read again. Of TLS it could not be: see lastAnswer.
//
// What else net/http has in its buffer is lost. Were that the beginning of a
// request, its body would be taken for a request; so a client that sends
// requests behind one another is not served on: to it it is as if net/http had
// closed. Nor is one that did not say how long its body is; net/http is not shut
// down while such a request is in progress (see flagVague).
func (s *Server) serveOn(nc net.Conn, c *conn) {
	h, _ := c.info.Load().(*httpConn)
	if h == nil || c.has(flagTLS) || !c.beyond.exact() {
		return
	}
	if c.has(flagAhead) {
		c.flags.Or(flagGiveBack)
	}
	l := &secondLife{nc: nc, over: make(chan struct{}), addr: nc.LocalAddr()}
	hs := s.side.hs
	second := &http.Server{
		Handler:                      hs.Handler,
		DisableGeneralOptionsHandler: true,
		ReadTimeout:                  hs.ReadTimeout,
		ReadHeaderTimeout:            hs.ReadHeaderTimeout,
		WriteTimeout:                 hs.WriteTimeout,
		IdleTimeout:                  hs.IdleTimeout,
		MaxHeaderBytes:               hs.MaxHeaderBytes,
		ErrorLog:                     hs.ErrorLog,
		Protocols:                    new(http.Protocols),
		TLSNextProto:                 map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ConnContext:                  func(context.Context, net.Conn) context.Context { return h.own },
		ConnState: func(nc net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // it is not
			case http.StateClosed:
				close(l.over)
			case http.StateHijacked:
				s.moved(nc, c, state)
				close(l.over)
			default:
				s.moved(nc, c, state)
			}
		},
	}
	second.Protocols.SetHTTP1(true)
	second.Serve(l) // its error is that of l
	if c.load().state() == connHijacked {
		// It is somebody else's now, but the first net/http closes what it
		// has behind this hook.
		c.flags.Or(flagDisowned)
	}
}

// A secondLife is a listener that accepts one connection, and ends with it.
type secondLife struct {
	nc   net.Conn // nil once it was accepted
	addr net.Addr
	over chan struct{} // closed when the connection is, or is hijacked
}

func (l *secondLife) Accept() (net.Conn, error) {
	if nc := l.nc; nc != nil {
		l.nc = nil
		return nc, nil
	}
	<-l.over
	return nil, net.ErrClosed
}

func (l *secondLife) Close() error { return nil }

func (l *secondLife) Addr() net.Addr { return l.addr }
