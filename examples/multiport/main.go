// Command multiport counts, over HTTP and over the Redis protocol, and writes
// down what it has counted: two ports and two workers in one process, which
// one signal ends in the right order and within one budget of time.
//
//	go run ./examples/multiport
//	curl -X POST localhost:8080/visits
//	redis-cli -p 6380 INCR visits
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/seed-121bbccf/graceful"
)

func main() {
	httpAddr := flag.String("http", "localhost:8080", "the address to serve HTTP on")
	redisAddr := flag.String("redis", "localhost:6380", "the address to serve the Redis protocol on")
	file := flag.String("journal", os.DevNull, "the file to write changes to")
	timeout := flag.Duration("timeout", 20*time.Second, "the time for the whole shutdown")
	delay := flag.Duration("delay", 0, "how long to serve on after a signal, so that load balancers notice")
	flag.Parse()
	log.SetFlags(0)

	journal, err := os.Create(*file)
	if err != nil {
		log.Fatal(err)
	}
	out := bufio.NewWriter(journal)
	s := newStore()
	g := &graceful.Group{
		Budget:        *timeout,
		ShutdownDelay: *delay,
		Logger:        log.New(os.Stderr, "", 0),
	}

	web := &graceful.Server{Server: &http.Server{Addr: *httpAddr, Handler: handler(s, g.ReadyHandler())}}
	g.Add("http", web)

	below, err := graceful.Listen("tcp", *redisAddr)
	if err != nil {
		log.Fatal(err)
	}
	redis := graceful.NewListener(below)
	g.Add("redis", redis, func() error { return serveRedis(redis, s) })

	// Both servers have drained when the workers are told to end, so that
	// what is in the queue then is all there will be.
	pool := &graceful.Pool[string]{
		Queue: s.changes,
		Work: func(_ context.Context, change string) error {
			_, err := fmt.Fprintln(out, change)
			return err
		},
	}
	g.Go("journal", pool.Run)
	g.Go("summary", func(ctx context.Context) error {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				log.Printf("%d keys", s.len())
			case <-ctx.Done():
				return nil
			}
		}
	})
	g.Defer("journal's file", func(context.Context) error {
		if err := out.Flush(); err != nil {
			return err
		}
		return journal.Close()
	})

	if _, err := g.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	log.Printf("HTTP on %s, Redis on %s", web.Addrs()[0], redis.Addr())
	err = g.Wait()
	fmt.Print(g.Report())
	if err != nil {
		log.Fatal(err)
	}
}

// handler serves GET and POST on /key: a POST increments.
func handler(s *store, ready http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /ready", ready)
	mux.HandleFunc("GET /{key}", func(w http.ResponseWriter, r *http.Request) {
		v, ok := s.get(r.PathValue("key"))
		if !ok {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, v+"\n")
	})
	mux.HandleFunc("POST /{key}", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.incr(r.PathValue("key"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, n)
	})
	return mux
}
