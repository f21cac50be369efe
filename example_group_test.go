package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// A web server hands letters to a pool of workers; both use a database. At the
// end the server drains first, then the pool sends what is still in the queue,
// then the database is closed.
func ExampleGroup() {
	queue := make(chan string, 100)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queue <- r.FormValue("to")
		io.WriteString(w, "accepted")
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	mail := &graceful.Pool[string]{
		N:     2,
		Queue: queue,
		Work: func(ctx context.Context, to string) error {
			fmt.Println("sent to", to)
			return nil
		},
	}

	g := &graceful.Group{Timeout: 25 * time.Second}
	g.Server("web", func() error { return srv.Serve(l) }, graceful.ShutdownThenClose(srv))
	g.Go("mail", mail.Run)
	g.Defer("database", func(ctx context.Context) error {
		fmt.Println("database closed")
		return nil
	})

	// In a program this is the signal's doing.
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/?to=Ada")
		if err == nil {
			resp.Body.Close()
		}
		http.DefaultClient.CloseIdleConnections()
		stop()
	}()

	if err := g.Run(ctx); err != nil {
		fmt.Println(err)
	}
	for _, e := range g.Report().Entries {
		fmt.Println(e.Kind, e.Name, e.Outcome)
	}
	// Output:
	// sent to Ada
	// database closed
	// server web done
	// worker mail done
	// cleanup database done
}

// A Server of this package in a group leaves signals, the delay and the budget
// to it. Its address is bound when Start returns.
func ExampleGroup_Add() {
	srv := &graceful.Server{Server: &http.Server{
		Addr: "127.0.0.1:0",
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "hello")
		}),
	}}
	g := &graceful.Group{Timeout: 25 * time.Second}
	g.Add("web", srv)

	stopped, err := g.Start(context.Background())
	if err != nil {
		fmt.Println(err) // address in use
		return
	}
	resp, err := http.Get("http://" + srv.Addrs()[0].String())
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	fmt.Printf("%s, ready: %v\n", body, g.Ready())

	g.Stop("the example is over") // in a program: a signal
	<-stopped
	fmt.Println(g.Wait(), g.Report().Reason)
	// Output:
	// hello, ready: true
	// <nil> the example is over
}

// Workers that all return end the group, as they do with errgroup; the first
// error ends the others.
func ExampleGroup_Go() {
	g := &graceful.Group{NoSignalHandling: true}
	g.Go("reader", func(ctx context.Context) error {
		return errors.New("disk full")
	})
	g.Go("ticker", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err() // no error: it was told to
	})
	fmt.Println(g.Run(context.Background()))
	// Output: reader: disk full
}

// A server of another kind needs two functions; this one has a graceful stop
// that knows no context, like *grpc.Server.
func ExampleStopThenKill() {
	var s exampleServer // s := grpc.NewServer()
	s.quit = make(chan struct{})

	g := &graceful.Group{Timeout: 10 * time.Second}
	g.Server("grpc", s.Serve, graceful.StopThenKill(s.GracefulStop, s.Stop))

	ctx, stop := context.WithCancel(context.Background())
	stop()
	fmt.Println(g.Run(ctx))
	// Output: <nil>
}

type exampleServer struct {
	once sync.Once
	quit chan struct{}
}

func (s *exampleServer) Serve() error  { <-s.quit; return nil }
func (s *exampleServer) GracefulStop() { s.Stop() }
func (s *exampleServer) Stop()         { s.once.Do(func() { close(s.quit) }) }

// A worker waits for the next message with its own context, and works on it
// with one that the shutdown does not end.
func ExampleFinishing() {
	messages := make(chan string, 1)
	receive := func(ctx context.Context) (string, error) {
		select {
		case m := <-messages:
			return m, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	g := &graceful.Group{Timeout: 10 * time.Second, NoSignalHandling: true}
	got := make(chan struct{})
	g.Go("consumer", func(ctx context.Context) error {
		for {
			m, err := receive(ctx)
			if err != nil {
				return err
			}
			close(got)
			<-ctx.Done() // the shutdown comes while it holds the message
			work := graceful.Finishing(ctx)
			fmt.Println(m, "in hand:", ctx.Err(), "/", work.Err())
		}
	})
	messages <- "letter"
	ctx, stop := context.WithCancel(context.Background())
	go func() { <-got; stop() }()
	fmt.Println(g.Run(ctx))
	// Output:
	// letter in hand: context canceled / <nil>
	// <nil>
}

// A pool over a function that fetches, as the clients of most queues have one.
func ExamplePool() {
	list := []string{"a", "b", "c"}
	var mu sync.Mutex
	p := &graceful.Pool[string]{
		N: 2,
		Fetch: func(ctx context.Context) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			if len(list) == 0 {
				return "", io.EOF
			}
			m := list[0]
			list = list[1:]
			return m, nil
		},
		Work: func(ctx context.Context, m string) error {
			fmt.Println("worked on", m)
			return nil
		},
	}
	fmt.Println(p.Run(context.Background()))
	// Unordered output:
	// worked on a
	// worked on b
	// worked on c
	// <nil>
}
