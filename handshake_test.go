package graceful_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

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
					if got := s.end(); got != 4*time.Second || s.Report().GaveUp > 0 {
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
				time.Sleep(50 * ms)
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
	for {
		if addrs := s.Addrs(); len(addrs) > 0 {
			return addrs[0]
		}
		time.Sleep(ms)
	}
}

// waitStats waits until what of picks from the statistics is n.
func waitStats(s *served, of func(graceful.Stats) int, n int) {
	s.t.Helper()
	for began := time.Now(); of(s.Stats()) != n; time.Sleep(ms) {
		if time.Since(began) > 10*time.Second {
			s.t.Fatalf("waited in vain for %d: %v", n, s.Stats())
		}
	}
}
