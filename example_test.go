package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// hello answers every request.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "hello")
})

// body returns the body of the response to a request for url, or the error.
func body(url string) string {
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// sigterm is what docker stop, Kubernetes and systemd do.
func sigterm() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(syscall.SIGTERM)
	}
	if err != nil {
		log.Fatal(err) // Windows
	}
}

// Run serves until SIGTERM or SIGINT. It returns when the last request has been
// answered.
func ExampleRun() {
	addr := freeAddr() // in a program: ":8080"
	go func() {
		awaitServer(addr)
		fmt.Println(body("http://" + addr))
		sigterm()
	}()

	graceful.Run(addr, 10*time.Second, hello)
	fmt.Println("stopped")
	// Output:
	// hello
	// stopped
}

// freeAddr returns an address on which nothing listens.
func freeAddr() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// awaitServer returns when a server listens on addr.
func awaitServer(addr string) {
	graceful.Poll(30*time.Second, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Serve does for an existing http.Server what Run does for a handler.
func ExampleServe() {
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		fmt.Println(body("http://" + l.Addr().String()))
		sigterm()
	}()

	server := &http.Server{Handler: hello, ReadHeaderTimeout: 10 * time.Second}
	fmt.Println(graceful.Serve(server, l, 10*time.Second))
	// Output:
	// hello
	// <nil>
}

// A request that is in progress when the shutdown begins is answered.
func ExampleServer() {
	started, finish := make(chan struct{}), make(chan struct{})
	srv := &graceful.Server{
		Server: &http.Server{
			Addr: "127.0.0.1:0",
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(started)
				<-finish
				io.WriteString(w, "done")
			}),
		},
		Timeout: 10 * time.Second,
	}
	stopped, err := srv.Start(context.Background()) // or ListenAndServe, which blocks
	if err != nil {
		log.Fatal(err)
	}
	answer := make(chan string)
	go func() { answer <- body("http://" + srv.Addrs()[0].String()) }()

	<-started
	srv.Stop(10 * time.Second) // or SIGTERM
	close(finish)
	fmt.Println(<-answer)
	<-stopped
	fmt.Println(srv.Phase())
	// Output:
	// done
	// stopped
}

// With ShutdownDelay the server fails its readiness probe first, and serves on
// until the load balancer has noticed.
func ExampleServer_ReadyHandler() {
	mux := http.NewServeMux()
	srv := &graceful.Server{
		Server:        &http.Server{Addr: "127.0.0.1:0", Handler: mux},
		ShutdownDelay: 5 * time.Second,
		Timeout:       20 * time.Second,
	}
	mux.Handle("/", hello)
	mux.Handle("/readyz", srv.ReadyHandler())
	if _, err := srv.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	url := "http://" + srv.Addrs()[0].String()
	ready := func() int {
		resp, err := http.Get(url + "/readyz")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}

	fmt.Println(srv.Phase(), ready(), body(url))
	srv.Stop(20 * time.Second) // or SIGTERM
	for srv.Phase() == graceful.PhaseServing {
		time.Sleep(time.Millisecond) // Stop does not wait
	}
	fmt.Println(srv.Phase(), ready(), body(url))
	srv.Close() // the example does not wait
	// Output:
	// serving 200 hello
	// delaying 503 hello
}

// A request that takes longer than Timeout is cut off. Its context ends with the
// cause ErrKilled, Shutdown returns it, and the report names the request.
func ExampleReport() {
	started, ended := make(chan struct{}), make(chan error)
	srv := &graceful.Server{
		Server: &http.Server{
			Addr: "127.0.0.1:0",
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(started)
				<-r.Context().Done()
				ended <- context.Cause(r.Context())
			}),
		},
		Timeout: 20 * time.Millisecond,
	}
	if _, err := srv.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	go body("http://" + srv.Addrs()[0].String() + "/reports?year=2025")
	<-started

	err := srv.Shutdown(context.Background())
	fmt.Println(errors.Is(err, graceful.ErrKilled), errors.Is(<-ended, graceful.ErrKilled))
	r := srv.Report()
	fmt.Println("began by:", r.Reason)
	fmt.Println("in progress then:", r.Start.Active)
	for _, k := range r.Killed {
		fmt.Println("killed:", k.Requests)
	}
	// Output:
	// true true
	// began by: Shutdown
	// in progress then: 1
	// killed: [GET "/reports?year=2025"]
}

// The log of a shutdown with attributes, and its report in one hook.
func ExampleServer_slog() {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			switch a.Key {
			case slog.TimeKey, "listener", "delay", "drain", "kill":
				return slog.Attr{} // they vary
			}
			return a
		},
	})
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0"},
		Slog:   slog.New(handler),
		OnReport: func(r graceful.Report) {
			fmt.Println("connections killed:", len(r.Killed))
		},
	}
	if _, err := srv.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	srv.Shutdown(context.Background())
	// Unordered output:
	// level=INFO msg="shutdown begun" reason=Shutdown
	// level=INFO msg="listener closed"
	// level=INFO msg="shutdown over" phase=stopped reason=Shutdown start.phase=draining start.in_flight=0 start.idle=0 start.new=0 start.receiving=0 start.hijacked=0 accepted_late=0 finished=0 idle_closed=0 incomplete_closed=0 hijacked_left=0 killed=0
	// connections killed: 0
}

// A stream of events has no end of its own. It ends when the server begins to
// drain, so that its client connects to another instance.
func ExampleDraining() {
	begun := make(chan struct{})
	events := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: hello\n\n")
		http.NewResponseController(w).Flush()
		close(begun)
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprint(w, ": still here\n\n")
			case <-graceful.Draining(r.Context()):
				fmt.Fprint(w, "event: bye\ndata: come back\n\n")
				return
			case <-r.Context().Done():
				return
			}
		}
	}
	srv := &graceful.Server{Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(events)}}
	stopped, err := srv.Start(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		<-begun
		srv.Stop(10 * time.Second) // or SIGTERM
	}()

	fmt.Print(body("http://" + srv.Addrs()[0].String()))
	<-stopped
	// Output:
	// data: hello
	//
	// event: bye
	// data: come back
}

// The end of ctx begins the shutdown, as SIGTERM and SIGINT do.
func ExampleRunContext() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err := graceful.RunContext(ctx, "127.0.0.1:0", 20*time.Second, hello)
	fmt.Println(err)
	// Output: <nil>
}

// The Server closes the socket without losing the clients that have just
// connected, because Listen opened it and no other process shares it.
func ExampleListen() {
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	srv := &graceful.Server{Server: &http.Server{Handler: hello}, Timeout: 10 * time.Second}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()

	fmt.Println(body("http://" + l.Addr().String()))
	srv.Stop(10 * time.Second) // or SIGTERM
	fmt.Println(<-served)
	// Output:
	// hello
	// <nil>
}

// At most two connections are open at once. A third client waits until one of
// them is closed.
func ExampleLimitListener() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	limited := graceful.LimitListener(l, 2)

	var accepted []net.Conn
	for range 2 {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer client.Close()
		c, err := limited.Accept()
		if err != nil {
			log.Fatal(err)
		}
		accepted = append(accepted, c)
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	third := make(chan net.Conn)
	go func() {
		c, _ := limited.Accept()
		third <- c
	}()

	select {
	case <-third:
		fmt.Println("accepted too early")
	case <-time.After(20 * time.Millisecond):
		fmt.Println("waiting")
	}
	accepted[0].Close()
	(<-third).Close()
	accepted[1].Close()
	fmt.Println("accepted")
	// Output:
	// waiting
	// accepted
}

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

	g := &graceful.Group{Budget: 25 * time.Second}
	g.AddFuncs("web", func() error { return srv.Serve(l) }, graceful.ShutdownThenClose(srv))
	g.Go("mail", mail.Run)
	g.Defer("database", func(ctx context.Context) error {
		fmt.Println("database closed")
		return nil
	})

	// In a program a signal ends it.
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
	g := &graceful.Group{Budget: 25 * time.Second}
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

// Metrics are scraped until the end: their server stops when workers and cleanup have
// ended.
func ExampleGroup_StopLast() {
	server := func(name string) (string, func() error, func(context.Context) error) {
		stop := make(chan struct{})
		return name, func() error { <-stop; return nil }, func(context.Context) error {
			fmt.Println(name, "stops")
			close(stop)
			return nil
		}
	}
	g := &graceful.Group{Budget: 25 * time.Second, NoSignalHandling: true}
	g.AddFuncs(server("web"))
	g.AddFuncs(server("metrics"))
	g.StopLast("metrics")
	g.Go("mail", func(ctx context.Context) error {
		<-ctx.Done()
		fmt.Println("mail ends")
		return nil
	})
	g.Defer("database", func(context.Context) error {
		fmt.Println("database is closed")
		return nil
	})
	if _, err := g.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	g.Stop("the example is over") // in a program: a signal
	g.Wait()
	// Output:
	// web stops
	// mail ends
	// database is closed
	// metrics stops
}

// Handlers of other servers learn of the drain, too. This one waits for news; without
// Draining it would hold the shutdown until the budget is used up.
func ExampleGroup_Context() {
	g := &graceful.Group{Budget: 25 * time.Second, NoSignalHandling: true}
	waiting := make(chan struct{})
	hs := &http.Server{
		BaseContext: func(net.Listener) context.Context { return g.Context(context.Background()) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(waiting)
			<-graceful.Draining(r.Context()) // and on news
			io.WriteString(w, "no news, ask again")
		}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	g.AddFuncs("web", func() error { return hs.Serve(l) }, graceful.ShutdownThenClose(hs))
	if _, err := g.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	go func() {
		<-waiting
		g.Stop("the example is over") // in a program: a signal
	}()
	fmt.Println(body("http://" + l.Addr().String()))
	fmt.Println(g.Wait())
	// Output:
	// no news, ask again
	// <nil>
}

// A worker that takes its work from outside the process stops taking it at the first
// moment of the shutdown. Its context ends later, when the servers have drained.
func ExampleShutdownBegun() {
	g := &graceful.Group{ShutdownDelay: 10 * time.Millisecond, NoSignalHandling: true}
	g.Go("consumer", func(ctx context.Context) error {
		<-graceful.ShutdownBegun(ctx)
		fmt.Println("unsubscribed")
		<-ctx.Done()
		fmt.Println("done with what the servers have handed over")
		return nil
	})
	if _, err := g.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	g.Stop("the example is over") // in a program: a signal
	g.Wait()
	// Output:
	// unsubscribed
	// done with what the servers have handed over
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

// Another server's Shutdown leaves connections open when its context ends.
// ShutdownThenClose closes them then. Here the time of the group is over while a
// request is in progress.
func ExampleShutdownThenClose() {
	started := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done() // ends when the connection is closed
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}

	g := &graceful.Group{Budget: 50 * time.Millisecond}
	g.AddFuncs("web", func() error { return srv.Serve(l) }, graceful.ShutdownThenClose(srv))
	go func() {
		go body("http://" + l.Addr().String())
		<-started
		g.Stop("the example is over")
	}()

	fmt.Println(g.Run(context.Background()))
	for _, e := range g.Report().Entries {
		fmt.Println(e.Kind, e.Name, e.Outcome)
	}
	// Output:
	// web: context deadline exceeded
	// server web cut
}

// A server whose graceful stop takes no context, like *grpc.Server, needs a second
// function that ends it at once.
func ExampleStopThenKill() {
	var s exampleServer // s := grpc.NewServer()
	s.quit = make(chan struct{})

	g := &graceful.Group{Budget: 10 * time.Second}
	g.AddFuncs("grpc", s.Serve, graceful.StopThenKill(s.GracefulStop, s.Stop))

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
	g := &graceful.Group{Budget: 10 * time.Second, NoSignalHandling: true}
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

// A bare accept loop for a protocol of lines. With a Listener in it, a command
// in progress is finished when the server is stopped; the loop itself stays as
// it was.
func ExampleNewListener() {
	working := make(chan struct{}, 1)
	serve := func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					working <- struct{}{}
					time.Sleep(50 * time.Millisecond) // the work
					fmt.Fprintln(c, strings.ToUpper(lines.Text()))
				}
			}()
		}
	}

	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l := graceful.NewListener(below)
	l.Timeout = 10 * time.Second
	go serve(l)

	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	fmt.Fprintln(client, "hello")
	<-working
	if err := l.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	answers, err := io.ReadAll(client) // to the end of the connection
	fmt.Printf("%s%v\n", answers, err)
	r := l.Report()
	fmt.Println(r.IdleClosed, "was idle and closed,", len(r.Killed), "killed")
	// Output:
	// HELLO
	// <nil>
	// 1 was idle and closed, 0 killed
}

// A server that answers "accepted" at once and lets a worker do the work. Without
// Busy the connection would be idle after that answer.
func ExampleBusy() {
	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l := graceful.NewListener(below)
	l.IdleGrace = 20 * time.Millisecond
	accepted := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			done := graceful.Busy(c)
			go func() {
				defer done()
				time.Sleep(100 * time.Millisecond) // the work
				fmt.Fprintln(c, "done")
			}()
			fmt.Fprintln(c, "accepted")
			close(accepted)
		}
	}()

	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	fmt.Fprintln(client, "work")
	<-accepted
	if err := l.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	answers, err := io.ReadAll(client)
	fmt.Printf("%s%v\n", answers, err)
	// Output:
	// accepted
	// done
	// <nil>
}

// The usual order, under a plain http.Server: probes outside, then counting,
// then the deadline, and everything else within it.
func Example_middleware() {
	var health graceful.Health
	var inFlight graceful.InFlight
	timeout := graceful.RequestTimeout{
		Max:       30 * time.Second,
		Parameter: "timeout",
		InFlight:  &inFlight,
	}

	app := http.NewServeMux()
	app.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello\n")
	})

	root := http.NewServeMux()
	root.Handle("GET /readyz", health.ReadyHandler())
	root.Handle("GET /livez", health.LiveHandler())
	root.Handle("/", health.Handler(inFlight.Handler(timeout.Handler(app))))

	srv := httptest.NewServer(root)
	defer srv.Close()
	srv.Config.RegisterOnShutdown(health.Shutdown)
	for _, path := range []string{"/readyz", "/hello", "/hello?timeout=2s", "/hello?timeout=2"} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			log.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%s: %d %s", path, resp.StatusCode, body)
	}
	// Output:
	// /readyz: 200 ok
	// /hello: 200 hello
	// /hello?timeout=2s: 200 hello
	// /hello?timeout=2: 400 the query parameter timeout must be a duration with its unit, like 1.5s or 300ms
}

// Work other than requests can be counted, too.
func ExampleInFlight() {
	var f graceful.InFlight
	job := func() error {
		if err := f.Add(1); err != nil {
			return err
		}
		go func() {
			defer f.Done()
			// send a mail
		}()
		return nil
	}

	fmt.Println(job())
	f.Wait() // for the mail
	fmt.Println(job())
	// Output:
	// <nil>
	// graceful: draining, nothing new is admitted
}

// A handler that ignores its context does not keep its client waiting.
func ExampleRequestTimeout() {
	done := make(chan struct{})
	t := graceful.RequestTimeout{Max: 10 * time.Millisecond}
	h := t.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-done
		_, err := io.WriteString(w, "too late")
		fmt.Println(err)
		done <- struct{}{}
	}))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Print(w.Code, " ", w.Body)
	done <- struct{}{}
	<-done
	// Output:
	// 504 the server did not answer in time
	// http: Handler timeout
}

// With RequestDeadline the handler answers by itself.
func ExampleRequestDeadline() {
	query := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }

	d := graceful.RequestDeadline{Max: 10 * time.Millisecond, Grace: time.Second}
	h := d.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := query(r.Context()); errors.Is(err, graceful.ErrRequestTimeout) {
			http.Error(w, "the database is slow today", http.StatusGatewayTimeout)
		}
	}))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Print(w.Code, " ", w.Body)
	// Output: 504 the database is slow today
}

func ExampleHealth() {
	health := graceful.Health{WaitForReady: true}
	health.AddCheck("database", func(ctx context.Context) error {
		return errors.New("no route to 10.0.0.7") // not shown in the answer
	})
	probe := func(query string) {
		w := httptest.NewRecorder()
		health.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz"+query, nil))
		fmt.Println(w.Code, strings.ReplaceAll(strings.TrimSpace(w.Body.String()), "\n", "; "))
	}

	probe("?exclude=database")
	health.SetReady(true)
	probe("")
	probe("?exclude=database&verbose")
	// Output:
	// 503 [-]startup failed: the application is not ready; [+]shutdown ok; [+]database excluded; failed
	// 503 [+]startup ok; [+]shutdown ok; [-]database failed: reason withheld; failed
	// 200 [+]startup ok; [+]shutdown ok; [+]database excluded; ok
}

// The database is needed for every request, the search for some only.
func ExampleHealth_Add() {
	var health graceful.Health
	health.AddCheck("database", func(context.Context) error { return nil })
	health.Add(graceful.HealthCheck{
		Name:     "search",
		Check:    func(context.Context) error { return errors.New("no route to host") },
		WarnOnly: true,
		Timeout:  300 * time.Millisecond,
		MaxAge:   5 * time.Second,
	})
	w := httptest.NewRecorder()
	health.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz?verbose", nil))
	fmt.Print(w.Code, "\n", w.Body)
	// Output:
	// 200
	// [+]startup ok
	// [+]shutdown ok
	// [+]database ok
	// [!]search warning: reason withheld
	// ok
}

// A service of systemd's Type=notify. If systemd does not run it, nothing is sent.
func ExampleSystemdNotify() {
	health := new(graceful.Health)
	srv := &graceful.Server{
		Server:  &http.Server{Addr: "127.0.0.1:0", Handler: http.NotFoundHandler()},
		Timeout: 20 * time.Second,
		Health:  health,
		Process: &graceful.Process{}, // says READY=1, STOPPING=1 and EXTEND_TIMEOUT_USEC
	}
	graceful.SystemdNotify("STATUS=filling caches")
	ctx, cancel := context.WithCancel(context.Background())
	stopped, err := srv.Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	graceful.SystemdNotify("STATUS=serving")
	go graceful.SystemdWatchdog(ctx, health.Alive)

	cancel() // or SIGTERM
	<-stopped
	fmt.Println(srv.Phase())
	// Output: stopped
}

// SIGHUP starts the program anew, hands its sockets to that process and, when it is
// ready, ends this one. Some container images stop with SIGQUIT.
func ExampleProcess() {
	srv := &graceful.Server{
		Server:  &http.Server{Addr: "127.0.0.1:0", Handler: hello}, // in a program: ":8080"
		Timeout: 20 * time.Second,
		Signals: []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT},
		Process: &graceful.Process{UpgradeSignals: []os.Signal{syscall.SIGHUP}},
	}
	stopped, err := srv.Start(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(body("http://" + srv.Addrs()[0].String()))
	srv.Stop(20 * time.Second) // or a signal
	<-stopped
	fmt.Println(srv.Wait())
	// Output:
	// hello
	// <nil>
}
