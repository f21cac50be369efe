// Command kubernetes is a service for a cluster: with probes, a shutdown that
// waits until no node sends new connections, and manifests.
//
//	docker build -f examples/kubernetes/Dockerfile -t registry.example/hello:1 .
//	kubectl apply -f examples/kubernetes
//
// docs/deploying/kubernetes.md says why the settings are what they are.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/seed-121bbccf/graceful"
)

func main() {
	srv, err := newServer(os.Args[1:])
	if err != nil {
		os.Exit(2) // the flag package has said why
	}
	go func() {
		fillCaches()
		srv.Health.SetReady(true)
	}()
	if err := srv.ListenAndServe(); err != nil {
		log.Fatal(err)
	}
}

// newServer returns the service for the arguments args.
func newServer(args []string) (*graceful.Server, error) {
	flags := flag.NewFlagSet("hello", flag.ContinueOnError)
	addr := flags.String("addr", ":8080", "address to serve on")
	delay := flags.Duration("delay", 5*time.Second, "how long to serve on after SIGTERM, until no node sends new connections")
	timeout := flags.Duration("timeout", 20*time.Second, "how long requests in progress may take after that")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}

	health := &graceful.Health{
		WaitForReady: true,
		CheckChanged: func(name string, err error) { log.Printf("check %s: %v", name, err) },
	}
	// All replicas share the database. If this check failed readiness, all of them
	// would leave the Service at the same time.
	health.Add(graceful.HealthCheck{Name: "database", Check: pingDatabase, WarnOnly: true, MaxAge: 5 * time.Second})

	mux := http.NewServeMux()
	srv := &graceful.Server{
		Server: &http.Server{
			Addr:              *addr,
			Handler:           mux,
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       2 * time.Minute, // longer than proxies keep idle connections
		},
		ShutdownDelay: *delay,
		Timeout:       *timeout,
		Health:        health,
		Logger:        log.Default(),
	}
	mux.HandleFunc("GET /{$}", hello)
	mux.Handle("GET /readyz", srv.ReadyHandler())
	mux.Handle("GET /livez", health.LiveHandler())
	return srv, nil
}

// hello works for as long as it is asked to, or until it is killed.
func hello(w http.ResponseWriter, r *http.Request) {
	work, _ := time.ParseDuration(r.FormValue("work"))
	select {
	case <-time.After(work):
		fmt.Fprintln(w, "Hello.")
	case <-r.Context().Done():
		http.Error(w, "out of time", http.StatusServiceUnavailable)
	}
}

// fillCaches stands for what a service does before it can answer.
func fillCaches() {}

// pingDatabase stands for a check such as (*sql.DB).PingContext.
func pingDatabase(context.Context) error { return nil }
