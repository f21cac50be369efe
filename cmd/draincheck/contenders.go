package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	ory "github.com/ory/graceful"
	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
	tylerb "gopkg.in/tylerb/graceful.v1"
)

// serveCommand is the hidden first argument that makes this program one of the
// servers that it checks.
const serveCommand = "serve-contender"

// stopTimeout is how long each contender waits for requests in progress: twenty
// times as long as the longest takes.
const stopTimeout = 2 * time.Second

// A contender is a way to serve HTTP until SIGTERM.
type contender struct {
	name  string // for the command line
	title string // for people
	serve func(o *serveOptions) error
}

var contenders = []contender{
	{"net-http", "net/http Shutdown", serveNetHTTP},
	{"tylerb", "tylerb/graceful.v1", serveTylerb},
	{"ory", "ory/graceful", serveOry},
	{"graceful", ours, serveGraceful},
}

// serveOptions is what every contender is given.
type serveOptions struct {
	plain, secure net.Listener
	handler       *traffic.Handler
	mux           *http.ServeMux
	reusePort     bool
	delay         time.Duration
}

// serveMain is the program as a server under test.
func serveMain(args []string) int {
	fs := flag.NewFlagSet(serveCommand, flag.ContinueOnError)
	name := fs.String("contender", "", "")
	addr := fs.String("addr", "", "")
	tlsAddr := fs.String("tls-addr", "", "")
	o := &serveOptions{handler: &traffic.Handler{}, mux: http.NewServeMux()}
	fs.BoolVar(&o.reusePort, "reuseport", false, "")
	fs.DurationVar(&o.delay, "delay", 0, "")
	if err := fs.Parse(args); err != nil {
		return exitUsage
	}
	// Standard input ends with the draincheck that started this: no server
	// outlives it, however it ended.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	collectLess()
	o.mux.Handle("/", o.handler)
	if err := o.run(*name, *addr, *tlsAddr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// collectLess has garbage collected less often, in the clients as in all of the
// servers: the machine's time goes into requests.
func collectLess() { debug.SetGCPercent(400) }

func (o *serveOptions) run(name, addr, tlsAddr string) (err error) {
	lc := net.ListenConfig{}
	if o.reusePort {
		lc.Control = reusePort
		lc.SetMultipathTCP(false)
	}
	// TLS first: it is the other one that the harness waits for.
	if o.secure, err = lc.Listen(context.Background(), "tcp", tlsAddr); err != nil {
		return err
	}
	if o.plain, err = lc.Listen(context.Background(), "tcp", addr); err != nil {
		return err
	}
	for _, c := range contenders {
		if c.name == name {
			return c.serve(o)
		}
	}
	return fmt.Errorf("no contender %q", name)
}

// server returns an http.Server that speaks all that the traffic does.
func (o *serveOptions) server() *http.Server {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: o.mux, Protocols: p, TLSConfig: traffic.ServerTLS(), ErrorLog: log.New(io.Discard, "", 0)}
}

// serveGraceful is this library.
func serveGraceful(o *serveOptions) error {
	srv := &graceful.Server{
		Server:        o.server(),
		Timeout:       stopTimeout,
		ShutdownDelay: o.delay,
		WaitHijacked:  true,
		ReusePort:     o.reusePort,
		OwnsListener:  true,
		Logger:        graceful.DefaultLogger(),
	}
	o.handler.Draining = graceful.Draining
	o.mux.Handle("/ready", srv.ReadyHandler())
	return both(
		func() error { return srv.Serve(o.plain) },
		func() error { return srv.ServeTLS(o.secure, "", "") },
	)
}

// serveNetHTTP is what the documentation of http.Server.Shutdown shows.
func serveNetHTTP(o *serveOptions) error {
	srv := o.server()
	return untilSignal(
		func() error { return srv.Serve(o.plain) },
		func() error { return srv.ServeTLS(o.secure, "", "") },
		srv.Shutdown)
}

func untilSignal(plain, secure func() error, shutdown func(context.Context) error) error {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGTERM, os.Interrupt)
	failed := make(chan error, 2)
	for _, serve := range []func() error{plain, secure} {
		go func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		}()
	}
	select {
	case err := <-failed:
		return err
	case <-sig:
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return shutdown(ctx)
}

// serveTylerb is gopkg.in/tylerb/graceful.v1.
func serveTylerb(o *serveOptions) error {
	one := func() *tylerb.Server {
		return &tylerb.Server{Timeout: stopTimeout, Server: o.server()}
	}
	plain, secure := one(), one()
	config := traffic.ServerTLS()
	config.NextProtos = []string{"h2", "http/1.1"}
	secure.TLSConfig = config
	return both(
		func() error { return plain.Serve(o.plain) },
		func() error { return secure.Serve(tls.NewListener(o.secure, config)) },
	)
}

// serveOry is github.com/ory/graceful, which calls Shutdown on a signal.
func serveOry(o *serveOptions) error {
	ory.DefaultShutdownTimeout = stopTimeout
	srv := o.server()
	go srv.ServeTLS(o.secure, "", "")
	return ory.Graceful(func() error { return srv.Serve(o.plain) }, srv.Shutdown)
}

// both runs the two until both have returned.
func both(serve ...func() error) error {
	errs := make([]error, len(serve))
	var wg sync.WaitGroup
	for i, f := range serve {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// contend returns the subject that is the contender of that name.
func (c *config) contend(name string, delay time.Duration) (subject, error) {
	self, err := os.Executable()
	if err != nil {
		return subject{}, err
	}
	for _, k := range contenders {
		if k.name != name {
			continue
		}
		s := subject{Name: k.title, argv: []string{
			self, serveCommand, "-contender", name, "-addr", "127.0.0.1:{port}", "-tls-addr", "127.0.0.1:{tlsport}",
		}}
		if name != "graceful" {
			s.why = "it is there to be compared with"
			if delay > 0 {
				delay = 0 // they have none
			}
		}
		if c.replace {
			s.argv = append(s.argv, "-reuseport")
		}
		if delay > 0 {
			s.argv = append(s.argv, "-delay", delay.String())
		}
		return s, nil
	}
	return subject{}, fmt.Errorf("no contender %q", name)
}

// balancedDelay is the ShutdownDelay behind a balancer: more than it needs to
// notice.
const balancedDelay = time.Second

// demonstrate makes net/http and this library the subjects.
func (c *config) demonstrate() error {
	return c.contest("net-http", "graceful")
}

func (c *config) contest(names ...string) error {
	c.window = 500 * time.Millisecond // this library's IdleGrace
	delay := time.Duration(0)
	if c.via != "" {
		c.health, delay = "/ready", balancedDelay
	}
	for _, name := range names {
		s, err := c.contend(name, delay)
		if err != nil {
			return err
		}
		c.subjects = append(c.subjects, s)
	}
	return nil
}
