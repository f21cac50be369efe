package graceful_test

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

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
		quiet, busy := newLineClient(ql.dial()), newLineClient(ql.dial())
		for _, c := range []*lineClient{quiet, busy} {
			c.hear(t, "220 hello")
		}
		time.Sleep(time.Minute)
		busy.say(t, "wait 3s\n")
		synctest.Wait()
		// It has connected, and nobody has accepted it when the drain begins.
		late := newLineClient(ql.dial())
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
		c := newLineClient(ql.dial())
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
		l.HandleSignals, l.ShutdownDelay, l.Timeout = true, time.Hour, time.Hour
		s := &lineServer{}
		g := &graceful.Group{Timeout: 20 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true}
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
		c := newLineClient(ql.dial())
		c.ask(t, "x")
		if !g.Ready() {
			t.Error("not ready")
		}
		cancel()
		<-l.Draining()
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
	g.Add("lines", graceful.NewListener(newQueueListener()))
	if _, err := g.Start(context.Background()); err == nil {
		t.Error("a Listener served by itself")
	}
}
