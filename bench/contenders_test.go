package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	ory "github.com/ory/graceful"
	"github.com/seed-121bbccf/graceful"
	tylerb "gopkg.in/tylerb/graceful.v1"
)

// stopTimeout bounds a stop that hangs; it is the same for every contender.
const stopTimeout = 10 * time.Second

// A contender is a way to serve HTTP and to stop.
type contender struct {
	name string
	// serve serves h on l, over TLS if config is not nil.
	serve func(tb testing.TB, l net.Listener, h http.Handler, config *tls.Config) *server
}

var (
	netHTTP      = contender{"nethttp", serveNetHTTP}
	tylerbServer = contender{"tylerb", serveTylerb}
	oryFunc      = contender{"ory", serveOry}
	ours         = contender{"graceful", serveGraceful}
)

// servers are the contenders that have a server of their own. ory/graceful has
// none: it is a function around http.Server.Shutdown, and what it costs until
// the signal is what net/http costs.
var servers = []contender{netHTTP, tylerbServer, ours}

// stoppers are the contenders that have a stop.
var stoppers = []contender{netHTTP, tylerbServer, oryFunc, ours}

// each runs f for each contender, named so that benchstat lays them side by
// side.
func each(b *testing.B, contenders []contender, f func(*testing.B, contender)) {
	for _, c := range contenders {
		b.Run("server="+c.name, func(b *testing.B) { f(b, c) })
	}
}

// A server is a contender that serves.
type server struct {
	l      net.Listener
	stop   func() // shuts the server down and returns when Serve has, too
	kill   func() // does not wait for requests; nil if the contender cannot
	served chan error
}

// serve has s.end wait for what f serves.
func (s *server) serve(f func() error) {
	s.served = make(chan error, 1)
	go func() { s.served <- f() }()
}

func (s *server) end(tb testing.TB) {
	if err := <-s.served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		tb.Error("Serve:", err)
	}
}

// shutdown returns a stop made of f, which is a method Shutdown.
func (s *server) shutdown(tb testing.TB, f func(context.Context) error) func() {
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := f(ctx); err != nil {
			tb.Error("Shutdown:", err)
		}
		s.end(tb)
	}
}

func newHTTPServer(h http.Handler, config *tls.Config) *http.Server {
	return &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
}

func serveNetHTTP(tb testing.TB, l net.Listener, h http.Handler, config *tls.Config) *server {
	hs := newHTTPServer(h, config)
	s := &server{l: l}
	s.serve(func() error {
		if config != nil {
			return hs.ServeTLS(l, "", "")
		}
		return hs.Serve(l)
	})
	s.stop = s.shutdown(tb, hs.Shutdown)
	s.kill = func() { hs.Close(); s.end(tb) }
	return s
}

// serveGraceful has no quiet window: the others know of none, and with it the
// window is what would be measured.
func serveGraceful(tb testing.TB, l net.Listener, h http.Handler, config *tls.Config) *server {
	srv := &graceful.Server{
		Server:           newHTTPServer(h, config),
		IdleGrace:        -1,
		NoSignalHandling: true,
	}
	s := &server{l: l}
	s.serve(func() error {
		if config != nil {
			return srv.ServeTLS(l, "", "")
		}
		return srv.Serve(l)
	})
	s.stop = s.shutdown(tb, srv.Shutdown)
	s.kill = func() { srv.Close(); s.end(tb) }
	return s
}

// serveTylerb is gopkg.in/tylerb/graceful.v1. Its Stop only begins the stop; it
// is Serve that returns at the end. It has no Close of its own, only the
// http.Server's that it embeds, after which its Serve waits like after Stop:
// the shortest timeout is its way to kill.
func serveTylerb(tb testing.TB, l net.Listener, h http.Handler, config *tls.Config) *server {
	s := &server{l: l}
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"h2", "http/1.1"} // ServeTLS would set them; it has none
		l = tls.NewListener(l, config)
	}
	srv := &tylerb.Server{Server: newHTTPServer(h, config), NoSignalHandling: true}
	s.serve(func() error { return srv.Serve(l) })
	s.stop = func() { srv.Stop(stopTimeout); s.end(tb) }
	s.kill = func() { srv.Stop(time.Nanosecond); s.end(tb) }
	return s
}

// serveOry is github.com/ory/graceful with net/http. Only a signal stops it,
// which this process sends to itself. It kills nothing: what is open when its
// timeout has passed is left to the end of the process.
func serveOry(tb testing.TB, l net.Listener, h http.Handler, config *tls.Config) *server {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		tb.Fatal(err)
	}
	// Nobody may be listening for the signal yet when the first is sent, and
	// without this it would end the process.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGTERM)
	hs := newHTTPServer(h, config)
	begun := make(chan struct{})
	var once sync.Once
	s := &server{l: l}
	s.serve(func() error {
		return ory.Graceful(func() error {
			if config != nil {
				return hs.ServeTLS(l, "", "")
			}
			return hs.Serve(l)
		}, func(ctx context.Context) error {
			once.Do(func() { close(begun) })
			return hs.Shutdown(ctx)
		})
	})
	s.stop = func() {
		defer signal.Stop(caught)
		for {
			if err := self.Signal(syscall.SIGTERM); err != nil {
				tb.Fatal(err)
			}
			select {
			case <-begun:
				s.end(tb)
				return
			// Its channel has no room for a signal that comes before the
			// goroutine that waits for it, so that one may be lost.
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return s
}
