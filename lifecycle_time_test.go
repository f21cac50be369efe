package graceful_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-121bbccf/graceful"
)

const ms = time.Millisecond

// sleeper sleeps as long as the path says, whatever happens meanwhile. With
// "?begun" in the query the answer's header goes out before.
var sleeper = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Path[1:])
	if err != nil {
		panic(err)
	}
	if r.URL.Query().Has("begun") {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
	}
	time.Sleep(d)
	io.WriteString(w, "done")
})

// outlast waits until every sleeper has woken up: a bubble must not end with
// somebody in it.
func outlast() { time.Sleep(2 * time.Hour) }

// ends is how the connections of a shutdown ended.
type ends struct {
	Late, Finished, Idle, GaveUp, Left, Killed int
}

func endsOf(r graceful.Report) ends {
	return ends{r.AcceptedLate, r.Finished, r.IdleClosed, r.IncompleteClosed, r.HijackedLeft, len(r.Killed)}
}

type times struct{ timeout, grace, delay time.Duration }

// TestDrainTime: each server is stopped at a moment at which one client has
// done something, and is over at exactly the time that follows from it. The
// quiet window is 500 ms.
func TestDrainTime(t *testing.T) {
	const header = "GET /0s HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, tc := range []struct {
		name   string
		config times
		before func(c *client) // ends at the stop
		after  func(c *client) // from the stop on
		want   time.Duration
		ends   ends
	}{
		{name: "nobody", want: 0},
		{
			name:   "a handler that ends after 10 s",
			before: func(c *client) { c.ask("/10s") },
			after:  func(c *client) { c.expect("done") },
			want:   10 * time.Second,
			ends:   ends{Finished: 1},
		}, {
			name:   "a handler that ends after 10 s, within Timeout",
			config: times{timeout: 10*time.Second + 1},
			before: func(c *client) { c.ask("/10s") },
			after:  func(c *client) { c.expect("done") },
			want:   10 * time.Second,
			ends:   ends{Finished: 1},
		}, {
			// The client was not told that this is the last answer, so its
			// next request may be on its way.
			name:   "a handler that began to answer before the stop",
			before: func(c *client) { c.ask("/10s?begun") },
			after:  func(c *client) { c.expect("done") },
			want:   10*time.Second + 500*ms,
			ends:   ends{Idle: 1},
		}, {
			name:   "a handler without end",
			before: func(c *client) { c.ask("/20m") },
			after:  func(c *client) { c.expect("done") },
			want:   20 * time.Minute,
			ends:   ends{Finished: 1},
		}, {
			name:   "a handler that outlasts Timeout",
			config: times{timeout: 3 * time.Second},
			before: func(c *client) { c.ask("/1h") },
			want:   3 * time.Second,
			ends:   ends{Killed: 1},
		}, {
			name:   "half a header, Timeout",
			config: times{timeout: 30 * time.Second},
			before: func(c *client) { c.send(header[:10]) },
			want:   30 * time.Second,
			ends:   ends{Killed: 1},
		}, {
			name:   "half a header on a kept-alive connection, Timeout",
			config: times{timeout: 30 * time.Second},
			before: func(c *client) { c.get("/0s", "done"); c.send(header[:10]) },
			want:   30 * time.Second,
			ends:   ends{Killed: 1},
		}, {
			name:   "half a header, no Timeout",
			before: func(c *client) { c.send(header[:10]); time.Sleep(time.Minute) },
			want:   5 * time.Second,
			ends:   ends{GaveUp: 1},
		}, {
			name:   "half a header, no Timeout, and the rest just in time",
			before: func(c *client) { c.send(header[:10]) },
			after: func(c *client) {
				time.Sleep(5*time.Second - 1)
				c.send(header[10:])
				if !c.expect("done").close {
					t.Error("the last answer doesn't say close")
				}
			},
			want: 5*time.Second - 1,
			ends: ends{Finished: 1},
		}, {
			name:   "silent, just connected",
			before: func(c *client) {},
			want:   500 * ms,
			ends:   ends{Idle: 1},
		}, {
			name:   "silent for 200 ms",
			before: func(c *client) { time.Sleep(200 * ms) },
			want:   300 * ms,
			ends:   ends{Idle: 1},
		}, {
			name:   "silent for a minute",
			before: func(c *client) { time.Sleep(time.Minute) },
			want:   0,
			ends:   ends{Idle: 1},
		}, {
			name:   "idle for 100 ms",
			before: func(c *client) { c.get("/1s", "done"); time.Sleep(100 * ms) },
			want:   400 * ms,
			ends:   ends{Idle: 1},
		}, {
			name:   "idle for a minute",
			before: func(c *client) { c.get("/1s", "done"); time.Sleep(time.Minute) },
			want:   0,
			ends:   ends{Idle: 1},
		}, {
			name:   "idle for 1 s of 3 s",
			config: times{grace: 3 * time.Second},
			before: func(c *client) { c.get("/1s", "done"); time.Sleep(time.Second) },
			want:   2 * time.Second,
			ends:   ends{Idle: 1},
		}, {
			name:   "idle, no quiet window",
			config: times{grace: -1},
			before: func(c *client) { c.get("/1s", "done") },
			want:   0,
			ends:   ends{Idle: 1},
		}, {
			name:   "a request at the end of the quiet window",
			before: func(c *client) { c.get("/0s", "done") },
			after: func(c *client) {
				time.Sleep(500*ms - 1)
				if !c.get("/2s", "done").close {
					t.Error("the last answer doesn't say close")
				}
			},
			want: 500*ms - 1 + 2*time.Second,
			ends: ends{Finished: 1},
		}, {
			name:   "the client leaves",
			before: func(c *client) { c.get("/0s", "done") },
			after:  func(c *client) { time.Sleep(123 * ms); c.Close() },
			want:   123 * ms,
			ends:   ends{Finished: 1},
		}, {
			name:   "ShutdownDelay",
			config: times{delay: 7 * time.Second},
			before: func(c *client) { c.get("/0s", "done") },
			want:   7 * time.Second,
			ends:   ends{Idle: 1},
		}, {
			// Timeout counts from the drain, not from the stop.
			name:   "ShutdownDelay and Timeout",
			config: times{delay: 7 * time.Second, timeout: 2 * time.Second},
			before: func(c *client) { c.ask("/1h") },
			want:   9 * time.Second,
			ends:   ends{Killed: 1},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				defer outlast()
				srv := &graceful.Server{
					Server:        &http.Server{Handler: sleeper},
					Timeout:       tc.config.timeout,
					IdleGrace:     tc.config.grace,
					ShutdownDelay: tc.config.delay,
				}
				s := serve(t, srv, l)
				synctest.Wait()
				var c *client
				if tc.before != nil {
					c = newClient(t, l.dial())
					synctest.Wait()
					tc.before(c)
					synctest.Wait()
				}
				s.stop()
				if tc.after != nil {
					go tc.after(c)
				}
				if got := s.end(); got != tc.want {
					t.Errorf("over after %v, want %v\n%v", got, tc.want, s.Report())
				}
				if diff := cmp.Diff(tc.ends, endsOf(s.Report())); diff != "" {
					t.Errorf("ends (-want +got):\n%s%v", diff, s.Report())
				}
				if c != nil {
					synctest.Wait()
					if err := c.ended(); err != nil && !errors.Is(err, net.ErrClosed) {
						t.Errorf("the client's connection ended with %v", err)
					}
				}
			})
		})
	}
}

// TestStopShortens: Stop can only hurry a drain that is under way.
func TestStopShortens(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stops []time.Duration // one each second
		delay time.Duration
		want  time.Duration
	}{
		{"once", []time.Duration{10 * time.Second}, 0, 10 * time.Second},
		{"shorter", []time.Duration{10 * time.Second, 3 * time.Second}, 0, 4 * time.Second},
		{"longer", []time.Duration{10 * time.Second, time.Minute}, 0, 10 * time.Second},
		{"without end", []time.Duration{10 * time.Second, 0}, 0, 10 * time.Second},
		{"at last an end", []time.Duration{0, 0, time.Second}, 0, 3 * time.Second},
		{"shorter and shorter", []time.Duration{10 * time.Second, 5 * time.Second, 2 * time.Second, 1}, 0, 3*time.Second + 1},
		{"while delaying", []time.Duration{10 * time.Second, 3 * time.Second}, 5 * time.Second, 8 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				defer outlast()
				s := serve(t, &graceful.Server{
					Server:        &http.Server{Handler: sleeper},
					Timeout:       time.Hour,
					ShutdownDelay: tc.delay,
				}, l)
				c := newClient(t, l.dial())
				c.ask("/1h")
				synctest.Wait()
				s.stopAt = time.Now()
				for _, d := range tc.stops {
					s.Stop(d)
					time.Sleep(time.Second)
				}
				if got := s.end(); got != tc.want {
					t.Errorf("over after %v, want %v", got, tc.want)
				}
			})
		})
	}
}

// TestShutdownContext: Shutdown kills when its context ends, at exactly that
// time, and returns the context's error. A concurrent Shutdown with more time
// returns ErrKilled.
func TestShutdownContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}}, l)
		newClient(t, l.dial()).ask("/1h")
		synctest.Wait()

		began := time.Now()
		patient := make(chan error)
		go func() { patient <- s.Shutdown(bg) }()
		ctx, cancel := context.WithTimeout(bg, 1234*ms)
		defer cancel()
		err := s.Shutdown(ctx)
		if took := time.Since(began); took != 1234*ms || err != context.DeadlineExceeded {
			t.Errorf("Shutdown returned %v after %v", err, took)
		}
		if err := <-patient; !errors.Is(err, graceful.ErrKilled) || time.Since(began) != 1234*ms {
			t.Errorf("the patient Shutdown returned %v after %v", err, time.Since(began))
		}
		s.end()
		want := graceful.Report{
			Phase:      graceful.PhaseStopped,
			Reason:     "Shutdown",
			KillReason: "the context of Shutdown: context deadline exceeded",
			Began:      began,
			Drain:      1234 * ms,
			Start:      graceful.Stats{Phase: graceful.PhaseDraining, Active: 1},
			Killed: []graceful.KilledConn{{
				RemoteAddr: "client", State: "active", Age: 1234 * ms, Requests: []string{"GET \"/1h\""},
			}},
		}
		if diff := cmp.Diff(want, s.Report(), cmpopts.IgnoreFields(want, "HTTP2")); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if err := s.Shutdown(bg); !errors.Is(err, graceful.ErrKilled) {
			t.Errorf("Shutdown after the end: %v", err)
		}
		ended, cancel := context.WithCancel(bg)
		cancel()
		if err := s.Shutdown(ended); err != nil && !errors.Is(err, graceful.ErrKilled) && err != context.Canceled {
			t.Errorf("Shutdown after the end with a context that has ended: %v", err)
		}
	})
}

// TestAge: a request is as old as its first byte.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l := newVirtListener()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}}, l)
		c := newClient(t, l.dial())
		io.WriteString(c, "GET /1h HTTP/1.1\r\nHo")
		time.Sleep(time.Second)
		io.WriteString(c, "st: h\r\n\r\n")
		time.Sleep(2 * time.Second)
		s.Close()
		s.end()
		want := []graceful.KilledConn{{RemoteAddr: "client", State: "active", Age: 3 * time.Second, Requests: []string{"GET \"/1h\""}}}
		if diff := cmp.Diff(want, s.Report().Killed); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestShutdownContextEnded: a context that has ended kills at once.
func TestShutdownContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, ShutdownDelay: time.Hour}, l)
		newClient(t, l.dial()).ask("/1h")
		synctest.Wait()
		s.stopAt = time.Now()
		ctx, cancel := context.WithCancelCause(bg)
		cancel(io.ErrNoProgress)
		if err := s.Shutdown(ctx); err != context.Canceled {
			t.Errorf("Shutdown: %v", err)
		}
		if got := s.end(); got != 0 {
			t.Errorf("over after %v", got)
		}
		if got, want := s.Report().KillReason, "the context of Shutdown: "+io.ErrNoProgress.Error(); got != want {
			t.Errorf("killed for %q, want %q", got, want)
		}
	})
}

// TestCloseTime: Close ends all at once, in every phase.
func TestCloseTime(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * time.Second, 12 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := newVirtListener()
			defer outlast()
			s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, ShutdownDelay: 10 * time.Second}, l)
			newClient(t, l.dial()).ask("/1h")
			synctest.Wait()
			s.stopAt = time.Now()
			if after > 0 {
				s.Stop(0)
				time.Sleep(after)
			}
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if got := s.end(); got != after {
				t.Errorf("over after %v, want %v", got, after)
			}
			if r := s.Report(); r.KillReason != "Close" || len(r.Killed) != 1 {
				t.Errorf("after %v: %v", after, r)
			}
		})
	}
}

// TestTick: while it drains the server says once a second what it waits for.
func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: sleeper}, Timeout: 3900 * ms,
			IdleGrace: 1500 * ms, ShutdownDelay: 2 * time.Second,
		}, l)
		newClient(t, l.dial()).ask("/1h")
		newClient(t, l.dial()).ask("/4400ms")
		time.Sleep(time.Second)
		newClient(t, l.dial()).get("/0s", "done")
		s.stop()
		time.Sleep(time.Second)
		newClient(t, l.dial()).send("GET /")
		s.end()
		want := []string{
			"0s " + virtWeakness,
			"1s shutdown initiated: Stop",
			"1s still serving for 2s, so that load balancers notice",
			"3s listener server closed",
			"4s draining: 2 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 2.9s left",
			"5s draining: 1 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 1.9s left",
			"6s draining: 1 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 900ms left",
			"6.9s killing client active for 6.9s: GET \"/1h\"",
			"6.9s killing client receiving for 4.9s",
			"6.9s " + s.Report().String(),
		}
		if diff := cmp.Diff(want, s.lines.all(), cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}
