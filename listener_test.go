package graceful_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// panickingListener panics in the place of its last Accept.
func panickingListener(l net.Listener, accepts int) net.Listener {
	return failingListener(l, accepts, func() error {
		time.Sleep(time.Second)
		panic("accept")
	})
}

// TestAcceptPanics: a caller's Accept that panics cuts none of those that were
// accepted before, whatever they are doing, and the stop ends. The one that was
// accepted last used to be cut.
func TestAcceptPanics(t *testing.T) {
	for state, begin := range clientStates {
		t.Run(state, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				srv := &graceful.Server{Server: &http.Server{Handler: sleeper}, IdleGrace: time.Hour}
				s := serveWith(t, srv, func() error {
					defer func() { recover() }()
					return srv.Serve(panickingListener(l, 2))
				})
				clients := []*client{newClient(t, l.dial()), newClient(t, l.dial())}
				for _, c := range clients {
					begin(c)
				}
				if state == "idle" {
					for _, c := range clients {
						c.expect("done")
					}
				}
				<-s.returned
				s.stop()
				synctest.Wait()
				for _, c := range clients {
					switch state {
					case "half":
						c.send("TP/1.1\r\nHost: x\r\n\r\n")
					case "silent", "idle":
						c.ask("/0s")
					}
				}
				for _, c := range clients {
					if !c.expect("done").close {
						t.Error("the response does not say close")
					}
				}
				<-s.StopChan()
				if r := s.Report(); r.Finished != 2 || r.KillReason != "" {
					t.Errorf("%v", r)
				}
			})
		})
	}
}

// TestAcceptPanicsInListener is the same for an accept loop over a Listener.
func TestAcceptPanicsInListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql := newVirtSocket()
		l := newListener(panickingListener(ql, 2))
		s := &lineServer{}
		looped := make(chan struct{})
		go func() {
			defer close(looped)
			defer func() { recover() }()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.conns.Go(func() { s.serve(c) })
			}
		}()
		a, b := newLineClient(ql.dialPipe()), newLineClient(ql.dialPipe())
		a.say(t, "wait 5s\n")
		b.say(t, "wai")
		<-looped
		stopped := beginShut(t, l)
		a.hear(t, "ok wait 5s")
		a.end(t)
		b.say(t, "t 2s\n")
		b.hear(t, "ok wait 2s")
		b.end(t)
		<-stopped
		s.conns.Wait()
		if len(s.errs) > 0 {
			t.Error(s.errs)
		}
	})
}

// TestListenerAcceptsAtOnce: several goroutines that accept from one Listener
// neither race nor lose a client that is in the queue when the shutdown begins: a
// connection is the manager's before the queue can be found empty.
func TestListenerAcceptsAtOnce(t *testing.T) {
	const accepters, clients = 4, 8
	play := func(t *testing.T, l *graceful.Listener, dial func() net.Conn) {
		var servers []*lineServer
		for range accepters {
			servers = append(servers, (&lineServer{}).start(l))
		}
		var asked sync.WaitGroup
		for range clients {
			c := newLineClient(dial())
			_, socket := c.Conn.(*net.TCPConn)
			if socket {
				c.say(t, "x\n") // before the shutdown
			}
			asked.Go(func() {
				if !socket { // a pipe waits for its reader
					c.say(t, "x\n")
				}
				c.hear(t, "ok x")
				c.end(t)
			})
		}
		stopped := beginShut(t, l)
		asked.Wait()
		<-stopped
		accepted := 0
		for _, s := range servers {
			s.wait()
			accepted += s.lines
		}
		if r := l.Report(); accepted != clients || r.KillReason != "" {
			t.Errorf("%d of %d were served\n%v", accepted, clients, r)
		}
	}
	t.Run("in memory", func(t *testing.T) {
		for range 50 {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				play(t, l, ql.dialPipe)
			})
		}
	})
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprintf("a socket, own %v", own), func(t *testing.T) {
			for range 50 {
				below := listenLocal(t)
				if !own {
					below.Close()
					below, _ = net.Listen("tcp", "127.0.0.1:0")
				}
				l := newListener(below)
				l.IdleGrace = 5 * ms
				play(t, l, func() net.Conn { return dialLines(t, below).Conn })
			}
		})
	}
}

// TestConcurrentReads: several goroutines may read one connection ("Multiple
// goroutines may invoke methods on a Conn simultaneously"), a byte at a time too:
// one of a Listener's, and one that was hijacked. They used to race for a field.
func TestConcurrentReads(t *testing.T) {
	const total, readers = 2000, 3
	read := func(nc net.Conn) (n int) {
		var wg sync.WaitGroup
		counts := make([]int, readers)
		for i := range readers {
			wg.Go(func() {
				b := make([]byte, 1+i%2)
				for {
					k, err := nc.Read(b)
					counts[i] += k
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		for _, k := range counts {
			n += k
		}
		return n
	}
	write := func(nc net.Conn) {
		for range total / 100 {
			io.WriteString(nc, strings.Repeat("x", 100))
		}
		nc.Close()
	}
	t.Run("a Listener's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newVirtListener()
			gl := newListener(l)
			go write(l.dial())
			nc, err := gl.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if n := read(nc); n != total {
				t.Errorf("%d bytes, want %d", n, total)
			}
			nc.Close()
			gl.Close()
			<-gl.StopChan()
		})
	})
	t.Run("hijacked", func(t *testing.T) {
		for _, secure := range []bool{false, true} {
			got := make(chan int, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				nc, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
				got <- read(nc)
				nc.Close()
			})
			s, c := servePlainOrTLS(t, &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: -1}, secure)
			c.ask("/")
			if resp, err := http.ReadResponse(c.br, nil); err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
			write(c)
			if n := <-got; n != total {
				t.Errorf("TLS %v: %d bytes, want %d", secure, n, total)
			}
			s.stop()
			s.end()
		}
	})
}

// TestLimitHijacked: hijacked connections that are not waited for hold every slot,
// one more client waits in the queue or none: no slot will come free, and the stop
// does not wait for one. It used to, without end.
func TestLimitHijacked(t *testing.T) {
	for _, kind := range []string{"a queue that can be looked into", "another", "no queue"} {
		for _, queued := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, queued %v", kind, queued), func(t *testing.T) {
				u := newUpgrader(false)
				srv := &graceful.Server{Server: &http.Server{Handler: u}, ListenLimit: 1, IdleGrace: 50 * ms}
				play := func(t *testing.T, l net.Listener, dial func() net.Conn, most time.Duration) {
					s := serve(t, srv, l)
					ws := newClient(t, dial())
					ws.upgrade()
					if queued {
						defer dial().Close()
					}
					waitAddr(s)
					s.stopAt = time.Now()
					began := time.AfterFunc(time.Minute, func() { s.Close() })
					defer began.Stop()
					s.Stop(0)
					if took := s.end(); took > most || s.Report().KillReason != "" {
						t.Errorf("over after %v\n%v", took, s.Report())
					}
					ws.echo("still there")
					ws.send("bye\n")
					<-u.ended
				}
				if kind == "a queue that can be looked into" {
					l := listenTCP(t)
					play(t, l, func() net.Conn { return dialClient(t, l.Addr()).Conn }, 5*time.Second)
					return
				}
				synctest.Test(t, func(t *testing.T) {
					u.ended = make(chan error, 1)
					if kind == "another" {
						ql := newVirtSocket()
						play(t, ql, ql.dialPipe, 200*ms)
						return
					}
					l := newVirtListener()
					play(t, l, func() net.Conn { return l.dial() }, 10*ms)
				})
			})
		}
	}
}

// TestHalfBehind: half a request that came with the one before it is in net/http's
// buffer, which is as good as half a request that came alone: the connection is
// waited for. It used to count as idle, and was told 400 at the end of its quiet
// window.
func TestHalfBehind(t *testing.T) {
	for cut := 1; cut < len(getOf("/0s")); cut++ {
		for _, together := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, Timeout: 30 * time.Second}, l)
				c := newClient(t, l.dial())
				half, rest := getOf("/0s")[:cut], getOf("/0s")[cut:]
				if together {
					c.send(getOf("/0s") + half)
					c.expect("done")
				} else {
					c.get("/0s", "done")
					c.send(half)
				}
				synctest.Wait()
				s.stop()
				time.Sleep(20 * time.Second)
				c.send(rest)
				if !c.expect("done").close {
					t.Errorf("cut at %d: the response does not say close", cut)
				}
				if took := s.end(); took != 20*time.Second {
					t.Errorf("cut at %d: over after %v", cut, took)
				}
			})
		}
	}
}
