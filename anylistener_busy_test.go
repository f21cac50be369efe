package graceful_test

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
				// Every command is handed to a worker, who keeps the
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
				c := newLineClient(ql.dial())
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

// callersConn is somebody's wrapper that says what it is around.
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
			c := newLineClient(ql.dial())
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
