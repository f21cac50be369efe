package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-121bbccf/graceful"
)

// A Collector exports what servers are doing and how their shutdowns went. It
// asks them when it is scraped, and keeps nothing itself.
type Collector struct {
	// Servers has the servers that are exported, by the value of their label
	// "server".
	Servers map[string]Server

	// InFlight is exported too, if it is not nil.
	InFlight *graceful.InFlight
}

// A Server is a *graceful.Server or a *graceful.Listener.
type Server interface {
	Stats() graceful.Stats
	Report() graceful.Report
}

var (
	phase = prometheus.NewDesc("graceful_phase",
		"1 for the phase that the server is in, 0 for the others.", []string{"server", "phase"}, nil)
	connections = prometheus.NewDesc("graceful_connections",
		"Open connections, by what they are doing.", []string{"server", "state"}, nil)
	streams = prometheus.NewDesc("graceful_http2_streams",
		"HTTP/2 requests in progress.", []string{"server"}, nil)
	shutdown = prometheus.NewDesc("graceful_shutdown_seconds",
		"How long the phases of the shutdown have taken.", []string{"server", "phase"}, nil)
	ended = prometheus.NewDesc("graceful_shutdown_connections_ended",
		"How connections ended since draining began.", []string{"server", "how"}, nil)
	killedRequests = prometheus.NewDesc("graceful_shutdown_killed_requests",
		"Requests that were in progress on killed connections.", []string{"server"}, nil)
	requests = prometheus.NewDesc("graceful_requests_in_flight",
		"Requests in progress.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{phase, connections, streams, shutdown, ended, killedRequests, requests} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name, srv := range c.Servers {
		s, r := srv.Stats(), srv.Report()
		for p := graceful.PhaseServing; p <= graceful.PhaseStopped; p++ {
			var is float64
			if p == s.Phase {
				is = 1
			}
			gauge(phase, is, name, p.String())
		}
		gauge(connections, float64(s.New), name, "new")
		gauge(connections, float64(s.Receiving), name, "receiving")
		gauge(connections, float64(s.Active), name, "active")
		gauge(connections, float64(s.Idle), name, "idle")
		gauge(connections, float64(s.Hijacked), name, "hijacked")
		gauge(streams, float64(s.Streams), name)
		if r.Reason == "" {
			continue // no shutdown has begun
		}
		gauge(shutdown, r.Delay.Seconds(), name, "delay")
		gauge(shutdown, r.Drain.Seconds(), name, "drain")
		gauge(shutdown, r.Kill.Seconds(), name, "kill")
		gauge(ended, float64(r.Finished), name, "finished")
		gauge(ended, float64(r.IdleClosed), name, "idle_closed")
		gauge(ended, float64(r.IncompleteClosed), name, "given_up")
		gauge(ended, float64(r.HijackedLeft), name, "hijacked_left")
		gauge(ended, float64(len(r.Killed)), name, "killed")
		lost := 0
		for _, k := range r.Killed {
			lost += len(k.Requests)
		}
		gauge(killedRequests, float64(lost), name)
	}
	if c.InFlight != nil {
		gauge(requests, float64(c.InFlight.Count()), "short")
		gauge(requests, float64(c.InFlight.LongRunningCount()), "long_running")
	}
}
