package graceful

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
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

// ListenAndServeTLS listens on the TCP address Addr (":https" if empty) and
// calls ServeTLS.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.listenAndServeTLS(config)
}

// ListenAndServeTLSConfig listens on the TCP address Addr (":https" if empty)
// and serves TLS with config, in which there must be a certificate or a
// function that gets one. The http.Server's own TLSConfig is not used. config
// is not changed: HTTP/2 and HTTP/1.1 are added to a copy's NextProtos, as far
// as the http.Server's Protocols allow.
func (s *Server) ListenAndServeTLSConfig(config *tls.Config) error {
	if config == nil {
		return errors.New("graceful: ListenAndServeTLSConfig with a nil config")
	}
	if !hasCertificate(config) {
		return errors.New("graceful: the TLS config has neither a certificate nor a function that gets one")
	}
	if err := s.prepare(); err != nil {
		return err
	}
	return s.listenAndServeTLS(s.withProtocols(config))
}

func (s *Server) listenAndServeTLS(config *tls.Config) error {
	l, err := s.listen(":https")
	if err != nil {
		return err
	}
	return s.serve(l, config)
}

// ListenTLS listens on the TCP address Addr (":https" if empty) and returns a
// listener to pass to Serve, for those who need the listener itself. The files
// are as with ServeTLS. If Serve is never called, it must be closed.
func (s *Server) ListenTLS(certFile, keyFile string) (net.Listener, error) {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	l, err := s.listen(":https")
	if err != nil {
		return nil, err
	}
	return &tlsListener{Listener: l, config: config}, nil
}

// A tlsListener is what ListenTLS returns. Serve takes it apart and lays TLS
// over the tracked connection; for anybody else it is a TLS listener.
type tlsListener struct {
	net.Listener
	config *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(nc, l.config), nil
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

// ServeTLS is Serve with TLS over the connections that l accepts. certFile and
// keyFile hold the certificate (with the intermediate ones behind it) and its
// key; both may be empty if the http.Server's TLSConfig has a certificate.
func (s *Server) ServeTLS(l net.Listener, certFile, keyFile string) error {
	config, err := s.tlsConfig(certFile, keyFile)
	if err != nil {
		return err
	}
	return s.serve(l, config)
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
	context.AfterFunc(ctx, func() {
		s.life.order(fmt.Sprintf("the context of Start: %v", context.Cause(ctx)), nil)
	})
	go func() {
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
	if s.life.Phase() == PhaseStopped && s.life.hasServed() {
		return nil, errServed
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
		if err == errNotServed {
			<-s.life.stopped
			err = nil
		}
		return nil, err
	}
	_, own := l.(*ownListener)
	below, limit := l, s.side.limit
	if ll, ok := l.(*limitListener); ok && limit == nil {
		below, limit = ll.Listener, ll.limit
		_, own = below.(*ownListener)
	}
	tl := newListener(m, below, limit)
	tl.original = l
	if config != nil {
		tl.flags = flagTLS
	}
	tl.wrap = func(nc net.Conn, release func()) (net.Conn, *conn) {
		return s.wrap(m, nc, release, tl.flags)
	}
	tl.owned = own || s.OwnsListener
	tl.reuse = s.ReusePort
	tl.grace = s.idleGrace()
	if !s.life.admit(tl) {
		l.Close()
		return nil, errServed
	}
	if !s.NoSignalHandling {
		s.life.catch()
	}
	return tl, nil
}

// run serves the connections of tl until the end of everything.
func (s *Server) run(tl *listener, config *tls.Config) error {
	var l net.Listener = tl
	if config != nil {
		l = &tlsOver{tls.NewListener(tl, config), tl}
	}
	err := s.side.hs.Serve(l)
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

// A tlsOver is TLS over a tracked listener.
type tlsOver struct {
	net.Listener
	tl *listener
}

// tlsConfig returns a copy of the http.Server's TLS configuration with the
// certificate from the files, if they are named, and with the protocols.
func (s *Server) tlsConfig(certFile, keyFile string) (*tls.Config, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if s.side.http2Err != nil {
		return nil, s.side.http2Err
	}
	config := s.Server.TLSConfig
	if config == nil {
		config = new(tls.Config)
	}
	config = s.withProtocols(config)
	if hasCertificate(config) && certFile == "" && keyFile == "" {
		return config, nil
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("graceful: certificate %q, key %q: %w", certFile, keyFile, err)
	}
	config.Certificates = []tls.Certificate{cert}
	return config, nil
}

func hasCertificate(c *tls.Config) bool {
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}

// withProtocols returns a copy of config that offers to clients what the
// http.Server speaks, as its ServeTLS does.
func (s *Server) withProtocols(config *tls.Config) *tls.Config {
	config = config.Clone()
	var http1, http2 bool
	if p := s.Server.Protocols; p != nil {
		http1, http2 = p.HTTP1(), p.HTTP2()
	} else {
		http1, http2 = true, s.side.speaksHTTP2
	}
	protos := slices.DeleteFunc(slices.Clone(config.NextProtos), func(p string) bool {
		return p == "http/1.1" && !http1 || p == "h2" && !http2
	})
	if http2 && !slices.Contains(protos, "h2") {
		protos = append(protos, "h2")
	}
	if http1 && !slices.Contains(protos, "http/1.1") {
		protos = append(protos, "http/1.1")
	}
	config.NextProtos = protos
	return config
}
