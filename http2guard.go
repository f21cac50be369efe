package graceful

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// All that is assumed of net/http beyond its documentation is in this file, and
// TestHTTP2Assumptions pins it.

// The keys of http.Server.TLSNextProto: the one of ALPN, and the one under
// which net/http and golang.org/x/net/http2 hand each other connections that
// carry no TLS, the client's preface already read.
const (
	protoHTTP2            = "h2"
	protoUnencryptedHTTP2 = "unencrypted_http2"
)

// nextProto is what TLSNextProto's entries are.
type nextProto = func(*http.Server, *tls.Conn, http.Handler)

// wantsHTTP2 reports whether net/http would configure HTTP/2 for s: the
// conditions of its Serve, or of ServeTLS.
func wantsHTTP2(s *http.Server, serveTLS bool) bool {
	if s.Protocols != nil {
		if !s.Protocols.HTTP2() && !s.Protocols.UnencryptedHTTP2() {
			return false
		}
	} else if s.TLSNextProto != nil {
		return false // the historic way of switching it off
	}
	if serveTLS || s.TLSConfig == nil {
		return true
	}
	if s.Protocols != nil && s.Protocols.UnencryptedHTTP2() {
		return true
	}
	return slices.Contains(s.TLSConfig.NextProtos, protoHTTP2)
}

// configureHTTP2 returns a server on which net/http has configured HTTP/2 as it
// would on user. That happens in Serve, so Serve is called, with a listener
// that has nothing.
func configureHTTP2(user *http.Server) (*http.Server, error) {
	var p http.Protocols
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	h := &http.Server{
		Protocols:   &p,
		ReadTimeout: user.ReadTimeout, // in place of a missing IdleTimeout
		IdleTimeout: user.IdleTimeout,
		HTTP2:       user.HTTP2,
	}
	if user.TLSConfig != nil {
		h.TLSConfig = user.TLSConfig.Clone() // its CipherSuites are checked
	}
	if err := h.Serve(noListener{}); err != errNoListener {
		return nil, err
	}
	return h, nil
}

var errNoListener = errors.New("graceful: no listener")

// noListener is a listener that never had a connection.
type noListener struct{}

func (noListener) Accept() (net.Conn, error) { return nil, errNoListener }
func (noListener) Close() error              { return nil }
func (noListener) Addr() net.Addr            { return &net.TCPAddr{} }

// carrier is how a connection without TLS is passed to a function that takes a
// *tls.Conn: beneath one that is never used.
type carrier struct {
	net.Conn
}

func unencryptedCarrier(c net.Conn) *tls.Conn { return tls.Client(carrier{c}, nil) }

// UnencryptedNetConn is the method by which net/http knows it.
func (c carrier) UnencryptedNetConn() net.Conn { return c.Conn }

// tlsHTTP2Conn is an http2Conn over TLS. net/http looks for ConnectionState to
// fill in Request.TLS and to refuse bad ciphers.
type tlsHTTP2Conn struct{ *http2Conn }

func (c tlsHTTP2Conn) ConnectionState() tls.ConnectionState {
	return c.Conn.(*tls.Conn).ConnectionState()
}

// http2Handler is net/http's handler for a connection. HTTP/2 has put base into
// the context in the place of the server that the application knows.
type http2Handler struct {
	http.Handler
	user *http.Server
}

// BaseContext is how net/http passes the connection's context to HTTP/2.
func (h http2Handler) BaseContext() context.Context {
	if b, ok := h.Handler.(interface{ BaseContext() context.Context }); ok {
		return b.BaseContext()
	}
	return context.Background()
}

func (h http2Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r2 := r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, h.user))
	defer func() { r.MultipartForm = r2.MultipartForm }() // net/http removes its files
	h.Handler.ServeHTTP(w, r2)
}

// http2Assumed returns "" if serve, the function that net/http has put under
// TLSNextProto["unencrypted_http2"], does what the layer relies on, and
// otherwise what it does not. net/http promises none of it, so it is tried out,
// once in a process, on a connection in memory; that takes some 100 µs.
func http2Assumed(serve nextProto) string {
	if serve == nil {
		return "net/http has no TLSNextProto entry for HTTP/2 without TLS"
	}
	return http2Probed()
}

var http2Probed = sync.OnceValue(func() string {
	holder, err := configureHTTP2(&http.Server{})
	if err != nil {
		return "net/http does not configure HTTP/2: " + err.Error()
	}
	return probeHTTP2(holder.TLSNextProto[protoUnencryptedHTTP2], func() {
		_ = holder.Shutdown(context.Background())
	})
})

// probeHTTP2 is http2Assumed for any serve; shutdown asks for the final GOAWAY.
func probeHTTP2(serve nextProto, shutdown func()) string {
	client, server := net.Pipe()
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(2 * time.Second)) // it answers in µs, or never

	served := make(chan string, 1)
	go func() {
		defer func() {
			server.Close()
			panicked := ""
			if recover() != nil {
				panicked = "net/http's HTTP/2 entry panics when it is given a connection"
			}
			served <- panicked
		}()
		silent := &http.Server{ErrorLog: log.New(io.Discard, "", 0)}
		serve(silent, unencryptedCarrier(server), http.NotFoundHandler())
	}()

	// The server speaks first: SETTINGS, without waiting for a preface. Then
	// the Shutdown of the server that serve was configured on: GOAWAY.
	reason := ""
	for _, want := range []struct {
		kind byte
		not  string
	}{
		{frameSettings, "net/http's HTTP/2 entry does not serve the connection that it is given"},
		{frameGoAway, "Shutdown does not send GOAWAY to the connections of the entry"},
	} {
		if !readFrame(client, want.kind) {
			reason = want.not
			break
		}
		if want.kind == frameSettings {
			shutdown()
		}
	}
	client.Close()
	select {
	case panicked := <-served:
		if panicked != "" {
			return panicked
		}
	case <-time.After(2 * time.Second):
		return "net/http's HTTP/2 entry does not return when the connection is closed"
	}
	return reason
}

// readFrame reads up to the end of the first frame of the kind and reports
// whether there was one.
func readFrame(r io.Reader, kind byte) bool {
	var cur frameCursor
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			return false
		}
		if _, ended := cur.advance(b); ended && cur.kind() == kind {
			return true
		}
	}
}
