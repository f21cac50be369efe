package graceful_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
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
		c := newLineClient(ql.dial())
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
				c := newLineClient(ql.dial())
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
				if r.Idle != 1 || r.Finished+r.GaveUp+len(r.Killed) != 0 {
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
				c := newLineClient(ql.dial())
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
		c := newLineClient(ql.dial())
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
		c := newLineClient(ql.dial())
		c.say(t, "wait 100ms\n")
		time.Sleep(50 * time.Millisecond)
		silent := newLineClient(ql.dial())
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
		half := newLineClient(ql.dial())
		half.say(t, "hal")
		long := newLineClient(ql.dial())
		long.say(t, "wait 10s\n")
		quiet := newLineClient(ql.dial())
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
		if r.Idle != 1 || r.KillReason != "timeout, 3s after draining began" || log.Len() == 0 {
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
		c := newLineClient(ql.dial())
		c.say(t, "wait 10s\n")
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := l.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("Shutdown: %v", err)
		}
		wantTime(t, "the kill", time.Since(s.began), 2*time.Second)
		c.end(t)
		// The same shutdown, for whoever comes later.
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
		<-l.Draining()
		time.Sleep(2 * time.Second)
		if l.Phase() != graceful.PhaseDelaying {
			t.Error(l.Phase())
		}
		// What used to happen: an error of Accept in this phase, as by a want
		// of descriptors, was taken for the end of accepting.
		retry := errors.New("no more descriptors")
		ql.set(func() { ql.fail = retry })
		<-s.done
		if s.err != retry {
			t.Errorf("Accept: %v", s.err)
		}
		ql.set(func() { ql.fail = nil })
		s.start(l)
		c := newLineClient(ql.dial())
		c.ask(t, "x")
		c.began = time.Now()
		wantTime(t, "the connection's end", c.end(t), time.Second)
		wantTime(t, "the shutdown's", <-stopped, 3*time.Second+queueTried)
		s.wait()
	})
}
