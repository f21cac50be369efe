package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
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
	fmt.Println(r.Idle, "was idle and closed,", len(r.Killed), "killed")
	// Output:
	// HELLO
	// <nil>
	// 1 was idle and closed, 0 killed
}

// A server that answers "accepted" at once, and lets a worker do the work: the
// connection looks idle from then on, and is not.
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

// Work that is no request can be counted, too.
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

// A handler that ignores its context gets no say in the matter.
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

// With RequestDeadline the handler answers for itself.
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
		return errors.New("no route to 10.0.0.7") // not for everybody's eyes
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

// A database without which nothing works, and a search without which most does.
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

// A service of systemd's Type=notify. Where it is not systemd that runs it, the
// calls do nothing.
func ExampleSystemdNotify() {
	health := new(graceful.Health)
	srv := &graceful.Server{
		Server:  &http.Server{Addr: "127.0.0.1:0", Handler: http.NotFoundHandler()},
		Timeout: 20 * time.Second,
		Health:  health,
	}
	srv.ShutdownInitiated = func() {
		// In case that TimeoutStopSec is shorter than the drain may be.
		graceful.SystemdNotify("STOPPING=1", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (srv.Timeout+5*time.Second).Microseconds()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped, err := srv.Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	graceful.SystemdNotify("READY=1")
	go graceful.SystemdWatchdog(ctx, health.Alive)

	cancel() // or SIGTERM
	<-stopped
	fmt.Println(srv.Phase())
	// Output: stopped
}
