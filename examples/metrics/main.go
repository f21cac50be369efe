// Command metrics serves on one port and is observed on another. Prometheus
// scrapes /metrics until the shutdown is over and once more after that. So it
// stores how long the shutdown took and which requests it cut off.
//
//	go run ./examples/metrics
//	curl 'http://127.0.0.1:8080/?work=5s' & curl http://127.0.0.1:9090/metrics
//
// /debug/vars has the same as JSON, by package expvar of the standard library.
package main

import (
	"context"
	"errors"
	"expvar"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed-121bbccf/graceful"
)

func main() {
	p, err := start(os.Args[1:])
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%s answers, http://%s/metrics observes", p.srv.Addrs()[0], p.observer.Addrs()[0])
	if err := p.group.Wait(); err != nil {
		log.Fatal(err)
	}
}

// A program is a server that is observed.
type program struct {
	group    *graceful.Group
	srv      *graceful.Server
	observer *graceful.Server
	scrapes  *scrapes
}

func start(args []string) (*program, error) {
	flags := flag.NewFlagSet("metrics", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to serve on")
	observe := flags.String("observe", "127.0.0.1:9090", "address to be scraped on")
	timeout := flags.Duration("timeout", 10*time.Second, "how long requests in progress are waited for")
	last := flags.Duration("last-scrape", 15*time.Second, "how long the last scrape is waited for: Prometheus' scrape_interval")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}

	inFlight := new(graceful.InFlight)
	p := &program{
		group: &graceful.Group{Logger: log.Default()},
		srv: &graceful.Server{
			Server:  &http.Server{Addr: *addr, Handler: inFlight.Handler(http.HandlerFunc(work))},
			Timeout: *timeout,
			Logger:  log.Default(),
		},
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(&Collector{Servers: map[string]Server{"web": p.srv}, InFlight: inFlight})
	p.scrapes = &scrapes{
		next:  promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		final: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", p.scrapes)
	mux.Handle("/debug/vars", variables(p.srv))
	p.observer = &graceful.Server{
		Server:    &http.Server{Addr: *observe, Handler: mux},
		IdleGrace: -1, // Prometheus keeps its connection and scrapes again
	}

	p.group.Add("web", p.srv)
	p.group.Add("metrics", p.observer)
	p.group.StopLast("metrics")
	p.group.Defer("last scrape", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, *last)
		defer cancel()
		return p.scrapes.lastOne(ctx)
	})
	if _, err := p.group.Start(context.Background()); err != nil {
		return nil, err
	}
	return p, nil
}

// scrapes notices the first scrape of the final values.
type scrapes struct {
	next  http.Handler
	final chan struct{} // closed when such a scrape was answered

	mu     sync.Mutex // guards ending, seen
	ending bool       // what is scraped now is final
	seen   bool
}

// lastOne waits for a scrape of what is final now.
func (s *scrapes) lastOne(ctx context.Context) error {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	select {
	case <-s.final:
		return nil
	case <-ctx.Done():
		return errors.New("the last scrape did not come in time")
	}
}

func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	final := s.ending && !s.seen
	s.seen = s.seen || final
	s.mu.Unlock()
	s.next.ServeHTTP(w, r)
	if final {
		close(s.final)
	}
}

// variables is the same without a dependency. In a program of one server
// expvar.Publish("graceful", ...) and importing expvar is all: its handler is on
// http.DefaultServeMux then.
func variables(srv *graceful.Server) http.Handler {
	stats := expvar.Func(func() any { return srv.Stats() })
	report := expvar.Func(func() any { return srv.Report() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"stats\": %s, \"report\": %s}\n", stats, report)
	})
}

// work works for as long as it is asked to, or until it is killed.
func work(w http.ResponseWriter, r *http.Request) {
	d, _ := time.ParseDuration(r.FormValue("work"))
	select {
	case <-time.After(d):
		fmt.Fprintln(w, "done")
	case <-r.Context().Done():
		http.Error(w, "out of time", http.StatusServiceUnavailable)
	}
}
