package graceful

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// ListenAndServe listens on the TCP address Addr (":http" if empty) and calls
// Serve.
func (s *Server) ListenAndServe() error {
	l, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// Serve serves the connections that l accepts, and returns when the shutdown
// is over: nil if it was asked for, the error of l's Accept if that is what
// began it. Serve closes l, but for an error of the configuration.
//
// It may be called for several listeners at once: they are drained as one, and
// if one of them fails, all are. If Stop, Shutdown or Close was called before,
// Serve returns nil at once; when the server has served and was stopped, an
// error that wraps http.ErrServerClosed.
//
// A listener from outside may be shared with another process, so its socket is
// only closed, as soon as nobody waits in its queue: see OwnsListener. If it
// has no SetDeadline method (a tls.NewListener) not even that can be known:
// prefer ServeTLS.
func (s *Server) Serve(l net.Listener) error {
	if t, ok := l.(*tlsListener); ok && t != nil {
		return s.serve(t.Listener, t.config)
	}
	return s.serve(l, nil)
}

// Start listens on the TCP address Addr and serves in the background until ctx
// ends, a signal comes or one of the stopping methods is called. It has bound
// the address when it returns: an address in use is its error. stopped is
// closed when the shutdown is over; Report says what happened.
//
// If the http.Server's TLSConfig has a certificate, or a function that gets
// one, Start serves TLS, with ":https" for an empty Addr.
func (s *Server) Start(ctx context.Context) (stopped <-chan struct{}, err error) {
	tl, config, err := s.bind(ctx)
	if err != nil {
		return nil, err
	}
	forget := context.AfterFunc(ctx, func() {
		s.life.order(fmt.Sprintf("the context of Start: %v", context.Cause(ctx)), nil)
	})
	go func() {
		defer forget() // ctx may outlive the server
		if err := s.run(tl, config); err != nil {
			s.logf("%v", err)
		}
	}()
	return s.life.stopped, nil
}

// bind is Start's first half: it listens, and serves nothing yet.
func (s *Server) bind(ctx context.Context) (*listener, *tls.Config, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("graceful: Start: %w", err)
	}
	if err := s.prepare(); err != nil {
		return nil, nil, err
	}
	var config *tls.Config
	addr := ":http"
	if hasCertificate(s.Server.TLSConfig) {
		if s.side.http2Err != nil {
			return nil, nil, s.side.http2Err
		}
		config = s.withProtocols(s.Server.TLSConfig)
		addr = ":https"
	}
	l, err := s.listen(addr)
	if err != nil {
		return nil, nil, err
	}
	tl, err := s.open(l, config)
	if tl == nil {
		if err == nil {
			err = errNotServed
		}
		return nil, nil, err
	}
	return tl, config, nil
}

// Addrs returns the addresses of the listeners that the Server serves or has
// served, in the order in which it began to: with ":0" in Addr, here is the
// real port.
func (s *Server) Addrs() []net.Addr { return s.life.allAddrs() }

// listen opens the TCP address Addr. Misuse is found before the address is
// bound.
func (s *Server) listen(defaultAddr string) (net.Listener, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.life.refusal(); err == errServed {
		return nil, err // also from a server that has not closed its socket yet
	}
	addr := s.Server.Addr
	if addr == "" {
		addr = defaultAddr
	}
	return listen("tcp", addr, s.ReusePort, s.TCPKeepAlive)
}

// serve is Serve, with TLS if config is not nil.
func (s *Server) serve(l net.Listener, config *tls.Config) error {
	if l == nil {
		return errors.New("graceful: Serve with a nil listener")
	}
	if err := s.prepare(); err != nil {
		return err
	}
	tl, err := s.open(l, config)
	if tl == nil {
		return err
	}
	return s.run(tl, config)
}

// open lays tracking over l. It returns nil, and has closed l, if there is
// nothing to serve any more; the error is nil too if nothing ever was.
func (s *Server) open(l net.Listener, config *tls.Config) (*listener, error) {
	m, err := s.life.open()
	if err != nil {
		l.Close()
		return nil, s.refused(err)
	}
	below, limit := l, s.side.limit
	outer, _ := l.(*limitListener)
	if limit != nil {
		outer = nil
	}
	if outer != nil {
		below, limit = outer.Listener, outer.limit
	}
	tl := newListener(m, below, limit)
	if outer != nil {
		outer.served.Store(tl)
		if isStopping(outer.closed) { // before that was stored
			tl.Close()
		}
	}
	tl.original = l
	if config != nil {
		tl.flags = flagTLS
	}
	tl.wrap = func(nc net.Conn, release func()) (net.Conn, *conn) {
		return s.wrap(m, nc, release, tl.flags)
	}
	tl.owned = isOwn(below) || s.OwnsListener
	tl.reuse = s.ReusePort
	tl.grace = s.idleGrace()
	if err := s.life.admit(tl); err != nil {
		l.Close()
		return nil, s.refused(err)
	}
	if !s.NoSignalHandling {
		s.life.catch()
	}
	return tl, nil
}

// refused returns what Serve returns when the lifecycle has refused with err.
func (s *Server) refused(err error) error {
	if err == errNotServed {
		<-s.life.stopped
		return nil
	}
	return err
}

// run serves the connections of tl until the end of everything.
func (s *Server) run(tl *listener, config *tls.Config) (err error) {
	served := false
	var l net.Listener = tl
	if config != nil {
		l = &tlsOver{tls.NewListener(tl, config), tl}
	}
	// A hook that panics for a new connection does so here. Somebody may
	// recover, and the other connections go on.
	defer func() {
		if s.life.release(tl); !served {
			tl.dropLast()
		}
	}()
	err = s.side.hs.Serve(l)
	served = true
	expected := s.life.shutting.Load() || errors.Is(err, http.ErrServerClosed)
	s.life.release(tl)
	if expected {
		err = nil
	} else {
		s.life.order(fmt.Sprintf("accepting on %s failed: %v", tl.Addr(), err), nil)
	}
	<-s.life.stopped
	return err
}
