package graceful

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// testCert is a certificate for example.com, and testTLS a client's
// configuration that trusts it. The keys and curves are the cheap ones: under
// the race detector others take 10 ms and more for a handshake.
var testCert, testTLS = func() (tls.Certificate, *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"example.com"},
		NotAfter:     time.Now().Add(time.Hour),
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &tls.Config{
		RootCAs: roots, ServerName: "example.com", CurvePreferences: []tls.CurveID{tls.X25519},
	}
}()

type h2Server struct {
	*http.Server
	layer *http2Layer
	addr  string
	done  chan struct{}

	open     atomic.Int64 // connections, handshakes included
	accepted atomic.Int64
	dialed   atomic.Int64 // counted by who dials
}

// waitGone waits for d until no connection is left and reports whether that
// came to be.
func (s *h2Server) waitGone(d time.Duration) bool {
	for end := time.Now().Add(d); s.open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// serveHTTP2 serves user's configuration as a Server would: from a copy of it,
// with the layer installed.
func serveHTTP2(tb testing.TB, user *http.Server, overTLS bool, cfg http2Config) *h2Server {
	tb.Helper()
	cfg.serveTLS = overTLS
	if overTLS {
		if user.TLSConfig == nil {
			user.TLSConfig = new(tls.Config)
		}
		user.TLSConfig.Certificates = []tls.Certificate{testCert}
	} else if user.Protocols == nil {
		user.Protocols = new(http.Protocols)
		user.Protocols.SetUnencryptedHTTP2(true)
		user.Protocols.SetHTTP1(true)
	}
	layer, plain, err := newHTTP2(user, cfg)
	if layer == nil {
		tb.Fatalf("no layer: %q, %v", plain, err)
	}
	hs := &http.Server{
		Handler: user.Handler, TLSConfig: user.TLSConfig, ReadTimeout: user.ReadTimeout,
		ReadHeaderTimeout: user.ReadHeaderTimeout, WriteTimeout: user.WriteTimeout,
		IdleTimeout: user.IdleTimeout, MaxHeaderBytes: user.MaxHeaderBytes,
		TLSNextProto: user.TLSNextProto, ErrorLog: user.ErrorLog,
		BaseContext: user.BaseContext, ConnContext: user.ConnContext, HTTP2: user.HTTP2,
		Protocols: user.Protocols,
	}
	layer.install(hs)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &h2Server{Server: hs, layer: layer, addr: ln.Addr().String(), done: make(chan struct{})}
	hs.ConnState = func(nc net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.open.Add(1)
			s.accepted.Add(1)
		case http.StateClosed:
			s.open.Add(-1)
		}
		if user.ConnState != nil {
			user.ConnState(nc, state)
		}
	}
	go func() {
		defer close(s.done)
		if overTLS {
			hs.ServeTLS(ln, "", "")
		} else {
			hs.Serve(ln)
		}
	}()
	tb.Cleanup(s.close)
	return s
}

func (s *h2Server) close() {
	s.Close()
	<-s.done
}

// h2Transport returns a client transport that speaks HTTP/2 only.
func h2Transport(overTLS bool) *http.Transport {
	t := &http.Transport{TLSClientConfig: testTLS.Clone(), Protocols: new(http.Protocols)}
	if overTLS {
		t.Protocols.SetHTTP2(true)
	} else {
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}
