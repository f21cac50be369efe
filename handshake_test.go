package graceful_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// TestHandshakeTime: TLS handshakes that never end. In real time, for the
// library waits for a lock of crypto/tls, which holds a bubble's clock.
//
// All at once, and not as parallel subtests, of which no more than GOMAXPROCS
// would run: they do nothing but wait.
func TestHandshakeTime(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
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
					tc.ends = ends{Idle: 1} // nobody sees what it has said
				}
			}
			all.Go(func() {
				s := serveTLS(t, &graceful.Server{Timeout: tc.timeout}, listenTCP(t), beside)
				c := dialClient(t, waitAddr(s))
				c.send(tc.hello)
				state := func(st graceful.Stats) int { return st.New }
				if tc.hello != "" && !beside {
					state = func(st graceful.Stats) int { return st.Receiving }
				}
				waitStats(s, state, 1)
				s.stop()
				// It counts from the connection's own beginning where nothing
				// has been said, which is just before the stop.
				if got := s.end(); got < tc.want*4/5 || got > tc.want+2*time.Second {
					t.Errorf("%s: over after %v, want %v\n%v", name, got, tc.want, s.Report())
				}
				if diff := cmp.Diff(tc.ends, endsOf(s.Report())); diff != "" {
					t.Errorf("%s: ends (-want +got):\n%s%v", name, diff, s.Report())
				}
			})
		}
	}
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
