// Hello is the smallest server that stops without losing a request. Start it,
// ask it something that takes a while, and press Ctrl-C meanwhile:
//
//	go run ./examples/hello
//	curl 'http://127.0.0.1:8080/?work=5s'
//
// The log on standard error shows the drain, phase by phase. A second Ctrl-C
// ends it at once.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/seed-121bbccf/graceful"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to serve on")
	delay := flag.Duration("delay", 0, "how long to serve on after the signal, so that a load balancer notices")
	flag.Parse()

	mux := http.NewServeMux()
	srv := &graceful.Server{
		Server:        &http.Server{Addr: *addr, Handler: mux},
		Timeout:       10 * time.Second,
		ShutdownDelay: *delay,
		Logger:        log.New(os.Stderr, "", log.Ltime|log.Lmicroseconds),
	}
	mux.HandleFunc("/", hello)
	mux.Handle("/readyz", srv.ReadyHandler())

	fmt.Printf("http://%s answers, http://%s/?work=5s takes its time; Ctrl-C to stop\n", *addr, *addr)
	if err := srv.ListenAndServe(); err != nil {
		log.Fatal(err)
	}
}

// hello works for as long as it is asked to, or until it is killed.
func hello(w http.ResponseWriter, r *http.Request) {
	work, _ := time.ParseDuration(r.FormValue("work"))
	select {
	case <-time.After(work):
		fmt.Fprintf(w, "Hello, after %v of work.\n", work)
	case <-r.Context().Done():
		log.Printf("gave up on %s", r.URL)
	}
}
