package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/seed-121bbccf/graceful"
)

func run(t *testing.T, args ...string) *program {
	t.Helper()
	p, err := start(append([]string{"-addr", "127.0.0.1:0", "-observe", "127.0.0.1:0"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.srv.Close()
		p.observer.Close()
		p.group.Wait()
	})
	return p
}

func (p *program) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + p.observer.Addrs()[0].String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, err)
	}
	return string(b)
}

// awaits scrapes until all of the lines are there.
func (p *program) awaits(t *testing.T, lines ...string) {
	t.Helper()
	began := time.Now()
	for {
		got, missing := p.get(t, "/metrics"), ""
		for _, line := range lines {
			if !strings.Contains(got, line+"\n") {
				missing = line
			}
		}
		switch {
		case missing == "":
			return
		case time.Since(began) > 20*time.Second:
			t.Fatalf("%s is missing in:\n%s", missing, got)
		}
		time.Sleep(5 * time.Millisecond) // nothing tells of a scrape's turn
	}
}

// The metrics follow the server to its end, and the process outlives its last
// scrape.
func TestScrapedUntilTheEnd(t *testing.T) {
	p := run(t, "-timeout", "300ms", "-last-scrape", "1m")
	before := p.get(t, "/metrics")
	if !strings.Contains(before, `graceful_phase{phase="serving",server="web"} 1`) || strings.Contains(before, "graceful_shutdown") {
		t.Error(before)
	}
	go func() {
		resp, err := http.Get("http://" + p.srv.Addrs()[0].String() + "/?work=1h")
		if err == nil {
			resp.Body.Close()
		}
	}()
	p.awaits(t, `graceful_connections{server="web",state="active"} 1`, `graceful_requests_in_flight{kind="short"} 1`)
	p.group.Stop("test")
	p.awaits(t, `graceful_phase{phase="serving",server="web"} 0`)
	over := make(chan struct{})
	go func() {
		p.group.Wait()
		close(over)
	}()
	p.awaits(t,
		`graceful_phase{phase="stopped",server="web"} 1`,
		`graceful_shutdown_connections_ended{how="killed",server="web"} 1`,
		`graceful_shutdown_killed_requests{server="web"} 1`,
		`graceful_connections{server="web",state="active"} 0`,
	)
	r := p.srv.Report()
	if r.Drain < 300*time.Millisecond {
		t.Errorf("drain %v", r.Drain)
	}
	// That may have been a scrape before the wait for the last one began.
	for {
		select {
		case <-over:
			return
		default:
		}
		if resp, err := http.Get("http://" + p.observer.Addrs()[0].String() + "/metrics"); err == nil {
			resp.Body.Close()
		}
	}
}

// Without a scrape the process ends as well, and says so.
func TestNoLastScrape(t *testing.T) {
	p := run(t, "-last-scrape", "10ms")
	p.group.Stop("test")
	if err := p.group.Wait(); err == nil || !strings.Contains(err.Error(), "last scrape") {
		t.Error(err)
	}
}

func TestExpvar(t *testing.T) {
	p := run(t, "-last-scrape", "1ms")
	var vars struct {
		Stats  graceful.Stats
		Report graceful.Report
	}
	if err := json.Unmarshal([]byte(p.get(t, "/debug/vars")), &vars); err != nil {
		t.Fatal(err)
	}
	if vars.Stats.Phase != graceful.PhaseServing {
		t.Errorf("%+v", vars)
	}
}

// Prometheus' own rules for names and help, and that no metric is told twice.
func TestLint(t *testing.T) {
	p := run(t, "-last-scrape", "1ms")
	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := graceful.NewListener(below)
	defer l.Close()
	c := &Collector{Servers: map[string]Server{"web": p.srv, "redis": l}, InFlight: new(graceful.InFlight)}
	p.srv.Stop(0)
	<-p.srv.StopChan()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
