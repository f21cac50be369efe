package graceful_test

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-121bbccf/graceful"
)

// TestReport plays one connection of each kind and compares the live count, the
// report on the way and at the end, and every line of the log.
func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l := newVirtListener()
		mux := http.NewServeMux()
		mux.Handle("/ws", newUpgrader(false))
		mux.Handle("/", sleeper)
		s := serve(t, &graceful.Server{
			Server:        &http.Server{Handler: mux},
			ShutdownDelay: 2 * time.Second,
			Timeout:       4500 * ms,
		}, l)
		if got, want := s.Report().String(), "no shutdown yet"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		began := time.Now()
		newClient(t, l.dial())                    // says nothing
		newClient(t, l.dial()).get("/0s", "done") // idle
		newClient(t, l.dial()).ask("/1h")         // never ends
		newClient(t, l.dial()).ask("/4900ms")     // ends while draining
		ws := newClient(t, l.dial())
		defer ws.Close()
		ws.upgrade()                                  // left
		newClient(t, l.dial()).send("GET /half HTTP") // never ends
		synctest.Wait()
		stats := graceful.Stats{New: 1, Receiving: 1, Active: 2, Idle: 1, Hijacked: 1}
		if diff := cmp.Diff(stats, s.Stats()); diff != "" {
			t.Errorf("while serving (-want +got):\n%s", diff)
		}
		if got, want := stats.String(), "serving: 2 in flight, 1 idle, 1 new, 1 receiving, 1 hijacked"; got != want || stats.Open() != 6 {
			t.Errorf("got %q, want %q", got, want)
		}
		s.stop()
		time.Sleep(time.Second)
		want := graceful.Report{Phase: graceful.PhaseDelaying, Reason: "Stop", Began: began, Delay: time.Second}
		if diff := cmp.Diff(want, s.Report()); diff != "" {
			t.Errorf("while delaying (-want +got):\n%s", diff)
		}
		time.Sleep(4200 * ms)
		want.Phase, want.Delay, want.Drain = graceful.PhaseDraining, 2*time.Second, 3200*ms
		want.Start = stats
		want.Start.Phase = graceful.PhaseDraining
		want.HijackedLeft, want.IdleClosed, want.Finished = 1, 2, 1 // as of the last tick
		if diff := cmp.Diff(want, s.Report()); diff != "" {
			t.Errorf("while draining (-want +got):\n%s", diff)
		}
		stats = graceful.Stats{Phase: graceful.PhaseDraining, Receiving: 1, Active: 1}
		if diff := cmp.Diff(stats, s.Stats()); diff != "" {
			t.Errorf("while draining (-want +got):\n%s", diff)
		}
		s.end()
		want.Phase, want.Drain = graceful.PhaseStopped, 4500*ms
		want.KillReason = "timeout, 4.5s after draining began"
		want.Killed = []graceful.KilledConn{
			{RemoteAddr: "client", State: "active", Age: 6500 * ms, Requests: []string{"GET \"/1h\""}},
			{RemoteAddr: "client", State: "receiving", Age: 6500 * ms},
		}
		byState := cmpopts.SortSlices(func(a, b graceful.KilledConn) bool { return a.State < b.State })
		if diff := cmp.Diff(want, s.Report(), byState, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("at the end (-want +got):\n%s", diff)
		}
		if got := s.Report().Total(); got != 6500*ms {
			t.Errorf("in total %v", got)
		}
		if got := s.Stats(); got != (graceful.Stats{Phase: graceful.PhaseStopped}) {
			t.Errorf("after the end: %v", got)
		}
		text := s.Report().String()
		for _, line := range []string{
			"stopped after 6.5s (Stop; killed: timeout, 4.5s after draining began): delay 2s, drain 4.5s, kill 0s\n",
			"  at the start: 2 in flight, 1 idle, 1 new, 1 receiving, 1 hijacked\n",
			"  then: 0 accepted late, 1 finished, 2 idle closed, 0 incomplete given up, 1 hijacked left open, 2 killed\n",
			"  killed client active for 6.5s: GET \"/1h\"",
			"  killed client receiving for 6.5s",
		} {
			if !strings.Contains(text, line) {
				t.Errorf("%q is missing in\n%s", line, text)
			}
		}
		lines := []string{
			"0s " + virtWeakness,
			"0s shutdown initiated: Stop",
			"0s still serving for 2s, so that load balancers notice",
			"2s listener server closed",
			"3s draining: 2 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 3.5s left",
			"4s draining: 2 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 2.5s left",
			"5s draining: 1 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 1.5s left",
			"6s draining: 1 in flight, 0 idle, 0 new, 1 receiving, 0 hijacked; 500ms left",
			"6.5s killing client active for 6.5s: GET \"/1h\"",
			"6.5s killing client receiving for 6.5s",
			"6.5s " + text,
		}
		inAnyOrder := cmpopts.SortSlices(strings.Compare)
		if diff := cmp.Diff(lines, s.lines.all(), inAnyOrder); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

// TestReportHTTP2: the requests of a connection with several are all named.
func TestReportHTTP2(t *testing.T) {
	g := newGate()
	s := serveTLS(t, &graceful.Server{Server: &http.Server{Handler: g}, Timeout: 50 * ms}, listenTCP(t), false)
	tr := h2Client(true)
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	base := "https://" + waitAddr(s).String()
	// One connection, before the two ask for it at once.
	warm := make(chan struct{})
	go func() { defer close(warm); get(hc, base+"/warm") }()
	<-g.entered
	failed := make(chan error, 2)
	for _, path := range []string{"/a", "/b"} {
		go func() { failed <- get(hc, base+path) }()
		<-g.entered
	}
	if got := s.Stats(); got.HTTP2 != 1 || got.Streams != 3 || got.Active != 1 {
		t.Errorf("%v", got)
	}
	if got, want := s.Stats().String(), "serving: 1 in flight, 0 idle, 0 new, 0 receiving, 0 hijacked; HTTP/2: 1 connections, 3 streams"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s.stop()
	s.end()
	r := s.Report()
	if len(r.Killed) != 1 {
		t.Fatalf("%v", r)
	}
	inAnyOrder := cmpopts.SortSlices(strings.Compare)
	if diff := cmp.Diff([]string{`GET "/warm"`, `GET "/a"`, `GET "/b"`}, r.Killed[0].Requests, inAnyOrder); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := r.String(); !strings.Contains(got, "of these HTTP/2: 1 connections with 3 streams") {
		t.Errorf("%s", got)
	}
	close(g.open)
	<-warm
	for range 2 {
		if err := <-failed; err == nil {
			t.Error("a killed request was answered")
		}
	}
}

// get makes a request and reads its answer.
func get(hc *http.Client, url string) error {
	resp, err := hc.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestLogger: Logger gets what LogFunc does not take from it.
func TestLogger(t *testing.T) {
	for _, both := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var b bytes.Buffer
			var lines logLines
			srv := &graceful.Server{Logger: log.New(&b, "prefix ", 0)}
			if both {
				srv.LogFunc = lines.logf
			}
			s := serve(t, srv, newVirtListener())
			synctest.Wait()
			s.stop()
			s.end()
			if got := strings.Contains(b.String(), "prefix shutdown initiated: Stop\n"); got == both {
				t.Errorf("LogFunc set: %v; the Logger got %q", both, b.String())
			}
			if got := lines.has("shutdown initiated: Stop"); got != both {
				t.Errorf("LogFunc set: %v; it got %q", both, lines.all())
			}
		})
	}
}

func TestPhaseString(t *testing.T) {
	var got []string
	for p := graceful.PhaseServing; p <= graceful.PhaseStopped+1; p++ {
		got = append(got, p.String())
	}
	got = append(got, graceful.Phase(-1).String())
	want := []string{"serving", "delaying", "draining", "killing", "stopped", "Phase(5)", "Phase(-1)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
