package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A headerListener takes a first line off each connection, and has it for the
// remote address, as libraries for the PROXY protocol do.
type headerListener struct{ net.Listener }

func (l headerListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headerConn{Conn: nc, br: bufio.NewReader(nc)}, nil
}

type headerConn struct {
	net.Conn
	br   *bufio.Reader
	once sync.Once
	from string
}

func (c *headerConn) header() { c.once.Do(func() { c.from, _ = c.br.ReadString('\n') }) }

func (c *headerConn) Read(p []byte) (int, error) {
	c.header()
	return c.br.Read(p)
}

func (c *headerConn) RemoteAddr() net.Addr {
	c.header()
	return virtAddr(strings.TrimSpace(c.from))
}

// An ownTLSListener returns a TLS type of the caller's own.
type ownTLSListener struct{ net.Listener }

func (l ownTLSListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &ownTLSConn{nc.(*tls.Conn)}, nil
}

type ownTLSConn struct{ *tls.Conn }

// A tlsWay lays TLS over a listener, or leaves that to the server.
type tlsWay struct {
	name  string
	lay   func(l net.Listener, config *tls.Config) net.Listener // nil: the server
	proxy bool                                                  // clients send a line first
	own   bool                                                  // not a *tls.Conn
}

var tlsWays = []tlsWay{
	{name: "the server's"},
	{name: "the server's over a wrapper", proxy: true},
	{name: "a listener's", lay: tls.NewListener},
	{name: "a listener's over a wrapper", proxy: true, lay: func(l net.Listener, c *tls.Config) net.Listener { return tls.NewListener(headerListener{l}, c) }},
	{name: "a type of the caller's", own: true, lay: func(l net.Listener, c *tls.Config) net.Listener { return ownTLSListener{tls.NewListener(l, c)} }},
}

// serve serves hs on l, with ours or with net/http, until the returned function is
// called.
func (w tlsWay) serve(hs *http.Server, l net.Listener, ours bool) func() {
	config := hs.TLSConfig
	if w.proxy && w.lay == nil {
		l = headerListener{l}
	}
	srv := &graceful.Server{Server: hs, NoSignalHandling: true}
	serve, serveTLS, stop := hs.Serve, hs.ServeTLS, hs.Close
	if ours {
		serve, serveTLS, stop = srv.Serve, srv.ServeTLS, srv.Close
	}
	done := make(chan struct{})
	if w.lay != nil {
		l = w.lay(l, config)
	}
	go func() {
		defer close(done)
		if w.lay == nil {
			serveTLS(l, "", "")
		} else {
			serve(l)
		}
	}()
	return func() {
		stop()
		<-done
	}
}

// dial connects, and says what a proxy does.
func (w tlsWay) dial(l *virtListener) net.Conn {
	nc := l.dial()
	if w.proxy {
		io.WriteString(nc, "from-afar\n")
	}
	return nc
}

// tlsFacts is what a server makes of TLS, as handlers, hooks, clients and the log
// see it.
func tlsFacts(t *testing.T, w tlsWay, ours bool) (facts []string) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards facts
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			facts = append(facts, fmt.Sprintf(format, args...))
		}
		var logged lockedBuffer
		pool := x509.NewCertPool()
		leaf, err := x509.ParseCertificate(serverTLS().Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(leaf)
		config := serverTLS()
		config.ClientAuth, config.ClientCAs = tls.RequestClientCert, pool
		config.NextProtos = []string{"echo", "h2", "http/1.1"}
		hs := &http.Server{
			TLSConfig:         config,
			ErrorLog:          log.New(&logged, "", 0),
			ReadHeaderTimeout: 3 * time.Second, ReadTimeout: 7 * time.Second, WriteTimeout: 5 * time.Second,
		}
		type key struct{}
		hs.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
			note("ConnContext %T", nc)
			return context.WithValue(ctx, key{}, nc)
		}
		hs.ConnState = func(nc net.Conn, s http.ConnState) {
			if s == http.StateNew || s == http.StateActive {
				note("ConnState %T %v", nc, s)
			}
		}
		hs.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nc, _ := r.Context().Value(key{}).(net.Conn)
			_, secure := nc.(interface{ ConnectionState() tls.ConnectionState })
			note("%s from %s on %T %v", r.Proto, r.RemoteAddr, nc, secure)
			if r.TLS == nil {
				note("no TLS")
				return
			}
			note("%x %x %q %q resumed %v, %d certificates, complete %v", r.TLS.Version, r.TLS.CipherSuite,
				r.TLS.ServerName, r.TLS.NegotiatedProtocol, r.TLS.DidResume, len(r.TLS.PeerCertificates), r.TLS.HandshakeComplete)
		})
		hs.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"echo": func(s *http.Server, tc *tls.Conn, h http.Handler) {
				ctx, ok := h.(interface{ BaseContext() context.Context })
				note("echo: %T, the server %v, a context %v", tc, s != nil, ok && ctx.BaseContext().Value(key{}) != nil)
				line, _ := bufio.NewReader(tc).ReadString('\n')
				io.WriteString(tc, "echo "+line)
			},
		}
		l := newVirtListener()
		end := w.serve(hs, l, ours)

		client := traffic.ClientTLS()
		client.ServerName, client.NextProtos = "127.0.0.1", []string{"http/1.1"}
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		ask := func(name string, change func(c *tls.Config)) {
			note("-- %s", name)
			c := client.Clone()
			if change != nil {
				change(c)
			}
			tc := tls.Client(w.dial(l), c)
			io.WriteString(tc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			b, err := io.ReadAll(tc)
			status, _, _ := strings.Cut(string(b), "\r\n")
			note("%s, %v", status, err)
			tc.Close()
			synctest.Wait()
		}
		ask("first", nil)
		ask("a session ticket", nil)
		ask("TLS 1.2", func(c *tls.Config) { c.MaxVersion, c.ClientSessionCache = tls.VersionTLS12, nil })
		ask("no ALPN", func(c *tls.Config) { c.NextProtos = nil })
		ask("a client certificate", func(c *tls.Config) { c.Certificates, c.ClientSessionCache = serverTLS().Certificates, nil })
		if !w.own { // TLSNextProto takes a *tls.Conn
			ask("another protocol", func(c *tls.Config) { c.NextProtos = []string{"echo"} })
		}
		ask("a protocol unknown here", func(c *tls.Config) { c.NextProtos = []string{"gopher"} })
		ask("a certificate that isn't trusted", func(c *tls.Config) { c.RootCAs, c.ClientSessionCache = x509.NewCertPool(), nil })

		for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "DELETE / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00"} {
			note("-- %q in the clear", text)
			nc := w.dial(l)
			io.WriteString(nc, text)
			b, err := io.ReadAll(nc)
			note("%q, %v", b, err)
			nc.Close()
			synctest.Wait()
		}
		for _, half := range []string{"", "\x16\x03\x01"} {
			note("-- %d bytes of a handshake", len(half))
			nc := w.dial(l)
			io.WriteString(nc, half)
			began := time.Now()
			io.ReadAll(nc)
			note("cut after %v", time.Since(began))
			nc.Close()
			synctest.Wait()
		}
		end()
		for line := range strings.Lines(logged.String()) {
			note("log: %s", line)
		}
	})
	return facts
}

// TestTLSUnchanged: TLS is to handlers, hooks, clients and the log what it is under
// net/http, wherever it is laid: Request.TLS, client certificates, session tickets,
// other protocols of ALPN, requests without TLS, the time for a handshake (the
// least of three timeouts), the error of one that fails. A TLS type of the caller's
// own is to net/http before Go 1.27 a connection without TLS.
func TestTLSUnchanged(t *testing.T) {
	for _, w := range tlsWays {
		t.Run(w.name, func(t *testing.T) {
			reference := w
			if w.own {
				reference.lay = tls.NewListener
			}
			want, got := tlsFacts(t, reference, false), tlsFacts(t, w, true)
			if w.own {
				for i := range want {
					want[i] = strings.ReplaceAll(want[i], "*tls.Conn", "*graceful_test.ownTLSConn")
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-net/http +ours):\n%s", diff)
			}
			if len(want) < 40 {
				t.Errorf("only %d facts: %q", len(want), want)
			}
		})
	}
}

// TestTLSHandshakeTimeout: a handshake may take as long as the least of three
// timeouts, of those that are set.
func TestTLSHandshakeTimeout(t *testing.T) {
	for _, timeouts := range [][3]time.Duration{{3, 7, 5}, {7, 3, 5}, {7, 5, 3}, {0, 4, 0}, {0, 0, 4}, {-1, 4, -1}} {
		var took [2]time.Duration
		for i, ours := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				hs := &http.Server{
					TLSConfig: serverTLS(), ErrorLog: log.New(io.Discard, "", 0),
					ReadHeaderTimeout: timeouts[0] * time.Second, ReadTimeout: timeouts[1] * time.Second, WriteTimeout: timeouts[2] * time.Second,
				}
				defer tlsWays[0].serve(hs, l, ours)()
				began := time.Now()
				io.ReadAll(l.dial())
				took[i] = time.Since(began)
			})
		}
		if took[0] != took[1] || took[0] == 0 {
			t.Errorf("%v: cut after %v by net/http, %v by ours", timeouts, took[0], took[1])
		}
	}
}
