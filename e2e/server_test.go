package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// serve is the first argument that makes the test binary the server under test.
const serve = "serve"

// modes are the first arguments that make the test binary something else.
var modes = map[string]func(args []string) (status int){
	serve: server,
	load:  runLoad,
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && modes[os.Args[1]] != nil {
		os.Exit(modes[os.Args[1]](os.Args[2:]))
	}
	os.Exit(tests(m))
}

// scratch is a directory for what all tests share.
var scratch string

func tests(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "graceful-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// server is a program as a user of the library would write it: two Servers,
// one of them with TLS, until SIGTERM.
func server(args []string) int {
	fs := flag.NewFlagSet(serve, flag.ExitOnError)
	host := fs.String("host", "127.0.0.1", "")
	port := fs.Int("port", 0, "")
	tlsPort := fs.Int("tls-port", 0, "")
	reuse := fs.Bool("reuseport", false, "")
	delay := fs.Duration("delay", 0, "")
	fs.Parse(args)

	mux := http.NewServeMux()
	mux.Handle("/", &traffic.Handler{Draining: graceful.Draining})
	one := func(port int) *graceful.Server {
		p := new(http.Protocols)
		p.SetHTTP1(true)
		p.SetHTTP2(true)
		p.SetUnencryptedHTTP2(true)
		return &graceful.Server{
			Server:        &http.Server{Addr: fmt.Sprintf("%s:%d", *host, port), Handler: mux, Protocols: p},
			Timeout:       10 * time.Second,
			ShutdownDelay: *delay,
			ReusePort:     *reuse,
			WaitHijacked:  true,
			Logger:        graceful.DefaultLogger(),
		}
	}
	plain := one(*port)
	mux.Handle("/ready", plain.ReadyHandler())
	serving := []func() error{plain.ListenAndServe}
	if *tlsPort != 0 {
		secure := one(*tlsPort)
		serving = append(serving, func() error { return secure.ListenAndServeTLSConfig(traffic.ServerTLS()) })
	}
	errs := make(chan error, len(serving))
	for _, f := range serving {
		go func() { errs <- f() }()
	}
	status := 0
	for range serving {
		if err := <-errs; err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	return status
}
