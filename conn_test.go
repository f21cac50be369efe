package graceful_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// An upgrader takes connections over, as for a WebSocket, and echoes lines
// until the client says "bye" or leaves. With farewell it says "going" when
// the shutdown has begun.
type upgrader struct {
	farewell bool
	ended    chan error // why each echo ended
}

func newUpgrader(farewell bool) *upgrader { return &upgrader{farewell, make(chan error, 100)} }

func (u *upgrader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		io.WriteString(w, "plain")
		return
	}
	nc, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n")
	if u.farewell {
		go func() {
			<-graceful.Draining(r.Context())
			io.WriteString(nc, "going\n")
		}()
	}
	go func() {
		defer nc.Close()
		for {
			line, err := rw.ReadString('\n')
			if err != nil || line == "bye\n" {
				u.ended <- err
				return
			}
			io.WriteString(nc, line)
		}
	}()
}

// upgrade takes the connection to the upgrader's protocol.
func (c *client) upgrade() {
	c.t.Helper()
	c.send("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.StatusCode != 101 {
		c.t.Fatalf("upgrade: %v, %v", resp, err)
	}
}

// echo sends a line and expects it back.
func (c *client) echo(line string) {
	c.t.Helper()
	c.send(line + "\n")
	c.expectLine(line)
}

func (c *client) expectLine(want string) {
	c.t.Helper()
	if got, err := c.br.ReadString('\n'); got != want+"\n" || err != nil {
		c.t.Errorf("got the line %q (%v), want %q", got, err, want)
	}
}

// TestHijackLeft: without WaitHijacked a hijacked connection holds nothing up,
// and goes on after the end.
func TestHijackLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l, u := newVirtListener(), newUpgrader(false)
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: u}, Timeout: time.Minute}, l)
		early, late := newClient(t, l.dial()), newClient(t, l.dial())
		early.upgrade()
		early.echo("one")
		late.get("/", "plain")
		if got := s.Stats(); got.Hijacked != 1 || got.Open() != 2 {
			t.Errorf("stats: %v", got)
		}
		s.stop()
		time.Sleep(100 * ms)
		late.upgrade() // while draining, as late as it can
		late.echo("two")
		if got := s.end(); got != 100*ms {
			t.Errorf("over after %v\n%v", got, s.Report())
		}
		r := s.Report()
		if diff := cmp.Diff(ends{Left: 2}, endsOf(r)); diff != "" || r.Start.Hijacked != 1 {
			t.Errorf("(-want +got):\n%s%v", diff, r)
		}
		time.Sleep(time.Hour)
		for _, c := range []*client{early, late} {
			c.echo("after the end")
			c.send("bye\n")
			if err := <-u.ended; err != nil {
				t.Errorf("ended with %v", err)
			}
		}
	})
}

// TestHijackContext: the context of the request of a connection that is left to
// its handler does not end with the shutdown. It used to, where the listener
// was of TLS and the caller's own.
func TestHijackContext(t *testing.T) {
	for _, beside := range []bool{false, true} {
		taken, over, ended := make(chan struct{}), make(chan struct{}), make(chan error)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nc, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer nc.Close()
			close(taken)
			<-over
			ended <- r.Context().Err()
		})
		srv := &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: -1}
		l := listenTCP(t)
		var s *served
		if beside {
			s = serve(t, srv, tls.NewListener(l, serverTLS()))
		} else {
			s = serveTLS(t, srv, l, false)
		}
		c := dialTLS(t, waitAddr(s), "http/1.1")
		c.ask("/")
		<-taken
		s.stop()
		s.end()
		close(over)
		if err := <-ended; err != nil {
			t.Errorf("beside %v: the context ended: %v", beside, err)
		}
	}
}

// TestHijackLate: a response that was on the wire before the stop has not said
// close, so that its client may go on. A connection that is hijacked then, in the
// middle of the drain, is its new owner's alone, as any other: it is left open, or
// waited for, and hooks hear nothing of it any more.
func TestHijackLate(t *testing.T) {
	for _, wait := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			defer outlast()
			l, u := newVirtListener(), newUpgrader(false)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/1s" {
					sleeper(w, r)
				} else {
					u.ServeHTTP(w, r)
				}
			})
			var states []http.ConnState
			srv := &http.Server{Handler: h, ConnState: func(_ net.Conn, s http.ConnState) { states = append(states, s) }}
			s := serve(t, &graceful.Server{Server: srv, Timeout: time.Minute, WaitHijacked: wait, ListenLimit: 1}, l)
			c := newClient(t, l.dial())
			c.ask("/1s?begun")
			synctest.Wait()
			s.stop()
			if c.expect("done").close {
				t.Error("a response that began before the stop says close")
			}
			c.upgrade()
			c.echo("one")
			if !wait {
				if got := s.end(); got != time.Second {
					t.Errorf("over after %v\n%v", got, s.Report())
				}
				time.Sleep(time.Hour)
			}
			c.echo("two")
			c.send("bye\n")
			if err := <-u.ended; err != nil {
				t.Errorf("ended with %v", err)
			}
			if err := c.ended(); err != nil {
				t.Errorf("the client sees %v", err)
			}
			s.end()
			want := ends{Left: 1}
			if wait {
				want = ends{Finished: 1}
			}
			if diff := cmp.Diff(want, endsOf(s.Report())); diff != "" {
				t.Errorf("(-want +got):\n%s%v", diff, s.Report())
			}
			if diff := cmp.Diff([]http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateActive, http.StateHijacked}, states); diff != "" {
				t.Errorf("ConnState (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHijackWaited: with WaitHijacked the drain waits until the last hijacked
// connection is closed, by either side, or kills it at the deadline.
func TestHijackWaited(t *testing.T) {
	for _, tc := range []struct {
		name    string
		timeout time.Duration
		play    func(c *client)
		want    time.Duration
		ends    ends
		reason  error // why the echo ended
	}{
		{"the client leaves", time.Minute, func(c *client) { time.Sleep(7 * time.Second); c.Close() },
			7 * time.Second, ends{Finished: 1}, io.EOF},
		{"the handler closes", time.Minute, func(c *client) { time.Sleep(8 * time.Second); c.echo("still"); c.send("bye\n") },
			8 * time.Second, ends{Finished: 1}, nil},
		{"the deadline", 9 * time.Second, func(c *client) { time.Sleep(8 * time.Second); c.echo("still") },
			9 * time.Second, ends{Killed: 1}, net.ErrClosed},
		{"no deadline", 0, func(c *client) { time.Sleep(time.Hour); c.echo("still"); c.Close() },
			time.Hour, ends{Finished: 1}, io.EOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer outlast()
				l, u := newVirtListener(), newUpgrader(true)
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: u}, Timeout: tc.timeout, WaitHijacked: true}, l)
				c := newClient(t, l.dial())
				c.upgrade()
				c.echo("one")
				s.stop()
				c.expectLine("going")
				go tc.play(c)
				if got := s.end(); got != tc.want {
					t.Errorf("over after %v, want %v\n%v", got, tc.want, s.Report())
				}
				r := s.Report()
				if diff := cmp.Diff(tc.ends, endsOf(r)); diff != "" || r.Start.Hijacked != 1 {
					t.Errorf("(-want +got):\n%s%v", diff, r)
				}
				if len(r.Killed) == 1 && r.Killed[0].State != "hijacked" {
					t.Errorf("killed %v", r.Killed[0])
				}
				if err := <-u.ended; !errors.Is(err, tc.reason) {
					t.Errorf("the echo ended with %v, want %v", err, tc.reason)
				}
			})
		})
	}
}

// TestHijackReal is the same over TCP and TLS, where a kill has to get through
// to the socket.
func TestHijackReal(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		u := newUpgrader(true)
		srv := &graceful.Server{Server: &http.Server{Handler: u}, Timeout: time.Second, IdleGrace: 20 * ms, WaitHijacked: true}
		s, c := servePlainOrTLS(t, srv, secure)
		c.upgrade()
		c.echo("one")
		s.stop()
		c.expectLine("going")
		c.echo("two")
		if got := s.end(); got < time.Second || got > 5*time.Second {
			t.Errorf("over after %v", got)
		}
		if r := s.Report(); len(r.Killed) != 1 || r.Killed[0].State != "hijacked" {
			t.Errorf("%v", r)
		}
		c.ended()
		<-u.ended
	}
}

// TestHijackedConn: what a handler gets is as good as the connection itself:
// sendfile, half-closing, and the descriptor beneath.
func TestHijackedConn(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, limited := range []bool{false, true} {
			var got net.Conn
			taken := make(chan struct{})
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got, _, _ = w.(http.Hijacker).Hijack()
				close(taken)
			})
			var l net.Listener = listenTCP(t)
			if network == "unix" {
				var err error
				if l, err = graceful.Listen("unix", t.TempDir()+"/s"); err != nil {
					t.Skip(err)
				}
			}
			if limited {
				l = graceful.LimitListener(l, 5)
			}
			s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: -1}, l)
			c := dialClient(t, waitAddr(s))
			c.ask("/")
			<-taken
			can := []bool{false, false, false}
			_, can[0] = got.(interface{ CloseWrite() error })
			_, can[1] = got.(syscall.Conn)
			_, can[2] = got.(io.ReaderFrom)
			if diff := cmp.Diff([]bool{true, true, network == "tcp"}, can); diff != "" {
				t.Errorf("%s, limited %v, a %T: CloseWrite, SyscallConn, ReadFrom:\n%s", network, limited, got, diff)
			}
			got.(interface{ CloseWrite() error }).CloseWrite()
			if err := c.ended(); err != nil {
				t.Errorf("after CloseWrite: %v", err)
			}
			c.send("up") // the other direction still works
			b := make([]byte, 2)
			if _, err := io.ReadFull(got, b); err != nil || string(b) != "up" {
				t.Errorf("read %q, %v", b, err)
			}
			got.Close()
			s.stop()
			s.end()
		}
	}
}

// TestTooLargeBody: net/http half-closes a connection whose request it has not
// read to the end, and waits a while before it closes it, so that the answer
// is not lost to a reset. It finds CloseWrite by its name.
func TestTooLargeBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 10)); err != nil {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			}
		})
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}}, l)
		c := newClient(t, l.dial())
		c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 1000))
		synctest.Wait()
		began := time.Now()
		s.stop()
		if got := c.answer(); got.status != http.StatusRequestEntityTooLarge || got.err != nil {
			t.Errorf("got %+v", got)
		}
		if err := c.ended(); err != nil || time.Since(began) != 0 {
			t.Errorf("half-closed after %v (%v), want at once", time.Since(began), err)
		}
		if got := s.end(); got != 500*ms {
			t.Errorf("over after %v", got)
		}
	})
}

// events streams until it is told to end.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, "data: hello\n\n")
	w.(http.Flusher).Flush()
	select {
	case <-graceful.Draining(r.Context()):
		io.WriteString(w, "data: bye\n\n")
	case <-r.Context().Done():
	}
}

// poll answers when there is something to say, or the server drains.
func poll(w http.ResponseWriter, r *http.Request) {
	select {
	case <-graceful.Draining(r.Context()):
		io.WriteString(w, "nothing yet")
	case <-time.After(time.Hour):
	}
}

// TestDraining: an event stream and a long poll end when draining begins, since
// their clients would be accepted again during the delay. ShutdownBegun tells of the
// first moment.
func TestDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l := newVirtListener()
		mux := http.NewServeMux()
		mux.HandleFunc("/events", events)
		mux.HandleFunc("/poll", poll)
		mux.HandleFunc("/begun", func(w http.ResponseWriter, r *http.Request) {
			<-graceful.ShutdownBegun(r.Context())
			io.WriteString(w, "begun")
		})
		srv := &graceful.Server{Server: &http.Server{Handler: mux}, ShutdownDelay: 10 * time.Second}
		s := serve(t, srv, l)
		sse, long, first := newClient(t, l.dial()), newClient(t, l.dial()), newClient(t, l.dial())
		sse.ask("/events")
		long.ask("/poll")
		first.ask("/begun")
		time.Sleep(time.Minute)
		began := time.Now()
		s.stop()
		first.expect("begun")
		<-srv.ShutdownBegun()
		if took := time.Since(began); took != 0 {
			t.Errorf("ShutdownBegun took %v", took)
		}
		sse.expect("data: hello\n\ndata: bye\n\n")
		long.expect("nothing yet")
		<-srv.Draining()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("Draining took %v", took)
		}
		// The event stream's header went out before the stop and said nothing of an
		// end, so that its connection has a quiet period.
		if got := s.end(); got != 10*time.Second+500*ms {
			t.Errorf("over after %v", got)
		}
	})
}

// TestDrainingOfKill: a kill during the delay closes both channels.
func TestDrainingOfKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &graceful.Server{Server: new(http.Server), NoSignalHandling: true, ShutdownDelay: time.Hour}
		s := serve(t, srv, newVirtListener())
		synctest.Wait() // until it serves
		s.stop()
		<-srv.ShutdownBegun()
		select {
		case <-srv.Draining():
			t.Error("drains during the delay")
		default:
		}
		srv.Close()
		<-srv.Draining()
	})
}

func TestDrainingOutside(t *testing.T) {
	if graceful.Draining(bg) != nil || graceful.ShutdownBegun(bg) != nil {
		t.Error("the channels of no server's context are not nil")
	}
}

// TestErrKilled: at the deadline the request's context ends with the cause
// ErrKilled, and before the connection does.
func TestErrKilled(t *testing.T) {
	for _, proto := range []string{"http/1.1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			entered, over, causes := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-r.Context().Done()
				causes <- context.Cause(r.Context())
				<-over // who returns at once may still be answered
			})
			s := serveTLS(t, &graceful.Server{Server: &http.Server{Handler: h}, Timeout: 100 * ms, IdleGrace: -1}, listenTCP(t), false)
			tr := h2Client(proto == "h2")
			defer tr.CloseIdleConnections()
			failed := make(chan error, 1)
			go func() {
				resp, err := (&http.Client{Transport: tr}).Get("https://" + waitAddr(s).String() + "/killed")
				if err == nil {
					resp.Body.Close()
				}
				failed <- err
			}()
			<-entered
			s.stop()
			if cause := <-causes; cause != graceful.ErrKilled {
				t.Errorf("the cause is %v", cause)
			}
			s.end()
			close(over)
			if err := <-failed; err == nil {
				t.Error("the client got an answer")
			}
			r := s.Report()
			if len(r.Killed) != 1 || cmp.Diff([]string{`GET "/killed"`}, r.Killed[0].Requests) != "" {
				t.Errorf("%v", r)
			}
			if err := s.Shutdown(bg); !errors.Is(err, graceful.ErrKilled) {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// A blockingConn is a connection of a caller's type, one of whose methods blocks
// until over is closed or, if it isn't deaf, the connection is. Libraries for the
// PROXY protocol make such: RemoteAddr waits for the client's first line, in a lock
// that Read holds.
type blockingConn struct {
	net.Conn
	method string
	lock   chan struct{} // Read and the deadlines share it if method is "lock"
	deaf   bool
	once   sync.Once
	closed chan struct{}
	over   <-chan struct{}
}

func (c *blockingConn) wait(method string) {
	if c.method == method {
		select {
		case <-c.closed:
		case <-c.over:
		}
	}
}

// locked is f with the lock that Read holds: a channel, for which a bubble waits.
func (c *blockingConn) locked(f func()) {
	if c.method == "lock" {
		select {
		case c.lock <- struct{}{}:
			defer func() { <-c.lock }()
		case <-c.closed:
		case <-c.over:
		}
	}
	f()
}

func (c *blockingConn) Read(p []byte) (n int, err error) {
	c.locked(func() { n, err = c.Conn.Read(p) })
	return n, err
}

func (c *blockingConn) RemoteAddr() net.Addr {
	c.wait("RemoteAddr")
	return c.Conn.RemoteAddr()
}

func (c *blockingConn) SetReadDeadline(at time.Time) (err error) {
	c.wait("SetReadDeadline")
	c.locked(func() { err = c.Conn.SetReadDeadline(at) })
	return err
}

func (c *blockingConn) SetDeadline(at time.Time) error {
	c.wait("SetDeadline")
	return c.Conn.SetDeadline(at)
}

func (c *blockingConn) NetConn() net.Conn {
	c.wait("NetConn")
	return c.Conn
}

func (c *blockingConn) CloseWrite() error {
	c.wait("CloseWrite")
	return errors.ErrUnsupported
}

func (c *blockingConn) Close() error {
	c.wait("Close")
	if !c.deaf {
		c.once.Do(func() { close(c.closed) })
	}
	return c.Conn.Close()
}

var blockingMethods = []string{"RemoteAddr", "SetReadDeadline", "SetDeadline", "NetConn", "CloseWrite", "Close", "lock"}

// blockingListener returns a listener over l of such connections.
func blockingListener(l *virtListener, method string, deaf bool, over <-chan struct{}) net.Listener {
	return &hookedListener{Listener: l, over: func(nc net.Conn) net.Conn {
		return &blockingConn{
			Conn: nc, method: method, deaf: deaf, over: over,
			lock: make(chan struct{}, 1), closed: make(chan struct{}),
		}
	}}
}

// clientStates bring a connection into a state, and say nothing more.
var clientStates = map[string]func(c *client){
	"silent": func(c *client) {},
	"half":   func(c *client) { c.send("GET /1h HT") },
	"active": func(c *client) { c.ask("/1h") },
	"idle":   func(c *client) { c.ask("/0s"); time.Sleep(ms) },
}

// TestKillForeign: Timeout, Close and the end of Shutdown's context cut every
// connection at their moment, though a method of a caller's type blocks. What is
// asked of such a type for the report costs no more than 100 ms.
func TestKillForeign(t *testing.T) {
	const at = 100 * ms // before any quiet window is over
	for _, method := range blockingMethods {
		for state, begin := range clientStates {
			for _, how := range []string{"Timeout", "Close", "Shutdown"} {
				for _, secure := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s, %s, TLS %v", method, state, how, secure), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							defer outlast()
							over := make(chan struct{})
							defer close(over)
							l := newVirtListener()
							srv := &graceful.Server{Server: &http.Server{Handler: sleeper}}
							if how == "Timeout" {
								srv.Timeout = at
							}
							bl := blockingListener(l, method, true, over)
							var s *served
							if secure {
								s = serveTLS(t, srv, bl, false)
							} else {
								s = serve(t, srv, bl)
							}
							plain := newClient(t, l.dial())
							if !secure {
								begin(plain)
							} else if state != "silent" {
								plain.send("\x16\x03\x01") // no more than half a handshake
							}
							synctest.Wait()
							if s.Stats().Open() != 1 {
								t.Fatalf("%v", s.Stats())
							}
							s.stopAt = time.Now()
							switch how {
							case "Timeout":
								s.Stop(at)
							case "Close":
								go func() {
									time.Sleep(at)
									s.Close()
								}()
								s.Stop(0)
							case "Shutdown":
								go func() {
									ctx, cancel := context.WithTimeout(bg, at)
									defer cancel()
									s.Shutdown(ctx)
								}()
							}
							if method != "Close" {
								plain.ended()
								if took := time.Since(s.stopAt); took != at {
									t.Errorf("cut after %v, want %v", took, at)
								}
							}
							most := at
							if method == "RemoteAddr" {
								most += 100 * ms
							}
							if took := s.end(); took > most {
								t.Errorf("over after %v, want %v\n%v", took, most, s.Report())
							}
							if n := len(s.Report().Killed); n != 1 {
								t.Errorf("%d killed\n%v", n, s.Report())
							}
						})
					})
				}
			}
		}
	}
}

// TestDrainForeign: without a Timeout, too, a stop ends though a method of a
// caller's type blocks until the connection is closed: the connection is told to
// end when it has been quiet, and cut 5 s later.
func TestDrainForeign(t *testing.T) {
	for _, method := range blockingMethods {
		if method == "Close" {
			continue // nothing ends it
		}
		for _, state := range []string{"silent", "half", "idle"} {
			if method == "lock" && state == "idle" {
				continue // net/http itself does not come back from such a request
			}
			t.Run(method+", "+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					over := make(chan struct{})
					defer close(over)
					l := newVirtListener()
					s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}}, blockingListener(l, method, false, over))
					c := newClient(t, l.dial())
					clientStates[state](c)
					synctest.Wait()
					s.stop()
					time.AfterFunc(time.Hour, func() { s.Close() })
					if took := s.end(); took > 10500*ms {
						t.Errorf("over after %v\n%v", took, s.Report())
					}
				})
			})
		}
	}
}

// TestBlockedLog: a log that blocks, at any of its lines, delays neither the stop nor
// Timeout, Close and the end of Shutdown's context. The end waits for it for 200 ms.
// It used to block them for ever.
func TestBlockedLog(t *testing.T) {
	for line := range 8 {
		for _, how := range []string{"by itself", "Timeout", "Close", "Shutdown"} {
			t.Run(fmt.Sprintf("line %d, %s", line, how), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					defer outlast()
					block := make(chan struct{})
					defer close(block)
					var mu sync.Mutex // guards n
					n := 0
					l := newVirtListener()
					s := serve(t, &graceful.Server{
						Server: &http.Server{Handler: sleeper}, ShutdownDelay: time.Second,
						LogFunc: func(string, ...any) {
							mu.Lock()
							n++
							blocks := n > line+1 // the first comes before it serves
							mu.Unlock()
							if blocks {
								<-block
							}
						},
					}, l)
					c := newClient(t, l.dial())
					c.ask("/10s")
					synctest.Wait()
					s.stopAt = time.Now()
					want := 3 * time.Second
					switch how {
					case "by itself":
						s.Stop(0)
						want = 10 * time.Second
					case "Timeout":
						s.Stop(2 * time.Second)
					case "Close":
						s.Stop(0)
						time.AfterFunc(want, func() { s.Close() })
					case "Shutdown":
						ctx, cancel := context.WithTimeout(bg, want)
						defer cancel()
						go s.Shutdown(ctx)
					}
					c.br.ReadByte()
					if took := time.Since(s.stopAt); took != want {
						t.Errorf("the client's connection: after %v, want %v", took, want)
					}
					if took := s.end(); took > want+200*ms {
						t.Errorf("over after %v, want %v", took, want)
					}
				})
			})
		}
	}
}

// TestLogVolume: a client chooses how long its request's target is, up to a
// megabyte, and what it holds. The report and the log take 200 bytes of it, quoted,
// and connections are cut before anything is written about them: what a slow log
// makes of many such requests does not put the cut off.
func TestLogVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		const conns = 50
		l := newVirtListener()
		var mu sync.Mutex // guards lines
		var lines []string
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: h}, Timeout: time.Second,
			LogFunc: func(format string, args ...any) {
				time.Sleep(20 * ms)
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, fmt.Sprintf(format, args...))
			},
		}, l)
		time.Sleep(100 * ms) // it has logged what it says of the listener
		var clients []*client
		for range conns {
			c := newClient(t, l.dial())
			c.ask("/\xff\"" + strings.Repeat("u", 300<<10))
			clients = append(clients, c)
		}
		synctest.Wait()
		s.stop()
		for _, c := range clients {
			c.ended()
		}
		if took := time.Since(s.stopAt); took != time.Second {
			t.Errorf("cut after %v", took)
		}
		if took := s.end(); took > 1200*ms {
			t.Errorf("over after %v", took)
		}
		time.Sleep(time.Hour) // until the log has taken everything
		mu.Lock()
		defer mu.Unlock()
		named := 0
		for _, line := range lines {
			if text, ok := strings.CutPrefix(line, "killing client active for 1s: "); ok {
				named++
				if len(text) > 300 || !strings.HasPrefix(text, `GET "/\xff\"uuu`) || !strings.HasSuffix(text, "… (307203 bytes)") {
					t.Fatalf("%d bytes: %.300q", len(line), line)
				}
			}
		}
		if named != conns {
			t.Errorf("%d lines name a connection that was killed, want %d", named, conns)
		}
		if n := len(s.Report().String()); n > conns*400 {
			t.Errorf("the report is of %d bytes", n)
		}
	})
}
