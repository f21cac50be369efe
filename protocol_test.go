package graceful_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

func TestListenerStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		var push net.Conn
		s := (&lineServer{handle: func(c net.Conn, line string) (string, bool) {
			push = c
			return "", line == "silent"
		}}).start(l)
		c := newLineClient(ql.dialPipe())
		steps := []struct {
			name string
			do   func()
			want string
		}{
			{"accepted", func() {}, "1 new, 0 active, 0 idle"},
			{"half a command", func() { c.say(t, "wait ") }, "0 new, 1 active, 0 idle"},
			{"the other half", func() { c.say(t, "1s\n") }, "0 new, 1 active, 0 idle"},
			{"working", func() { time.Sleep(time.Second / 2) }, "0 new, 1 active, 0 idle"},
			{"an answer that the client does not take", func() { time.Sleep(time.Hour) }, "0 new, 1 active, 0 idle"},
			{"answered", func() { c.hear(t, "ok wait 1s") }, "0 new, 0 active, 1 idle"},
			{"a command without an answer", func() { c.say(t, "silent\n") }, "0 new, 1 active, 0 idle"},
			{"the server speaks unasked", func() { go io.WriteString(push, "push\n") }, "0 new, 1 active, 0 idle"},
			{"it was heard", func() { c.hear(t, "push") }, "0 new, 0 active, 1 idle"},
			{"two commands in one", func() { c.say(t, "a\nwait 1s\n"); c.hear(t, "ok a") }, "0 new, 1 active, 0 idle"},
			{"both answered", func() { c.hear(t, "ok wait 1s") }, "0 new, 0 active, 1 idle"},
			{"closed by the client", func() { c.Close() }, "0 new, 0 active, 0 idle"},
		}
		for _, step := range steps {
			step.do()
			synctest.Wait()
			if got := openStates(l); got != step.want {
				t.Errorf("%s: %s, want %s", step.name, got, step.want)
			}
		}
		shutListener(t, l)
		s.wait()
	})
}

// The quiet window counts from the last byte, also before the shutdown began,
// and only for those that are idle.
func TestListenerQuietWindow(t *testing.T) {
	for _, tc := range []struct {
		name       string
		grace      time.Duration
		idle       time.Duration // how long it was before the drain
		during     string        // what the client says 100 ms into the drain
		end, drain time.Duration // since the drain began
	}{
		{"default", 0, 200 * time.Millisecond, "", 300 * time.Millisecond, 300 * time.Millisecond},
		{"quiet for long", 0, time.Minute, "", 0, queueTried},
		{"a field", 2 * time.Second, 500 * time.Millisecond, "", 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"none", -1, 0, "", 0, queueTried},
		{"a command meanwhile", 0, 200 * time.Millisecond, "wait 1s", 1600 * time.Millisecond, 1600 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				l.IdleGrace = tc.grace
				s := (&lineServer{}).start(l)
				c := newLineClient(ql.dialPipe())
				c.ask(t, "x")
				synctest.Wait()
				time.Sleep(tc.idle)
				c.began = time.Now()
				stopped := beginShut(t, l)
				if tc.during != "" {
					time.Sleep(100 * time.Millisecond)
					c.ask(t, tc.during)
				}
				wantTime(t, "the connection's end", c.end(t), tc.end)
				wantTime(t, "the shutdown's", <-stopped, tc.drain)
				s.wait()
				if len(s.errs) > 0 {
					t.Error(s.errs)
				}
				r := l.Report()
				if r.IdleClosed != 1 || r.Finished+r.IncompleteClosed+len(r.Killed) != 0 {
					t.Errorf("report: %v", r)
				}
			})
		})
	}
}

// Clients that never fall quiet are closed between two commands once patience
// is over.
func TestListenerPatience(t *testing.T) {
	for _, tc := range []struct {
		name            string
		grace, patience time.Duration
		every           string // the command
		pause           time.Duration
		end             time.Duration // since the drain began
	}{
		{"four windows", 0, 0, "x", 100 * time.Millisecond, 2 * time.Second},
		{"four windows of the field", time.Second, 0, "x", 300 * time.Millisecond, 4 * time.Second},
		{"a field", 0, time.Second, "x", 300 * time.Millisecond, time.Second},
		{"shorter than the window", 0, 100 * time.Millisecond, "x", 80 * time.Millisecond, 100 * time.Millisecond},
		{"in use at its end", 0, 0, "wait 700ms", 100 * time.Millisecond, 2300 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				l.IdleGrace, l.Patience = tc.grace, tc.patience
				s := (&lineServer{}).start(l)
				c := newLineClient(ql.dialPipe())
				c.ask(t, "x")
				synctest.Wait()
				c.began = time.Now()
				stopped := beginShut(t, l)
				asked := 0
				for time.Since(c.began) < tc.end {
					if _, err := io.WriteString(c, tc.every+"\n"); err != nil {
						break
					}
					asked++
					c.hear(t, "ok "+tc.every)
					if time.Since(c.began) < tc.end {
						// An end that comes during the pause is seen after it.
						time.Sleep(tc.pause)
					}
				}
				c.end(t)
				wantTime(t, "the shutdown's end", <-stopped, tc.end)
				s.wait()
				if s.lines != asked+1 {
					t.Errorf("%d carried out, %d asked", s.lines, asked+1)
				}
			})
		})
	}
}

// Without patience's end such a client is waited for until Timeout.
func TestListenerPatienceWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.Patience, l.Timeout = -1, time.Minute
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		stopped := make(chan error)
		go func() { stopped <- l.Shutdown(context.Background()) }()
		began := time.Now()
		for {
			if _, err := io.WriteString(c, "x\n"); err != nil {
				break
			}
			if _, err := c.r.ReadString('\n'); err != nil {
				break // cut in the middle
			}
			time.Sleep(300 * time.Millisecond)
		}
		if err := <-stopped; !errors.Is(err, graceful.ErrKilled) {
			t.Error(err)
		}
		wantTime(t, "the end", time.Since(began).Truncate(time.Second), time.Minute)
		c.Close()
		s.wait()
	})
}

// What used to happen: a connection that fell idle after patience was over
// stood in the list behind those whose quiet window was not over, and was
// closed only after them.
func TestListenerPatienceBesideNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.Patience = time.Millisecond
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		c.say(t, "wait 100ms\n")
		time.Sleep(50 * time.Millisecond)
		silent := newLineClient(ql.dialPipe())
		synctest.Wait()
		stopped := beginShut(t, l)
		c.hear(t, "ok wait 100ms")
		wantTime(t, "the end of the one that fell idle", c.end(t), 100*time.Millisecond)
		wantTime(t, "the end of the silent one", silent.end(t), 500*time.Millisecond)
		wantTime(t, "the shutdown's", <-stopped, 500*time.Millisecond)
		s.wait()
	})
}

// A peer that never completes its command is waited for, and named.
func TestListenerTimeoutNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.Timeout = 3 * time.Second
		var log strings.Builder
		l.LogFunc = func(format string, args ...any) {
			if strings.HasPrefix(format, "killing") {
				log.WriteString(format)
			}
		}
		s := (&lineServer{}).start(l)
		half := newLineClient(ql.dialPipe())
		half.say(t, "hal")
		long := newLineClient(ql.dialPipe())
		long.say(t, "wait 10s\n")
		quiet := newLineClient(ql.dialPipe())
		quiet.ask(t, "x")
		time.Sleep(time.Second)
		if err := l.Shutdown(context.Background()); !errors.Is(err, graceful.ErrKilled) {
			t.Errorf("Shutdown: %v", err)
		}
		wantTime(t, "the end", time.Since(s.began), 4*time.Second)
		r := l.Report()
		want := []graceful.KilledConn{
			{RemoteAddr: "pipe", State: "active", Age: 4 * time.Second},
			{RemoteAddr: "pipe", State: "active", Age: 4 * time.Second},
		}
		if diff := cmp.Diff(want, r.Killed); diff != "" {
			t.Error(diff)
		}
		if r.IdleClosed != 1 || r.KillReason != "timeout, 3s after draining began" || log.Len() == 0 {
			t.Errorf("%v; log %q", r, &log)
		}
		half.Close()
		long.Close()
		quiet.Close()
		s.wait()
	})
}

func TestListenerShutdownContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		c.say(t, "wait 10s\n")
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := l.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("Shutdown: %v", err)
		}
		wantTime(t, "the kill", time.Since(s.began), 2*time.Second)
		c.end(t)
		// A later call waits for the same shutdown.
		if err := l.Shutdown(context.Background()); !errors.Is(err, graceful.ErrKilled) {
			t.Errorf("again: %v", err)
		}
		if n := len(l.Report().Killed); n != 1 {
			t.Errorf("%d killed", n)
		}
		s.wait()
	})
}

func TestListenerDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.ShutdownDelay = 3 * time.Second
		s := (&lineServer{}).start(l)
		stopped := beginShut(t, l)
		<-l.ShutdownBegun()
		time.Sleep(2 * time.Second)
		if l.Phase() != graceful.PhaseDelaying {
			t.Error(l.Phase())
		}
		// What used to happen: an error of Accept in this phase, as by a want
		// of descriptors, was taken for the end of accepting.
		retry := errors.New("no more descriptors")
		ql.failWith(retry)
		<-s.done
		if s.err != retry {
			t.Errorf("Accept: %v", s.err)
		}
		ql.failWith(nil)
		s.start(l)
		c := newLineClient(ql.dialPipe())
		c.ask(t, "x")
		c.began = time.Now()
		wantTime(t, "the connection's end", c.end(t), time.Second)
		wantTime(t, "the shutdown's", <-stopped, 3*time.Second+queueTried)
		s.wait()
	})
}

// Accept comes back when the drain is over, and not before: a server that
// closes its connections then, loses nothing by it.
func TestListenerAcceptBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		c.say(t, "wait 10s\n")
		stopped := beginShut(t, l)
		c.hear(t, "ok wait 10s")
		c.end(t)
		s.wait()
		wantTime(t, "Accept", s.ended, 10*time.Second)
		wantTime(t, "Shutdown", <-stopped, 10*time.Second)
		var op *net.OpError
		if !errors.Is(s.err, net.ErrClosed) || !errors.As(s.err, &op) || op.Op != "accept" {
			t.Errorf("Accept: %v", s.err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept again: %v", err)
		}
	})
}

func TestListenerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.ShutdownDelay = time.Hour
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		c.say(t, "wait 3s\n")
		time.Sleep(time.Second)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-s.done
		wantTime(t, "Accept", s.ended, time.Second)
		if !errors.Is(s.err, net.ErrClosed) {
			t.Error(s.err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("again: %v", err)
		}
		c.hear(t, "ok wait 3s")
		wantTime(t, "the connection's end", c.end(t), 3*time.Second)
		<-l.StopChan()
		wantTime(t, "the shutdown's", time.Since(s.began), 3*time.Second)
		if r := l.Report(); r.Reason != "Close" || r.Phase != graceful.PhaseStopped {
			t.Errorf("report: %v", r)
		}
		s.wait()
	})
}

// Close during the drain lets Accept go, and the drain go on.
func TestListenerCloseWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dialPipe())
		c.say(t, "wait 3s\n")
		stopped := beginShut(t, l)
		time.Sleep(time.Second)
		l.Close()
		<-s.done
		wantTime(t, "Accept", s.ended, time.Second)
		c.hear(t, "ok wait 3s")
		c.end(t)
		wantTime(t, "Shutdown", <-stopped, 3*time.Second)
		s.wait()
	})
}

// A listener whose Accept was never called ends.
func TestListenerUnused(t *testing.T) {
	for _, how := range []string{"Close", "Shutdown"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				if l.Phase() != graceful.PhaseServing || l.Stats().Open() != 0 || l.Report().Reason != "" {
					t.Errorf("%v, %v, %v", l.Phase(), l.Stats(), l.Report())
				}
				if how == "Close" {
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				} else {
					wantTime(t, "Shutdown", shutListener(t, l), 500*time.Millisecond)
				}
				<-l.StopChan()
				if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				if err := ql.Close(); err != net.ErrClosed {
					t.Errorf("the listener below is open: %v", err)
				}
			})
		})
	}
}

// A server that has ceased to call Accept does not keep the shutdown from
// ending. One that does one thing at a time comes back to it, and those who
// wait in the queue are served: what used to happen is that it was given up
// after a quiet window.
func TestListenerNoAccept(t *testing.T) {
	t.Run("ceased", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ql, l := newQueued()
			ql.dialPipe()
			nc, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(1800*time.Millisecond, func() { nc.Close() })
			// At the second look after the connection's end.
			wantTime(t, "Shutdown", shutListener(t, l), 2250*time.Millisecond)
		})
	})
	t.Run("one at a time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ql, l := newQueued()
			s := &lineServer{}
			over := make(chan error)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						over <- err
						return
					}
					s.serve(c)
				}
			}()
			first, second := newLineClient(ql.dialPipe()), newLineClient(ql.dialPipe())
			synctest.Wait() // the first is accepted
			stopped := beginShut(t, l)
			first.ask(t, "wait 3s")
			wantTime(t, "the first's end", first.end(t), 3*time.Second)
			second.ask(t, "wait 3s")
			wantTime(t, "the second's end", second.end(t), 6*time.Second+queueTried)
			<-over
			<-stopped
		})
	})
}

func TestListenerLimit(t *testing.T) {
	for _, limit := range []string{"ListenLimit", "LimitListener"} {
		t.Run(limit, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				if limit == "ListenLimit" {
					l.ListenLimit = 2
				} else {
					l = newListener(graceful.LimitListener(ql, 2))
				}
				s := (&lineServer{}).start(l)
				a, b, c := newLineClient(ql.dialPipe()), newLineClient(ql.dialPipe()), newLineClient(ql.dialPipe())
				synctest.Wait()
				if got := openStates(l); got != "2 new, 0 active, 0 idle" {
					t.Errorf("with three clients: %s", got)
				}
				a.Close()
				c.ask(t, "x")
				// A fourth waits in the queue when the drain begins, and a
				// full limit keeps neither it nor the end waiting for ever.
				d := newLineClient(ql.dialPipe())
				b.say(t, "wait 2s\n")
				stopped := beginShut(t, l)
				b.hear(t, "ok wait 2s")
				b.end(t)
				c.end(t)
				<-stopped
				d.Close()
				s.wait()
			})
		})
	}
}

func TestListenerFields(t *testing.T) {
	for _, tc := range []struct {
		set  func(*graceful.Listener)
		want string
	}{
		{func(l *graceful.Listener) { l.Timeout = -1 }, "graceful: Listener.Timeout is negative: -1ns"},
		{func(l *graceful.Listener) { l.ShutdownDelay = -time.Second }, "graceful: Listener.ShutdownDelay is negative: -1s"},
		{func(l *graceful.Listener) { l.ListenLimit = -2 }, "graceful: Listener.ListenLimit is negative: -2"},
	} {
		for _, end := range []string{"Close", "Shutdown"} {
			ql, l := newQueued()
			tc.set(l)
			for range 2 {
				if _, err := l.Accept(); err == nil || err.Error() != tc.want {
					t.Errorf("Accept: %v, want %s", err, tc.want)
				}
			}
			if end == "Close" {
				l.Close()
			} else {
				shutListener(t, l)
			}
			<-l.StopChan()
			if ql.Close() == nil {
				t.Errorf("%s left the listener open: %s", end, tc.want)
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("NewListener(nil) returned")
		}
	}()
	graceful.NewListener(nil)
}

// Several goroutines may accept.
func TestListenerConcurrentAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		servers := make([]*lineServer, 4)
		for i := range servers {
			servers[i] = (&lineServer{}).start(l)
		}
		var clients []*lineClient
		for range 40 {
			c := newLineClient(ql.dialPipe())
			c.ask(t, "x")
			clients = append(clients, c)
			runtime.Gosched()
		}
		stopped := beginShut(t, l)
		for _, c := range clients {
			c.end(t)
		}
		wantTime(t, "Shutdown", <-stopped, 500*time.Millisecond)
		for _, s := range servers {
			s.wait()
			if !errors.Is(s.err, net.ErrClosed) {
				t.Error(s.err)
			}
		}
	})
}

func TestBusy(t *testing.T) {
	for _, tc := range []struct {
		name string
		over func(net.Conn) net.Conn
	}{
		{"the connection itself", nil},
		{"a wrapper", func(c net.Conn) net.Conn { return callersConn{c} }},
		{"two of them", func(c net.Conn) net.Conn { return callersConn{callersConn{c}} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				l.Patience = -1
				// Every command is handed to a worker, which keeps the
				// connection busy; its first answer comes at once.
				s := &lineServer{over: tc.over}
				s.handle = func(c net.Conn, line string) (string, bool) {
					first, second := graceful.Busy(c), graceful.Busy(c)
					time.AfterFunc(2*time.Second, func() { first(); first() })
					time.AfterFunc(3*time.Second, func() {
						io.WriteString(c, "done\n")
						second()
					})
					return "queued", true
				}
				s.start(l)
				c := newLineClient(ql.dialPipe())
				c.say(t, "work\n")
				c.hear(t, "queued")
				c.began = time.Now()
				stopped := beginShut(t, l)
				for _, want := range []string{"0 new, 1 active, 0 idle", "0 new, 1 active, 0 idle"} {
					synctest.Wait()
					if got := openStates(l); got != want {
						t.Errorf("at %v: %s, want %s", time.Since(c.began), got, want)
					}
					time.Sleep(2 * time.Second)
				}
				c.hear(t, "done")
				synctest.Wait()
				c.end(t)
				// The pipe holds the answer until it is taken, at 4 s.
				wantTime(t, "the shutdown's end", <-stopped, 4500*time.Millisecond)
				s.wait()
			})
		})
	}
}

// callersConn is a caller's wrapper that has a NetConn method.
type callersConn struct{ net.Conn }

func (c callersConn) NetConn() net.Conn { return c.Conn }

// For a connection that is not a Listener's, Busy does nothing.
func TestBusyElsewhere(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	for _, c := range []net.Conn{nil, a, callersConn{a}, callersConn{nil}} {
		done := graceful.Busy(c)
		done()
		done()
	}
	a.Close()
}

// Busy may come when the connection has just been told to end, and must not be
// answered with the deadline by which it was told.
func TestBusyAgainstTheEnd(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			ql, l := newQueued()
			accepted := make(chan net.Conn, 1)
			s := &lineServer{over: func(c net.Conn) net.Conn {
				accepted <- c
				return c
			}}
			s.start(l)
			c := newLineClient(ql.dialPipe())
			c.ask(t, "x")
			nc := <-accepted
			stopped := beginShut(t, l)
			time.Sleep(500 * time.Millisecond) // the very moment
			done := graceful.Busy(nc)
			time.AfterFunc(time.Second, done)
			c.end(t)
			time.Sleep(time.Second)
			<-stopped
			s.wait()
			// Either the end was the earlier, or it waited. An error of the
			// deadline is neither.
			for _, err := range s.errs {
				t.Error(err)
			}
		})
	}
}

const farewell = "421 closing"

func sayFarewell(c net.Conn) { io.WriteString(c, farewell+"\n") }

// What used to happen: a connection that had been idle for longer than the
// quiet window was told to end before OnDrain was called for it, and one in
// use got the farewell in the place of its answer.
func TestListenerOnDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		var calls atomic.Int32
		l.Patience = -1
		l.OnDrain = func(c net.Conn) {
			calls.Add(1)
			time.Sleep(time.Second)
			sayFarewell(c)
		}
		s := (&lineServer{greeting: "220 hello\n"}).start(l)
		quiet, busy := newLineClient(ql.dialPipe()), newLineClient(ql.dialPipe())
		for _, c := range []*lineClient{quiet, busy} {
			c.hear(t, "220 hello")
		}
		time.Sleep(time.Minute)
		busy.say(t, "wait 3s\n")
		synctest.Wait()
		// It has connected, and has not been accepted when the drain begins.
		late := newLineClient(ql.dialPipe())
		for _, c := range []*lineClient{quiet, busy} {
			c.began = time.Now()
		}
		stopped := beginShut(t, l)
		late.hear(t, "220 hello")
		synctest.Wait()
		if got := openStates(l); got != "0 new, 3 active, 0 idle" {
			t.Errorf("while OnDrain runs: %s", got)
		}
		quiet.hear(t, farewell)
		wantTime(t, "the quiet one's farewell", time.Since(quiet.began), time.Second)
		late.hear(t, farewell)
		wantTime(t, "the late one's farewell", time.Since(late.began), time.Second)
		wantTime(t, "the quiet one's end", quiet.end(t), 1500*time.Millisecond)
		wantTime(t, "the late one's end", late.end(t), 1500*time.Millisecond)
		busy.hear(t, "ok wait 3s")
		wantTime(t, "the answer", time.Since(busy.began), 3*time.Second)
		busy.hear(t, farewell)
		wantTime(t, "the busy one's end", busy.end(t), 4500*time.Millisecond)
		wantTime(t, "the shutdown's", <-stopped, 4500*time.Millisecond)
		s.wait()
		if n := calls.Load(); n != 3 {
			t.Errorf("OnDrain was called %d times", n)
		}
	})
}

// What OnDrain writes is no answer: the connection stays in use until the
// command that came meanwhile is answered.
func TestListenerOnDrainIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		said := make(chan struct{})
		l.Patience = -1
		l.OnDrain = func(c net.Conn) {
			<-said
			sayFarewell(c)
		}
		// A second goroutine does the work, so that the connection is read
		// meanwhile.
		s := (&lineServer{handle: func(c net.Conn, line string) (string, bool) {
			time.AfterFunc(5*time.Second, func() { io.WriteString(c, "done\n") })
			return "", true
		}}).start(l)
		c := newLineClient(ql.dialPipe())
		synctest.Wait()
		stopped := beginShut(t, l)
		synctest.Wait()
		c.say(t, "work\n")
		close(said)
		c.hear(t, farewell)
		synctest.Wait()
		if got := openStates(l); got != "0 new, 1 active, 0 idle" {
			t.Errorf("after the farewell: %s", got)
		}
		c.hear(t, "done")
		wantTime(t, "the end", c.end(t), 5500*time.Millisecond)
		<-stopped
		s.wait()
	})
}

// In a Group the signals, the delay and the budget are the group's.
func TestListenerInGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		l.NoSignalHandling, l.ShutdownDelay, l.Timeout = false, time.Hour, time.Hour
		s := &lineServer{}
		g := &graceful.Group{Budget: 20 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true}
		g.Add("lines", l, func() error {
			s.start(l)
			<-s.done
			return s.err
		})
		ctx, cancel := context.WithCancel(context.Background())
		stopped, err := g.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c := newLineClient(ql.dialPipe())
		c.ask(t, "x")
		if !g.Ready() {
			t.Error("not ready")
		}
		cancel()
		<-l.ShutdownBegun()
		if g.Ready() {
			t.Error("ready")
		}
		c.say(t, "wait 5s\n")
		c.hear(t, "ok wait 5s")
		wantTime(t, "the connection's end", c.end(t), 5*time.Second)
		<-stopped
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		if r := g.Report(); r.Entries[0].Detail != "1 in flight, 0 idle at the start" {
			t.Errorf("%v", r)
		}
		s.wait()
	})
}

func TestListenerNeedsServeInGroup(t *testing.T) {
	g := &graceful.Group{NoSignalHandling: true}
	g.Add("lines", newListener(newVirtSocket()))
	if _, err := g.Start(context.Background()); err == nil {
		t.Error("a Listener served by itself")
	}
}

// TestListenerMultiplexed: the answer to a slow call comes although a quick one was
// answered meanwhile, so that the connection looks idle. The connection ends with
// Patience, or when the peer closes it.
func TestListenerMultiplexed(t *testing.T) {
	for _, c := range []struct {
		name         string
		multiplexed  bool
		grace        time.Duration
		patience     time.Duration
		slow, closes time.Duration // the slow call, and when the client closes; 0 for not
		answered     bool
		end          time.Duration
	}{
		{name: "not set", slow: 3 * time.Second, end: 500 * time.Millisecond},
		{name: "set", multiplexed: true, patience: 10 * time.Second, slow: 3 * time.Second, answered: true, end: 10 * time.Second},
		{name: "default patience", multiplexed: true, slow: 1900 * time.Millisecond, answered: true, end: 2 * time.Second},
		{name: "no quiet period", multiplexed: true, grace: -1, slow: 1900 * time.Millisecond, answered: true, end: 2 * time.Second},
		{name: "the peer closes", multiplexed: true, patience: -1, slow: time.Minute, closes: time.Hour, answered: true, end: time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				l.Multiplexed, l.IdleGrace, l.Patience = c.multiplexed, c.grace, c.patience
				s := &lineServer{}
				s.handle = func(nc net.Conn, line string) (string, bool) {
					if line != "slow" {
						return "", false
					}
					s.conns.Go(func() {
						time.Sleep(c.slow)
						io.WriteString(nc, "the slow answer\n")
					})
					return "", true
				}
				s.start(l)
				client := newLineClient(ql.dial())
				client.say(t, "slow\n")
				client.ask(t, "quick")
				began := time.Now()
				stopped := beginShut(t, l)
				if c.answered {
					client.hear(t, "the slow answer")
					wantTime(t, "the slow answer", time.Since(began), c.slow)
				}
				if c.closes > 0 {
					time.Sleep(c.closes - time.Since(began))
					client.Close()
				} else if rest, err := io.ReadAll(client.r); err != nil || len(rest) > 0 {
					t.Errorf("at the end: %q, %v", rest, err)
				}
				wantTime(t, "the connection's end", time.Since(began), c.end)
				wantTime(t, "the shutdown's", <-stopped, c.end)
				s.wait()
			})
		})
	}
}
