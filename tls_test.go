package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
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
func headerListener(l net.Listener) net.Listener {
	return &hookedListener{Listener: l, over: func(nc net.Conn) net.Conn {
		return &headerConn{Conn: nc, br: bufio.NewReader(nc)}
	}}
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
func ownTLSListener(l net.Listener) net.Listener {
	return &hookedListener{Listener: l, over: func(nc net.Conn) net.Conn { return &ownTLSConn{nc.(*tls.Conn)} }}
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
	{name: "a listener's over a wrapper", proxy: true, lay: func(l net.Listener, c *tls.Config) net.Listener { return tls.NewListener(headerListener(l), c) }},
	{name: "a type of the caller's", own: true, lay: func(l net.Listener, c *tls.Config) net.Listener { return ownTLSListener(tls.NewListener(l, c)) }},
}

// serve serves hs on l, with ours or with net/http, until the returned function is
// called.
func (w tlsWay) serve(hs *http.Server, l net.Listener, ours bool) func() {
	config := hs.TLSConfig
	if w.proxy && w.lay == nil {
		l = headerListener(l)
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

// TestHandshakeTime: TLS handshakes that never end, and one that ends just in time.
// In virtual time: nothing here waits for a lock of crypto/tls, for which a bubble's
// clock would stand still.
func TestHandshakeTime(t *testing.T) {
	for _, tc := range []struct {
		name    string
		timeout time.Duration
		hello   string
		want    time.Duration
		ends    ends
	}{
		{"never begins", 0, "", 5 * time.Second, ends{Idle: 1}},
		{"never ends", 0, "\x16\x03\x01", 5 * time.Second, ends{GaveUp: 1}},
		{"never begins, Timeout", 300 * ms, "", 300 * ms, ends{Killed: 1}},
		{"never ends, Timeout", 300 * ms, "\x16\x03\x01", 300 * ms, ends{Killed: 1}},
	} {
		for _, beside := range []bool{false, true} {
			name, tc := tc.name, tc
			if beside {
				name += ", a TLS listener"
				if tc.timeout == 0 {
					tc.ends = ends{Idle: 1} // what it has said is not seen
				}
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveTLS(t, &graceful.Server{Timeout: tc.timeout}, l, beside)
					c := newClient(t, l.dial())
					c.send(tc.hello)
					synctest.Wait()
					s.stop()
					if got := s.end(); got != tc.want {
						t.Errorf("over after %v, want %v\n%v", got, tc.want, s.Report())
					}
					if diff := cmp.Diff(tc.ends, endsOf(s.Report())); diff != "" {
						t.Errorf("ends (-want +got):\n%s%v", diff, s.Report())
					}
				})
			})
		}
	}
}

// TestHalfHandshake: a handshake that has stopped anywhere, within either of the
// client's flights, goes on to its end within 5 s, and the request behind it is
// answered.
func TestHalfHandshake(t *testing.T) {
	for flight := range 2 {
		for _, beside := range []bool{false, true} {
			for cut := 0; cut < 60; cut += 7 {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveTLS(t, &graceful.Server{}, l, beside)
					slow := &slowFlight{Conn: l.dial(), flight: flight, cut: cut}
					config := traffic.ClientTLS()
					config.ServerName, config.NextProtos = "127.0.0.1", []string{"http/1.1"}
					c := newClient(t, tls.Client(slow, config))
					asked := make(chan struct{})
					go func() {
						defer close(asked)
						c.ask("/")
					}()
					synctest.Wait()
					s.stop()
					<-asked // before it reads: crypto/tls has a lock that a bubble can't wait for
					if !c.expect("ok").close {
						t.Errorf("flight %d cut at %d: the response does not say close", flight, cut)
					}
					if got := s.end(); got != 4*time.Second || s.Report().IncompleteClosed > 0 {
						t.Errorf("flight %d cut at %d, a TLS listener %v: over after %v\n%v", flight, cut, beside, got, s.Report())
					}
				})
			}
		}
	}
}

// A slowFlight pauses in the middle of one of its Writes, for 4 s.
type slowFlight struct {
	net.Conn
	flight, cut int
}

func (c *slowFlight) Write(p []byte) (int, error) {
	if c.flight--; c.flight != -1 {
		return c.Conn.Write(p)
	}
	c.Conn.Write(p[:c.cut])
	time.Sleep(4 * time.Second)
	n, err := c.Conn.Write(p[c.cut:])
	return c.cut + n, err
}

// A lateConn holds up what is written after the first write until it may go.
type lateConn struct {
	net.Conn
	wrote bool
	first chan struct{} // closed by the first write
	may   chan struct{}
}

func (c *lateConn) Write(p []byte) (int, error) {
	if c.wrote {
		<-c.may
	} else {
		defer close(c.first)
	}
	c.wrote = true
	return c.Conn.Write(p)
}

// TestLateHandshake: a TLS handshake that ends after the stop, and a client
// that then has nothing to say. http.Server.Shutdown waits for it to its
// deadline (golang/go#81153).
func TestLateHandshake(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, proto := range []string{"http/1.1", "h2"} {
		for _, beside := range []bool{false, true} {
			name := proto
			if beside {
				name += ", a TLS listener"
			}
			all.Go(func() {
				s := serveTLS(t, &graceful.Server{Timeout: 30 * time.Second}, listenTCP(t), beside)
				late := &lateConn{
					Conn:  dialClient(t, waitAddr(s)),
					first: make(chan struct{}),
					may:   make(chan struct{}),
				}
				config := traffic.ClientTLS()
				config.ServerName, config.NextProtos = "127.0.0.1", []string{proto}
				nc := tls.Client(late, config)
				shaken := make(chan error, 1)
				go func() { shaken <- nc.Handshake() }()
				<-late.first
				waitStats(s, graceful.Stats.Open, 1)
				s.stop()
				waitPhase(s, graceful.PhaseDraining)
				close(late.may)
				if err := <-shaken; err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got := s.end(); got > 8*time.Second || s.Report().KillReason != "" {
					t.Errorf("%s: over after %v\n%v", name, got, s.Report())
				}
			})
		}
	}
}

// TestTLSHijackWaited: a hijacked connection over TLS is waited for with
// WaitHijacked and keeps its slot of ListenLimit, also where the TLS is a
// listener's. Such a connection used to be lost sight of when it was hijacked.
func TestTLSHijackWaited(t *testing.T) {
	for _, beside := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l, u := newVirtListener(), newUpgrader(false)
			s := serveTLS(t, &graceful.Server{
				Server: &http.Server{Handler: u}, Timeout: time.Minute, WaitHijacked: true, ListenLimit: 1,
			}, l, beside)
			config := traffic.ClientTLS()
			config.ServerName, config.NextProtos = "127.0.0.1", []string{"http/1.1"}
			c := newClient(t, tls.Client(l.dial(), config))
			c.upgrade()
			c.echo("one")
			other := l.dial()
			synctest.Wait()
			if l.waiting() != 1 {
				t.Errorf("a TLS listener %v: a second connection was accepted", beside)
			}
			other.Close()
			s.stop()
			go func() {
				time.Sleep(7 * time.Second)
				c.echo("two")
				c.Close()
			}()
			if got := s.end(); got != 7*time.Second {
				t.Errorf("a TLS listener %v: over after %v\n%v", beside, got, s.Report())
			}
			if err := <-u.ended; err != io.EOF {
				t.Errorf("a TLS listener %v: the echo ended with %v", beside, err)
			}
		})
	}
}

// serveTLS serves TLS on l: the server's own, or the listener's.
func serveTLS(t *testing.T, srv *graceful.Server, l net.Listener, beside bool) *served {
	if srv.Server == nil {
		srv.Server = &http.Server{Handler: text("ok")}
	}
	if srv.ErrorLog == nil { // net/http's, which says why each handshake failed
		srv.ErrorLog = log.New(io.Discard, "", 0)
	}
	if beside {
		config := serverTLS()
		config.NextProtos = []string{"h2", "http/1.1"}
		return serve(t, srv, tls.NewListener(l, config))
	}
	srv.TLSConfig = serverTLS()
	return serveWith(t, srv, func() error { return srv.ServeTLS(l, "", "") })
}

// waitAddr waits until s serves, and returns its address.
func waitAddr(s *served) net.Addr {
	s.t.Helper()
	eventually(s.t, func() (bool, any) { return len(s.Addrs()) > 0, "it does not serve" })
	return s.Addrs()[0]
}

// waitStats waits until what of picks from the statistics is n.
func waitStats(s *served, of func(graceful.Stats) int, n int) {
	s.t.Helper()
	eventually(s.t, func() (bool, any) { st := s.Stats(); return of(st) == n, st })
}

// A recordClient is a client of TLS 1.3 that makes its records itself, from the
// secret that crypto/tls has agreed on (RFC 8446, sections 5.2 and 7). It can cut
// them anywhere, and send what crypto/tls never sends by itself.
type recordClient struct {
	*client          // reads
	below   net.Conn // is written to
	secret  []byte   // client_application_traffic_secret
	seq     uint64   // of the next record under it
}

// newRecordClient makes the handshake on nc.
func newRecordClient(t *testing.T, nc net.Conn) *recordClient {
	t.Helper()
	var keys bytes.Buffer
	config := traffic.ClientTLS()
	config.ServerName, config.NextProtos = "127.0.0.1", []string{"http/1.1"}
	config.MinVersion, config.KeyLogWriter = tls.VersionTLS13, &keys
	tc := tls.Client(nc, config)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("%s was agreed on: no AES by hardware here", tls.CipherSuiteName(suite))
	}
	c := &recordClient{client: newClient(t, tc), below: nc}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			c.secret, _ = hex.DecodeString(f[2])
		}
	}
	return c
}

// expand is HKDF-Expand-Label without a context.
func (c *recordClient) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, c.secret, string(append(info, 0)), n)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// record returns the next record, with the given content of the given type.
func (c *recordClient) record(kind byte, content string) []byte {
	block, err := aes.NewCipher(c.expand("key", 16))
	if err != nil {
		c.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		c.t.Fatal(err)
	}
	nonce := c.expand("iv", gcm.NonceSize())
	seq := binary.BigEndian.Uint64(nonce[4:]) ^ c.seq
	binary.BigEndian.PutUint64(nonce[4:], seq)
	c.seq++
	inner := append([]byte(content), kind)
	header := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+gcm.Overhead()))
	return gcm.Seal(header, nonce, inner, header)
}

func (c *recordClient) data(text string) []byte { return c.record(23, text) }

// keyUpdate returns a record that changes the client's key, and asks the server to
// change its own: the server answers by itself.
func (c *recordClient) keyUpdate() []byte {
	r := c.record(22, "\x18\x00\x00\x01\x01")
	c.secret = c.expand("traffic upd", sha256.Size)
	c.seq = 0
	return r
}

func (c *recordClient) put(b []byte) { c.below.Write(b) }

// serveRecords serves TLS in a bubble, the server's own or a listener's. Timeout is
// 0.
func serveRecords(t *testing.T, l net.Listener, beside bool, h http.Handler) *served {
	return serveTLS(t, &graceful.Server{Server: &http.Server{Handler: h}}, l, beside)
}

// TestKeyUpdate: a record that holds no data resets no clock and changes no state,
// whole or cut: clients of TLS 1.3 can send them at any time (KeyUpdate), and the
// server's answer to one is a Write without a response. A client that sent one a
// second with half a request used to hold a stop for as long as it liked.
func TestKeyUpdate(t *testing.T) {
	const half = "GET / HTTP/1.1\r\nHost: x\r\nX: "
	for _, tc := range []struct {
		name  string
		begin func(c *recordClient) // ends at the stop
		every func(c *recordClient) // again and again, from the stop on
		want  time.Duration
		ends  ends
	}{
		{"new", nil, func(c *recordClient) { c.put(c.keyUpdate()) }, 500 * ms, ends{Idle: 1}},
		{"idle", func(c *recordClient) {
			c.put(c.data(getOf("/")))
			c.expect("ok")
		}, func(c *recordClient) { c.put(c.keyUpdate()) }, 500 * ms, ends{Idle: 1}},
		{"idle, before the stop", func(c *recordClient) {
			c.put(c.data(getOf("/")))
			c.expect("ok")
			for range 4 {
				time.Sleep(100 * ms)
				c.put(c.keyUpdate())
			}
		}, func(*recordClient) {}, 100 * ms, ends{Idle: 1}},
		{"half a request", func(c *recordClient) { c.put(c.data(half)) },
			func(c *recordClient) { c.put(c.keyUpdate()) }, 5 * time.Second, ends{GaveUp: 1}},
		{"half a request, and more of it", func(c *recordClient) { c.put(c.data(half)) },
			func(c *recordClient) {
				c.put(c.keyUpdate())
				c.put(c.data("a"))
			}, 5 * time.Second, ends{GaveUp: 1}},
		{"an empty record", nil, func(c *recordClient) { c.put(c.data("")) }, 500 * ms, ends{Idle: 1}},
	} {
		for _, beside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a TLS listener %v", tc.name, beside), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveRecords(t, l, beside, text("ok"))
					c := newRecordClient(t, l.dial())
					synctest.Wait()
					if tc.begin != nil {
						tc.begin(c)
					}
					synctest.Wait()
					s.stop()
					synctest.Wait()
					for range 9 { // crypto/tls takes 16 in a row
						time.Sleep(tc.want / 6)
						tc.every(c)
					}
					if got := s.end(); got != tc.want {
						t.Errorf("over after %v, want %v\n%v", got, tc.want, s.Report())
					}
					if got := endsOf(s.Report()); got != tc.ends {
						t.Errorf("ends %+v, want %+v", got, tc.ends)
					}
				})
			})
		}
	}
}

// TestHalfKeyUpdate: part of a record may be part of a request. When it turns out
// to be none, the connection is what it was before, since when it was it: here its
// quiet window is over.
func TestHalfKeyUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		s := serveRecords(t, l, false, text("ok"))
		c := newRecordClient(t, l.dial())
		c.put(c.data(getOf("/")))
		c.expect("ok")
		synctest.Wait()
		s.stop()
		update := c.keyUpdate()
		time.Sleep(400 * ms)
		c.put(update[:9])
		time.Sleep(400 * ms)
		if got := s.Stats(); got.Receiving != 1 {
			t.Errorf("with half a record: %v", got)
		}
		c.put(update[9:])
		if got := s.end(); got != 800*ms {
			t.Errorf("over after %v\n%v", got, s.Report())
		}
		if got := endsOf(s.Report()); got != (ends{Idle: 1}) {
			t.Errorf("ends %+v", got)
		}
	})
}

// TestHalfRecord: a request whose record is cut anywhere by the stop, and by the
// end of the quiet window, is answered when the rest comes. It used not to be seen
// before its record was whole.
func TestHalfRecord(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for _, when := range []string{"before the stop", "within the quiet window"} {
			t.Run(fmt.Sprintf("kept alive %v, %s", kept, when), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveRecords(t, l, false, text("ok"))
					var clients []*recordClient
					var records [][]byte
					for range len(getOf("/")) + 22 { // header, type and tag
						c := newRecordClient(t, l.dial())
						if kept {
							c.put(c.data(getOf("/")))
							c.expect("ok")
						}
						clients = append(clients, c)
						records = append(records, c.data(getOf("/")))
					}
					if len(records) != len(records[0]) {
						t.Fatal(len(records[0]))
					}
					halves := func() {
						for cut := 1; cut < len(clients); cut++ {
							clients[cut].put(records[cut][:cut])
						}
					}
					if when == "before the stop" {
						halves()
						time.Sleep(time.Hour)
					}
					synctest.Wait()
					s.stop()
					if when != "before the stop" {
						time.Sleep(499 * ms)
						halves()
					}
					time.Sleep(2 * time.Second)
					for cut := 1; cut < len(clients); cut++ {
						clients[cut].put(records[cut][cut:])
						if got := clients[cut].expect("ok"); !got.close {
							t.Errorf("cut at %d: the response does not say close", cut)
						}
					}
					s.end()
					if took := time.Since(s.stopAt); took > 3*time.Second {
						t.Errorf("over after %v", took)
					}
					want := ends{Idle: 1, Finished: len(clients) - 1}
					if got := endsOf(s.Report()); got != want {
						t.Errorf("ends %+v, want %+v", got, want)
					}
				})
			})
		}
	}
}
