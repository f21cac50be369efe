package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
	return &hookedListener{Listener: l, accept: func() (net.Conn, error) {
		nc, err := l.Accept()
		if err != nil {
			return nil, err
		}
		return &blockingConn{
			Conn: nc, method: method, deaf: deaf, over: over,
			lock: make(chan struct{}, 1), closed: make(chan struct{}),
		}, nil
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

// TestBlockedLog: a log that blocks, from whichever of its lines on, holds up
// neither the stop nor Timeout, Close and the end of Shutdown's context. The end
// waits for it for 200 ms. It used to hold them up without end.
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
