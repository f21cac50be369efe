package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// haproxyRetries is what HAProxy tries twice: nothing, or also what it sent over a
// connection that was closed without an answer.
var haproxyRetries = map[string]string{
	"none": "    retries 0\n",
	"sent": "    retries 2\n    retry-on conn-failure empty-response\n",
}

// BenchmarkIdleClose shows what it costs through HAProxy, retries off, that a
// server closes a connection which is idle. A request that HAProxy sends before it
// has heard of it is lost. net/http closes after IdleTimeout, with nobody being
// stopped, as every server does that is; this library after IdleGrace, once in
// each stop, when it has looked whether a request has come.
//
// An operation is a request, after a pause that is as likely to be a little too
// long as a little too short. Of those lost, and of how the pauses are spread,
// follows the length of the window in which that happens: window-us.
//
//	go test -run '^$' -bench 'IdleClose/retry=none' -benchtime 6000x ./e2e
//
// With retry=sent, where HAProxy repeats such requests, none should be lost.
func BenchmarkIdleClose(b *testing.B) {
	need(b, "haproxy")
	for _, retry := range []string{"none", "sent"} {
		for _, over := range []string{"tcp", "tls"} {
			for _, load := range []string{"none", "busy"} {
				for _, server := range []string{"nethttp", "graceful"} {
					b.Run("retry="+retry+"/over="+over+"/load="+load+"/server="+server, func(b *testing.B) {
						closing := closeByTimeout
						if server == "graceful" {
							closing = closeByStop
						}
						port, round := closing(b, over == "tls")
						idleClose(b, port, round, haproxyDefaults+haproxyRetries[retry], over == "tls", load == "busy")
					})
				}
			}
		}
	}
}

const (
	idleTimeout = 50 * time.Millisecond
	idleSpread  = 10 * time.Millisecond // the longest pause less the shortest one
	idleClients = 20
)

// closeByTimeout serves with net/http, which closes connections that have been
// idle for idleTimeout.
func closeByTimeout(tb testing.TB, overTLS bool) (port int, round func(func())) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	hs := &http.Server{Handler: new(traffic.Handler), IdleTimeout: idleTimeout}
	if overTLS {
		hs.TLSConfig = traffic.ServerTLS()
		go hs.ServeTLS(l, "", "")
	} else {
		go hs.Serve(l)
	}
	tb.Cleanup(func() { hs.Close() })
	return l.Addr().(*net.TCPAddr).Port, func(exchange func()) { exchange() }
}

// closeByStop serves with this library. In each round the server is stopped
// after the exchange, and its successor takes over.
func closeByStop(tb testing.TB, overTLS bool) (port int, round func(func())) {
	port = freePorts(tb, 1)[0]
	launch := func() (*graceful.Server, <-chan struct{}) {
		hs := &http.Server{Addr: fmt.Sprint("127.0.0.1:", port), Handler: new(traffic.Handler)}
		if overTLS {
			hs.TLSConfig = traffic.ServerTLS()
		}
		srv := &graceful.Server{Server: hs, IdleGrace: idleTimeout, ReusePort: true, NoSignalHandling: true}
		stopped, err := srv.Start(context.Background())
		if err != nil {
			tb.Fatal(err)
		}
		return srv, stopped
	}
	srv, stopped := launch()
	tb.Cleanup(func() { srv.Close() })
	var leaving <-chan struct{} // closed when the server of the round before has stopped
	return port, func(exchange func()) {
		if leaving != nil {
			<-leaving // so that there are two at the most
		}
		old := srv
		leaving = stopped
		srv, stopped = launch()
		exchange()
		old.Stop(0)
	}
}

// idleClose plays the rounds, each of which leaves the connections with the server
// at that port idle.
func idleClose(b *testing.B, server int, round func(func()), haproxy string, overTLS, busy bool) {
	ports := freePorts(b, idleClients+1)
	var conf strings.Builder
	conf.WriteString(haproxy)
	secure := ""
	if overTLS {
		secure = " ssl verify none"
	}
	other, _ := closeByTimeout(b, overTLS)
	for i, port := range ports {
		to := server
		if i == idleClients {
			to = other
		}
		fmt.Fprintf(&conf, "listen l%d\n    bind 127.0.0.1:%d\n    server s 127.0.0.1:%d%s\n", i, port, to, secure)
	}
	startHAProxy(b, conf.String())
	for _, port := range ports {
		waitUp(b, fmt.Sprintf("http://127.0.0.1:%d/", port))
	}
	if busy {
		run, err := traffic.Load{
			Addr: fmt.Sprint("127.0.0.1:", ports[idleClients]), Kind: traffic.KeepAlive, Clients: 64,
		}.Start(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer run.Stop()
	}

	clients := make([]idleClient, idleClients)
	for i := range clients {
		clients[i].addr = fmt.Sprint("127.0.0.1:", ports[i])
		defer clients[i].close()
	}
	var lost atomic.Int64
	b.ResetTimer()
	for n := 0; n < b.N; n += len(clients) {
		each := func(f func(*idleClient)) {
			var wg sync.WaitGroup
			for i := range clients[:min(len(clients), b.N-n)] {
				wg.Go(func() { f(&clients[i]) })
			}
			wg.Wait()
		}
		round(func() {
			each(func(c *idleClient) {
				if !c.exchange() { // it was opened in the pause of the round before
					c.exchange()
				}
			})
		})
		each(func(c *idleClient) {
			time.Sleep(time.Until(c.answered.Add(idleTimeout - idleSpread/2 + rand.N(idleSpread))))
			if !c.exchange() {
				lost.Add(1)
			}
		})
	}
	b.StopTimer()
	b.ReportMetric(float64(lost.Load()), "lost")
	b.ReportMetric(float64(lost.Load())/float64(b.N)*float64(idleSpread.Microseconds()), "window-us")
}

// An idleClient has one connection with HAProxy, and another one when that has
// come to its end.
type idleClient struct {
	addr     string
	conn     net.Conn
	br       *bufio.Reader
	answered time.Time
}

// exchange reports whether a request was answered. HAProxy says 502 if it was
// not, or nothing where it had the connection with the server before.
func (c *idleClient) exchange() bool {
	if c.conn == nil {
		var err error
		if c.conn, err = net.Dial("tcp", c.addr); err != nil {
			return false
		}
		c.br = bufio.NewReader(c.conn)
	}
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c.conn, "GET / HTTP/1.1\r\nHost: e2e\r\n\r\n"); err != nil {
		c.close()
		return false
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	c.answered = time.Now()
	if err != nil || resp.StatusCode != http.StatusOK {
		c.close()
		return false
	}
	return true
}

func (c *idleClient) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}
