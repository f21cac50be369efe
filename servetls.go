package graceful

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
)

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
