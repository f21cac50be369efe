package graceful_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-121bbccf/graceful"
)

// A slogLines is a slog.Logger and the records that it has written, as JSON without
// their times. Durations are in seconds.
type slogLines struct {
	*slog.Logger
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func newSlogLines() *slogLines {
	l := new(slogLines)
	l.Logger = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && groups == nil {
				return slog.Attr{}
			}
			if a.Value.Kind() == slog.KindDuration {
				return slog.Float64(a.Key, a.Value.Duration().Seconds())
			}
			return a
		},
	}))
	return l
}

func (l *slogLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *slogLines) want(t *testing.T, lines ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if diff := cmp.Diff(lines, strings.Split(strings.TrimSpace(l.b.String()), "\n")); diff != "" {
		t.Error(diff)
	}
}

// TestSlog: the records of a whole shutdown, with a request that is killed.
func TestSlog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		log := newSlogLines()
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		l := newVirtSocket()
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: h}, ShutdownDelay: 2 * time.Second, Timeout: 1500 * ms, Slog: log.Logger,
			Logger: graceful.DefaultLogger(), // unused
		}, l)
		c := newClient(t, l.dial())
		c.ask("/slow?secret=1")
		synctest.Wait()
		s.stop()
		s.end()
		log.want(t,
			`{"level":"INFO","msg":"shutdown begun","reason":"Stop"}`,
			`{"level":"INFO","msg":"delaying","phase":"delaying","delay":2}`,
			`{"level":"INFO","msg":"listener closed","listener":"server"}`,
			`{"level":"INFO","msg":"draining","phase":"draining","in_flight":1,"idle":0,"new":0,"receiving":0,"hijacked":0,"left":0.5}`,
			`{"level":"WARN","msg":"connection killed","remote_addr":"client","state":"active","age":3.5,"method":"GET","path":"/slow"}`,
			`{"level":"INFO","msg":"shutdown over","phase":"stopped","reason":"Stop","kill_reason":"timeout, 1.5s after draining began",`+
				`"delay":2,"drain":1.5,"kill":0,`+
				`"start":{"phase":"draining","in_flight":1,"idle":0,"new":0,"receiving":0,"hijacked":0},`+
				`"accepted_late":0,"finished":0,"idle_closed":0,"incomplete_closed":0,"hijacked_left":0,"killed":1}`,
		)
	})
}

// TestSlogAcceptFails: a shutdown that nobody asked for is an error, and a listener that
// gives up a part of the promise is a warning.
func TestSlogAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newSlogLines()
		l := failingListener(newVirtListener(), 0, func() error { return errors.New("out of\nluck") })
		s := serve(t, &graceful.Server{Server: new(http.Server), Slog: log.Logger}, l)
		<-s.returned
		log.mu.Lock()
		defer log.mu.Unlock()
		lines := strings.Split(log.b.String(), "\n")
		if !strings.HasPrefix(lines[0], `{"level":"WARN","msg":"listener has no SetDeadline method`) ||
			!strings.HasPrefix(lines[1], `{"level":"ERROR","msg":"shutdown begun","reason":"accepting on server failed: out of"}`) {
			t.Error(lines)
		}
	})
}

// TestSlogGroup: the records of a group, one worker of which is left behind.
func TestSlogGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		log := newSlogLines()
		g := &graceful.Group{Budget: 10 * time.Second, ShutdownDelay: time.Second, NoSignalHandling: true, Slog: log.Logger}
		s := newGroupScript()
		s.server(g, "web", 1500*ms)
		g.Go("mail", func(context.Context) error { time.Sleep(time.Hour); return nil })
		s.cleanup(g, "db", 0)
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.Stop("enough")
		g.Wait()
		lines := []string{
			`{"level":"INFO","msg":"group shutdown begun","reason":"enough"}`,
			`{"level":"INFO","msg":"group delaying","delay":1}`,
			`{"level":"INFO","msg":"group draining","servers":1,"left":7}`,
			`{"level":"INFO","msg":"group waiting","names":["web"],"left":6}`,
			`{"level":"INFO","msg":"group ending workers","workers":1,"left":6.5}`,
		}
		for left := 5.5; left > 0; left-- {
			lines = append(lines, fmt.Sprintf(`{"level":"INFO","msg":"group waiting","names":["mail"],"left":%g}`, left))
		}
		log.want(t, append(lines,
			`{"level":"WARN","msg":"left behind","kind":"worker","name":"mail"}`,
			`{"level":"INFO","msg":"group shutdown over","reason":"enough","took":9,"killed":false,"budget":10,"done":["web","db"],"left_behind":["mail"]}`,
		)...)
	})
}

// TestSlogText: slog's TextHandler quotes what a client chose.
func TestSlogText(t *testing.T) {
	var b strings.Builder
	k := graceful.KilledConn{RemoteAddr: "client", State: "active", Requests: []string{"GET \"/\x1b\""}}
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "conn", k, "stats", graceful.Stats{HTTP2: 1, Phase: graceful.PhaseKilling})
	if got := b.String(); strings.Contains(got, "\x1b") || !strings.Contains(got, "conn.age=0s") || !strings.Contains(got, "stats.phase=killing") {
		t.Errorf("%q", got)
	}
}

func TestPhaseText(t *testing.T) {
	for p := graceful.PhaseServing; p <= graceful.PhaseStopped; p++ {
		text, err := p.MarshalText()
		var back graceful.Phase
		if err != nil || string(text) != p.String() || back.UnmarshalText(text) != nil || back != p {
			t.Errorf("%v: %s, %v, %v", p, text, err, back)
		}
	}
	if _, err := graceful.Phase(5).MarshalText(); err == nil {
		t.Error("5 is a phase")
	}
	p := graceful.PhaseKilling
	if err := p.UnmarshalText([]byte("Draining\n")); fmt.Sprint(err) != `graceful: there is no phase "Draining\n"` || p != graceful.PhaseKilling {
		t.Error(err, p)
	}
}

// TestReportJSON: the names, which programs rely on, and both directions.
func TestReportJSON(t *testing.T) {
	r := graceful.Report{
		Phase: graceful.PhaseStopped, Reason: "Stop", KillReason: "timeout",
		Began: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC),
		Delay: 1500 * ms, Drain: time.Nanosecond, Start: graceful.Stats{Phase: graceful.PhaseDraining, Active: 1},
		AcceptedLate: 1, Finished: 2, IdleClosed: 3, IncompleteClosed: 4, HijackedLeft: 5,
		Killed: []graceful.KilledConn{{RemoteAddr: "1.2.3.4:5", State: "active", Age: 2 * time.Second, Requests: []string{`GET "/"`}}},
		HTTP2:  graceful.HTTP2TwoSteps,
	}
	got, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
 "phase": "stopped",
 "reason": "Stop",
 "kill_reason": "timeout",
 "began": "2026-11-26T12:00:00Z",
 "start": {
  "phase": "draining",
  "new": 0,
  "receiving": 0,
  "in_flight": 1,
  "idle": 0,
  "hijacked": 0,
  "http2_connections": 0,
  "streams": 0
 },
 "accepted_late": 1,
 "finished": 2,
 "idle_closed": 3,
 "incomplete_closed": 4,
 "hijacked_left": 5,
 "killed": [
  {
   "remote_addr": "1.2.3.4:5",
   "state": "active",
   "requests": [
    "GET \"/\""
   ],
   "age_seconds": 2
  }
 ],
 "http2": "GOAWAY in two steps",
 "delay_seconds": 1.5,
 "drain_seconds": 1e-9,
 "kill_seconds": 0
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if text, err := json.Marshal(graceful.Report{}); err != nil || strings.Contains(string(text), "began") ||
		!strings.Contains(string(text), `"killed":[]`) {
		t.Errorf("%s, %v", text, err)
	}
	var back graceful.Report
	if err := json.Unmarshal([]byte(`{"delay_seconds": 1e30}`), &back); err == nil {
		t.Error("1e30 seconds")
	}
	const most = 24 * time.Hour // for longer ones, a float64 does not have each nanosecond
	if err := quick.Check(func(ns int64, phase uint8, reason []rune, n [6]int, d [4]time.Duration, killed []string) bool {
		r := graceful.Report{
			Phase: graceful.Phase(phase % 5), Reason: string(reason), KillReason: string(reason[:len(reason)/2]),
			Began: time.Unix(0, ns).UTC(), Delay: d[0] % most, Drain: d[1] % most, Kill: d[2] % most,
			Start:        graceful.Stats{Phase: graceful.Phase(phase % 4), New: n[5], Streams: n[0]},
			AcceptedLate: n[0], Finished: n[1], IdleClosed: n[2], IncompleteClosed: n[3], HijackedLeft: n[4],
		}
		for range killed {
			r.Killed = append(r.Killed, graceful.KilledConn{RemoteAddr: "x", State: "idle", Age: d[3] % most, Requests: []string{string(reason)}})
		}
		text, err := json.Marshal(r)
		var back graceful.Report
		return err == nil && json.Unmarshal(text, &back) == nil && cmp.Equal(r, back, cmpopts.EquateEmpty())
	}, nil); err != nil {
		t.Error(err)
	}
}

// TestGroupReportJSON: the names, which programs rely on.
func TestGroupReportJSON(t *testing.T) {
	got, err := json.Marshal(graceful.GroupReport{
		Reason: "signal terminated", Began: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), Took: 1500 * ms, Budget: time.Minute,
		Killed: true, Over: true,
		Entries: []graceful.GroupEntry{{Kind: "worker", Name: "mail", Outcome: graceful.GroupLeftBehind, Took: time.Second, Errors: []error{io.EOF}, Detail: "busy"}},
	})
	want := `{"reason":"signal terminated","began":"2026-11-26T12:00:00Z","killed":true,"over":true,"entries":[` +
		`{"kind":"worker","name":"mail","outcome":"left behind","detail":"busy","took_seconds":1,"errors":["EOF"]}],` +
		`"took_seconds":1.5,"budget_seconds":60}`
	if diff := cmp.Diff(want, string(got)); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// TestOnReport: the final report is told before anything says that the shutdown is over,
// and a hook that hangs holds that up for a second.
func TestOnReport(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			defer outlast()
			var mu sync.Mutex // guards told, stopped, at
			var told []string
			var stopped <-chan struct{}
			var at time.Time
			hook := func(what string, over bool) {
				mu.Lock()
				select {
				case <-stopped:
					what += " late"
				default:
				}
				told, at = append(told, fmt.Sprint(what, over)), time.Now()
				mu.Unlock()
				if hangs {
					time.Sleep(time.Hour)
				}
			}
			ends := func(name string, stop func(), on <-chan struct{}) {
				t.Helper()
				mu.Lock()
				stopped, told = on, nil
				mu.Unlock()
				stop()
				<-on
				mu.Lock()
				defer mu.Unlock()
				want := time.Duration(0)
				if hangs {
					want = time.Second
				}
				if took := time.Since(at); took != want || !cmp.Equal(told, []string{name + "true"}) {
					t.Errorf("hangs: %v: %q after %v", hangs, told, took)
				}
			}

			srv := &graceful.Server{Server: new(http.Server), NoSignalHandling: true}
			srv.OnReport = func(r graceful.Report) { hook("server", cmp.Equal(r, srv.Report(), cmpopts.EquateEmpty())) }
			go srv.Serve(newVirtSocket())
			synctest.Wait()
			ends("server", func() { srv.Shutdown(bg) }, srv.StopChan())

			unserved := &graceful.Server{OnReport: func(r graceful.Report) { hook("unserved", r.Phase == graceful.PhaseStopped) }}
			ends("unserved", func() { unserved.Shutdown(bg) }, unserved.StopChan())

			l := newListener(newVirtSocket())
			l.OnReport = func(r graceful.Report) { hook("listener", r.Phase == graceful.PhaseStopped) }
			ends("listener", func() { l.Shutdown(bg) }, l.StopChan())

			g := &graceful.Group{NoSignalHandling: true, OnReport: func(r graceful.GroupReport) { hook("group", r.Over) }}
			on, err := g.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ends("group", func() { g.Stop("") }, on)
		})
	}
}

// TestSlogBlocks: a handler that blocks holds the end of the shutdown up for no longer
// than a log of text that blocks.
func TestSlogBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		srv := &graceful.Server{Server: new(http.Server), NoSignalHandling: true, Slog: slog.New(blockedHandler{release})}
		go srv.Serve(newVirtSocket())
		synctest.Wait()
		began := time.Now()
		srv.Shutdown(bg)
		if took := time.Since(began); took > 250*ms {
			t.Errorf("took %v", took)
		}
		close(release)
	})
}

// TestSlogGroupBlocks: the log of a Group was written by the goroutine that shuts it
// down, which a handler that blocked held up for ever.
func TestSlogGroupBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := &graceful.Group{NoSignalHandling: true, ShutdownDelay: time.Second, Slog: slog.New(blockedHandler{release})}
		s := newGroupScript()
		s.server(g, "web", 0)
		s.cleanup(g, "db", 0)
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.Stop("")
		kill, cancel := context.WithCancel(t.Context())
		cancel()
		g.Shutdown(kill) // which is logged as well
		done := make(chan error)
		go func() { done <- g.Wait() }()
		select {
		case <-done:
			if took := time.Since(s.start); took != 200*ms {
				t.Errorf("took %v", took)
			}
		case <-time.After(time.Hour):
			t.Error("the log blocks the group")
		}
		close(release)
		synctest.Wait()
	})
}

// TestSlogTime: a record that waited has the time of its event.
func TestSlogTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		times := make(chan time.Time, 10)
		srv := &graceful.Server{Server: new(http.Server), NoSignalHandling: true, ShutdownDelay: time.Minute}
		srv.Slog = slog.New(timesHandler{blockedHandler{release}, times})
		go srv.Serve(newVirtSocket())
		synctest.Wait()
		began := time.Now()
		go srv.Shutdown(bg)
		time.Sleep(30 * time.Second)
		close(release)
		<-srv.StopChan()
		for _, want := range []time.Duration{0, 0, time.Minute} { // begun, delaying, listener closed
			if got := (<-times).Sub(began).Round(time.Second); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	})
}

type timesHandler struct {
	blockedHandler
	times chan time.Time
}

func (h timesHandler) Handle(ctx context.Context, r slog.Record) error {
	h.times <- r.Time
	return h.blockedHandler.Handle(ctx, r)
}

// TestOnReportMember: a member's hook is called, and before the group's, also if the
// group does not start.
func TestOnReportMember(t *testing.T) {
	for _, starts := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			defer outlast()
			var told []string // in order, since each hook is waited for
			g := &graceful.Group{NoSignalHandling: true, OnReport: func(r graceful.GroupReport) { told = append(told, "group "+r.Reason) }}
			l := newVirtSocket()
			srv := &graceful.Server{Server: new(http.Server), OnReport: func(r graceful.Report) { told = append(told, "web "+r.Reason) }}
			g.Add("web", srv, func() error { return srv.Serve(l) })
			g.Defer("db", func(context.Context) error { told = append(told, "db"); return nil })
			want := []string{"web Group", "db", "group enough"}
			if !starts {
				g.Add("bad", &graceful.Server{Server: new(http.Server), Timeout: -1})
				want[2] = "group server bad did not start"
			}
			_, err := g.Start(t.Context())
			if (err == nil) != starts {
				t.Fatal(err)
			}
			g.Stop("enough")
			g.Wait()
			if diff := cmp.Diff(want, told); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type blockedHandler struct{ release chan struct{} }

func (h blockedHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h blockedHandler) Handle(context.Context, slog.Record) error {
	<-h.release
	return nil
}
func (h blockedHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h blockedHandler) WithGroup(string) slog.Handler      { return h }
