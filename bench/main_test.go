package bench

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	ory "github.com/ory/graceful"
	"go.uber.org/goleak"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

func TestMain(m *testing.M) {
	ory.DefaultShutdownTimeout = stopTimeout
	goleak.VerifyTestMain(m,
		// tylerb's waits for signals for ever, one goroutine for each server.
		goleak.IgnoreTopFunction("gopkg.in/tylerb/graceful%2ev1.(*Server).handleInterrupt"),
		// After a kill nobody takes what its connections have to report, nor
		// its report that they have ended.
		goleak.IgnoreAnyFunction("gopkg.in/tylerb/graceful%2ev1.(*Server).Serve.func1"),
		goleak.IgnoreTopFunction("gopkg.in/tylerb/graceful%2ev1.(*Server).manageConnections"),
	)
}

// Every contender answers, stops while a request is in progress, answers that
// too, and is gone. A benchmark of one that does not would measure nothing.
func TestContenders(t *testing.T) {
	for _, c := range stoppers {
		for _, network := range networks {
			for name, config := range map[string]*tls.Config{"plain": nil, "TLS": traffic.ServerTLS()} {
				t.Run(c.name+"/"+network.name+"/"+name, func(t *testing.T) {
					testContender(t, c, network.listen(t), config)
				})
			}
		}
	}
}

func testContender(t *testing.T, c contender, l net.Listener, config *tls.Config) {
	began, release := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/", hello)
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-release
		hello(w, r)
	})
	srv := c.serve(t, l, mux, config)
	nc := srv.dial(t)
	if config != nil {
		nc = tls.Client(nc, clientTLS())
	}
	defer nc.Close()
	br := bufio.NewReader(nc)
	get := func(path string) {
		io.WriteString(nc, "GET "+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Error(path, err)
			return
		}
		if body, err := io.ReadAll(resp.Body); string(body) != "hello, world\n" || err != nil {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	get("/")

	answered, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		get("/slow")
		io.Copy(io.Discard, br) // the server closes the connection, or else this never ends
	}()
	<-began
	go func() {
		defer close(stopped)
		srv.stop()
	}()
	if _, err := l.Accept(); err == nil {
		t.Error("the listener is still open")
	}
	select {
	case <-stopped:
		t.Error("the stop did not wait for the request")
	default:
	}
	close(release)
	<-answered
	<-stopped
}
