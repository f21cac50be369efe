package graceful_test

import (
	"errors"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// Accept comes back when the drain is over, and not before: a server that
// closes its connections then, loses nothing by it.
func TestListenerAcceptBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ql, l := newQueued()
		s := (&lineServer{}).start(l)
		c := newLineClient(ql.dial())
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
		c := newLineClient(ql.dial())
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
		<-l.Done()
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
		c := newLineClient(ql.dial())
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

// A listener that nobody ever accepted from ends.
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
				<-l.Done()
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
			ql.dial()
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
			first, second := newLineClient(ql.dial()), newLineClient(ql.dial())
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
	for _, limit := range []string{"Limit", "LimitListener"} {
		t.Run(limit, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ql, l := newQueued()
				if limit == "Limit" {
					l.Limit = 2
				} else {
					l = graceful.NewListener(graceful.LimitListener(ql, 2))
				}
				s := (&lineServer{}).start(l)
				a, b, c := newLineClient(ql.dial()), newLineClient(ql.dial()), newLineClient(ql.dial())
				synctest.Wait()
				if got := openStates(l); got != "2 new, 0 active, 0 idle" {
					t.Errorf("with three clients: %s", got)
				}
				a.Close()
				c.ask(t, "x")
				// A fourth waits in the queue when the drain begins, and a
				// full limit keeps neither it nor the end waiting for ever.
				d := newLineClient(ql.dial())
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
		{func(l *graceful.Listener) { l.Limit = -2 }, "graceful: Listener.Limit is negative: -2"},
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
			<-l.Done()
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
			c := newLineClient(ql.dial())
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
