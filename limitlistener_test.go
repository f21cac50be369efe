package graceful_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// TestLimitEnds: whichever way a connection ends, its slot comes back, and no
// more than that: of three more clients exactly as many are accepted as the
// limit of two leaves room for.
func TestLimitEnds(t *testing.T) {
	u := newUpgrader(false)
	late := (&graceful.RequestTimeout{Max: 500 * ms}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		time.Sleep(time.Minute)
	}))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/close":
			w.Header().Set("Connection", "close")
		case "/ws":
			u.ServeHTTP(w, r)
		case "/late":
			late.ServeHTTP(w, r)
		}
	})
	for _, tc := range []struct {
		name string
		end  func(c *client)
	}{
		{"the response says close", func(c *client) { c.ask("/close"); c.answer() }},
		{"the client asks for close", func(c *client) {
			c.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			c.answer()
		}},
		{"the client closes, silent", func(c *client) { c.Close() }},
		{"the client closes, idle", func(c *client) { c.get("/", ""); c.Close() }},
		{"the client closes, half-spoken", func(c *client) { c.send("GET / HT"); c.Close() }},
		{"a bad request", func(c *client) { c.send("nonsense\r\n\r\n"); c.answer() }},
		{"the handler panics", func(c *client) { c.ask("/panic"); c.answer() }},
		{"hijacked, the handler closes", func(c *client) { c.upgrade(); c.send("bye\n") }},
		// RequestTimeout resets such a connection, which used to go past what
		// counts them.
		{"an answer of HTTP/1.0 takes too long", func(c *client) { c.send("GET /late HTTP/1.0\r\n\r\n"); c.answer() }},
		{"hijacked, the client closes", func(c *client) { c.upgrade(); c.Close() }},
		{"TLS: the handshake fails", nil},
	} {
		for _, how := range []string{"ListenLimit", "LimitListener"} {
			t.Run(tc.name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					defer outlast()
					l := newVirtListener()
					srv := &graceful.Server{Server: &http.Server{Handler: h}, Timeout: time.Second}
					var ln net.Listener = l
					if how == "ListenLimit" {
						srv.ListenLimit = 2
					} else {
						ln = graceful.LimitListener(l, 2)
					}
					var s *served
					end := tc.end
					if end == nil {
						s = serveTLS(t, srv, ln, false)
						end = func(c *client) { c.send("no handshake at all") }
					} else {
						s = serve(t, srv, ln)
					}
					for range 3 { // a slot that comes back twice shows later
						c := newClient(t, l.dial())
						end(c)
						synctest.Wait()
						if n := l.waiting(); n != 0 {
							t.Fatalf("it was not accepted")
						}
						time.Sleep(time.Second) // net/http closes some later
						synctest.Wait()
						if got := s.Stats(); got.Open() != 0 {
							t.Fatalf("still open: %v", got)
						}
					}
					for range 3 {
						l.dial()
					}
					synctest.Wait()
					if n := l.waiting(); n != 1 {
						t.Errorf("%d of 3 were not accepted, with a limit of 2", n)
					}
					if tc.end != nil { // TLS would need a real clock: see handshake_test.go
						s.stop()
						s.end()
					} else {
						s.Close()
					}
				})
			})
		}
	}
}

// TestLimitKill: the slots come back from connections that were killed, too,
// once each.
func TestLimitKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l, u := newVirtListener(), newUpgrader(false)
		ll := graceful.LimitListener(l, 3)
		mux := http.NewServeMux()
		mux.Handle("/ws", u)
		mux.Handle("/1m", sleeper)
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: mux}, WaitHijacked: true, Timeout: time.Second}, ll)
		newClient(t, l.dial()).upgrade()
		newClient(t, l.dial()).ask("/1m")
		newClient(t, l.dial()).send("GET /")
		synctest.Wait()
		s.stop()
		s.end()
		if got := len(s.Report().Killed); got != 3 {
			t.Errorf("%d were killed", got)
		}
		time.Sleep(time.Hour) // the handler comes back, and closes once more

		l.reopen()
		var accepted atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				if _, err := ll.Accept(); err != nil {
					return
				}
				accepted.Add(1)
			}
		}()
		for range 6 {
			l.dial()
		}
		synctest.Wait()
		if n := accepted.Load(); n != 3 {
			t.Errorf("%d accepted, with a limit of 3", n)
		}
		ll.Close()
		<-done
	})
}

// TestLimitAtOnce: never more than n connections at once, under clients that
// come and go.
func TestLimitAtOnce(t *testing.T) {
	const limit = 3
	var open, most atomic.Int32
	srv := &graceful.Server{
		Server:      &http.Server{Handler: text("ok")},
		ListenLimit: limit,
		IdleGrace:   -1,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				n := open.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			}
		},
	}
	s := serve(t, srv, listenTCP(t))
	addr := waitAddr(s)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for range 10 {
				if got := fetch("http", addr); got != "ok" {
					t.Errorf("got %q", got)
				}
			}
		})
	}
	wg.Wait()
	s.stop()
	s.end()
	// ConnState says closed just after the slot is free.
	if n := most.Load(); n < limit || n > limit+limit {
		t.Errorf("%d at once, the limit is %d", n, limit)
	}
}

// TestLimitQueue: connections that are in the queue when the stop comes are served
// as slots come free, although none is accepted while all slots are taken.
func TestLimitQueue(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"ListenLimit", "LimitListener", "LimitListener above ListenTLS", "a listener of package net"} {
		t.Run(how, func(t *testing.T) {
			g := newGate()
			srv := &graceful.Server{Server: &http.Server{Handler: g}, Timeout: 20 * time.Second, IdleGrace: 50 * ms}
			l := listenTCP(t)
			if how == "a listener of package net" {
				l, _ = net.Listen("tcp", "127.0.0.1:0")
			}
			config := (*tls.Config)(nil)
			switch how {
			case "LimitListener":
				l = graceful.LimitListener(l, 2)
			case "LimitListener above ListenTLS":
				srv.Addr, srv.TLSConfig = "127.0.0.1:0", serverTLS()
				srv.ErrorLog = log.New(io.Discard, "", 0)
				tl, err := srv.ListenTLS("", "")
				if err != nil {
					t.Fatal(err)
				}
				l = graceful.LimitListener(tl, 2)
				config = traffic.ClientTLS()
				config.ServerName = "127.0.0.1"
			default:
				srv.ListenLimit = 2
			}
			addr := l.Addr()
			s := serve(t, srv, l)
			var clients sync.WaitGroup
			for range 8 {
				c := dialClient(t, addr)
				if config != nil {
					c = newClient(t, tls.Client(c.Conn, config))
				}
				clients.Go(func() { c.get("/queued", "/queued") })
			}
			<-g.entered
			<-g.entered
			s.stop()
			waitPhase(s, graceful.PhaseDraining)
			time.Sleep(100 * ms) // longer than the quiet window
			select {
			case path := <-g.entered:
				t.Errorf("%s came in above the limit", path)
			default:
			}
			close(g.open)
			clients.Wait()
			s.end()
			if r := s.Report(); r.AcceptedLate != 6 || r.KillReason != "" {
				t.Errorf("%v", r)
			}
		})
	}
}

// TestLimitStop: an Accept that waits for a slot does not keep the server from
// ending, by itself or by Close.
func TestLimitStop(t *testing.T) {
	for name, stop := range map[string]func(*served) error{
		"Stop":  func(s *served) error { s.stop(); return nil },
		"Close": func(s *served) error { return s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, ListenLimit: 1}, l)
				newClient(t, l.dial()).get("/0s", "done")
				time.Sleep(time.Minute) // Accept waits for a slot
				s.stopAt = time.Now()
				if err := stop(s); err != nil {
					t.Error(err)
				}
				// The idle connection ends at this very moment. If its slot is
				// free before Accept gives up, the queue, which can't be
				// looked into here, is tried once more.
				if got := s.end(); got != 0 && (name == "Close" || got != queueTried) {
					t.Errorf("over after %v\n%v", got, s.Report())
				}
			})
		})
	}
}

// TestLimitListenerClose: a blocked Accept lets go when the listener is closed:
// by itself, and beneath a server, which then ends with the error.
func TestLimitListenerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		ll := graceful.LimitListener(l, 1)
		l.dial()
		l.dial()
		nc, err := ll.Accept()
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			_, err := ll.Accept()
			failed <- err
		}()
		synctest.Wait()
		ll.Close()
		if err := <-failed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		nc.Close()
		nc.Close()
		if _, err := ll.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept of a closed listener with a free slot: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		ll := graceful.LimitListener(l, 1)
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}}, ll)
		c := newClient(t, l.dial())
		c.get("/0s", "done")
		time.Sleep(time.Second)
		began := time.Now()
		ll.Close()
		<-s.returned
		if took := time.Since(began); took != 0 || !errors.Is(s.err, net.ErrClosed) {
			t.Errorf("Serve returned %v after %v", s.err, took)
		}
	})
}

// TestLimitTLS: HTTP/2 and Request.TLS survive a limit, wherever it is laid,
// also one that a plain http.Server is given.
func TestLimitTLS(t *testing.T) {
	config := serverTLS()
	config.NextProtos = []string{"h2", "http/1.1"}
	limit := func(l net.Listener) net.Listener { return graceful.LimitListener(l, 1) }
	for _, tc := range []struct {
		name   string
		limit  int
		listen func(l net.Listener) net.Listener
		own    bool // TLS is the server's
	}{
		{"ListenLimit", 1, func(l net.Listener) net.Listener { return l }, true},
		{"ListenLimit, a TLS listener", 1, func(l net.Listener) net.Listener { return tls.NewListener(l, config) }, false},
		{"LimitListener below TLS", 0, limit, true},
		{"LimitListener below a TLS listener", 0, func(l net.Listener) net.Listener { return tls.NewListener(limit(l), config) }, false},
		{"LimitListener above TLS", 0, func(l net.Listener) net.Listener { return limit(tls.NewListener(l, config)) }, false},
	} {
		for _, proto := range []int{1, 2} {
			t.Run(tc.name, func(t *testing.T) {
				got := make(chan *http.Request, 2)
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r })
				srv := &graceful.Server{Server: &http.Server{Handler: h, TLSConfig: config}, ListenLimit: tc.limit, IdleGrace: -1}
				l := tc.listen(listenTCP(t))
				s := serveWith(t, srv, func() error {
					if tc.own {
						return srv.ServeTLS(l, "", "")
					}
					return srv.Serve(l)
				})
				for range 2 { // the second needs the slot of the first
					tr := h2Client(proto == 2)
					resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + waitAddr(s).String())
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if r := <-got; r.ProtoMajor != proto || r.TLS == nil || !r.TLS.HandshakeComplete {
						t.Errorf("a request of %s with TLS %v", r.Proto, r.TLS)
					}
					waitStats(s, graceful.Stats.Open, 1) // the slot is free a moment before the connection is forgotten
					tr.CloseIdleConnections()
				}
				s.stop()
				s.end()
			})
		}
	}
}
