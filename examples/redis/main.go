// Command redis serves a few commands of the Redis protocol, with
// github.com/tidwall/redcon on a graceful.Listener: SIGTERM cuts no client off
// in the middle of a command.
//
//	go run . -addr 127.0.0.1:6380
//	redis-cli -p 6380 INCR visits
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"time"

	"github.com/seed-121bbccf/graceful"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:6380", "the address to listen on")
	timeout := flag.Duration("timeout", 20*time.Second, "how long commands in progress are waited for")
	delay := flag.Duration("delay", 0, "how long to serve on after a signal, so that a load balancer notices")
	bare := flag.Bool("bare", false, "serve as most do, for contrast: SIGTERM ends the process")
	flag.Parse()
	log.SetFlags(0)
	s := newServer(0)
	if *bare {
		l, err := net.Listen("tcp", *addr)
		if err != nil {
			log.Fatal(err)
		}
		log.Printf("listening on %s", l.Addr())
		log.Fatal(s.serve(l))
	}
	if err := run(s, *addr, *timeout, *delay); err != nil {
		log.Fatal(err)
	}
}

func run(s *server, addr string, timeout, delay time.Duration) error {
	// graceful.Listen opens a socket that no other process shares. It can be closed
	// without losing the clients that have just connected.
	below, err := graceful.Listen("tcp", addr)
	if err != nil {
		return err
	}
	l := graceful.NewListener(below)
	l.Timeout = timeout
	l.ShutdownDelay = delay
	l.Logger = log.New(os.Stderr, "", 0)
	log.Printf("listening on %s", l.Addr())

	// Returns when the shutdown is over, because Accept returns no error before.
	return s.serve(l)
}
