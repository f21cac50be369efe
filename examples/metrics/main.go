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
	"expvar"
	"flag"
	"fmt"
	"log"
	"net"
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
	log.Printf("http://%s answers, http://%s/metrics observes", p.srv.Addrs()[0], p.observer.Addr())
	p.wait()
}

// A program is a server that is observed.
type program struct {
	srv       *graceful.Server
	stopped   <-chan struct{} // closed when srv's shutdown is over
	observer  net.Listener
	observing *http.Server
	scrapes   *scrapes
	last      time.Duration // how long the last scrape is waited for
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
		srv: &graceful.Server{
			Server:  &http.Server{Addr: *addr, Handler: inFlight.Handler(http.HandlerFunc(work))},
			Timeout: *timeout,
			Logger:  log.Default(),
		},
		last: *last,
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

	// The observer is bound first and closed last. A plain http.Server is enough:
	// its one client, Prometheus, scrapes again.
	var err error
	if p.observer, err = net.Listen("tcp", *observe); err != nil {
		return nil, err
	}
	p.observing = &http.Server{Handler: mux}
	if p.stopped, err = p.srv.Start(context.Background()); err != nil {
		p.observer.Close()
		return nil, err
	}
	go p.observing.Serve(p.observer) // returns http.ErrServerClosed
	return p, nil
}

// wait returns when the server has stopped and that has been scraped.
func (p *program) wait() {
	<-p.stopped
	p.scrapes.lastOne()
	select {
	case <-p.scrapes.final:
	case <-time.After(p.last):
		log.Printf("the last scrape did not come within %v", p.last)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	p.observing.Shutdown(ctx) // the last scrape's answer is waited for
}

// scrapes notices the first scrape of the final values.
type scrapes struct {
	next  http.Handler
	final chan struct{} // closed when such a scrape was answered

	mu     sync.Mutex // guards ending, seen
	ending bool       // what is scraped now is final
	seen   bool
}

func (s *scrapes) lastOne() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
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
