package graceful_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// TestDeafPeers: 200 TLS connections, whose peers have stopped reading, are
// closed together in no time when Timeout is over. Closing a *tls.Conn can take
// five seconds each, for the alert that it writes.
func TestDeafPeers(t *testing.T) {
	const n = 200
	for _, beside := range []bool{false, true} {
		name := "the server's TLS"
		if beside {
			name = "a TLS listener"
		}
		t.Run(name, func(t *testing.T) {
			stuck := make(chan struct{}, n)
			var handlers sync.WaitGroup
			over := make(chan struct{})
			type socketKey struct{}
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handlers.Add(1)
				defer handlers.Done()
				// Closing TLS while a Write is under way is cheap, so half of
				// them have none, on a socket that takes no byte more.
				nc := r.Context().Value(socketKey{}).(net.Conn)
				nc.SetWriteDeadline(time.Now().Add(50 * ms))
				for b := make([]byte, 64<<10); ; {
					if _, err := nc.Write(b); err != nil {
						break
					}
				}
				nc.SetWriteDeadline(time.Time{})
				stuck <- struct{}{}
				if r.URL.Path == "/write" {
					w.Write(make([]byte, 1<<20))
				}
				<-over
			})
			srv := &graceful.Server{Server: &http.Server{Handler: h}, Timeout: 100 * ms}
			srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
				return context.WithValue(ctx, socketKey{}, nc.(*tls.Conn).NetConn())
			}
			s := serveTLS(t, srv, smallBuffers{listenTCP(t)}, beside)
			addr := waitAddr(s)
			// TLS 1.2 takes sessions up again for next to no work.
			config := traffic.ClientTLS()
			config.ServerName, config.MaxVersion = "127.0.0.1", tls.VersionTLS12
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range n {
				nc := dialClient(t, addr).Conn
				nc.(*net.TCPConn).SetReadBuffer(4 << 10)
				newClient(t, tls.Client(nc, config)).ask([]string{"/write", "/wait"}[i%2])
			}
			patience := time.After(20 * time.Second)
			for i := range n {
				select {
				case <-stuck:
				case <-patience:
					t.Fatalf("only %d are stuck", i)
				}
			}
			s.stop()
			got := s.end()
			close(over)
			handlers.Wait()
			r := s.Report()
			if len(r.Killed) != n || r.Kill > 2*time.Second || got > 4*time.Second {
				t.Errorf("over after %v, kill %v, %d killed", got, r.Kill, len(r.Killed))
			}
		})
	}
}

// smallBuffers makes writes to a peer that does not read get stuck soon.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		nc.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return nc, err
}

// TestExpectContinue: a client that waits for leave to send its body gets it,
// and is answered, though the stop came in between.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	entered, read := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-read
		io.Copy(w, r.Body)
	})
	for _, secure := range []bool{false, true} {
		entered, read = make(chan struct{}), make(chan struct{})
		srv := &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 20 * ms, Timeout: 10 * time.Second}
		s, c := servePlainOrTLS(t, srv, secure)
		c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		<-entered
		s.stop()
		waitPhase(s, graceful.PhaseDraining)
		time.Sleep(50 * ms)
		close(read)
		if line, err := c.br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Errorf("got %q, %v", line, err)
		}
		c.br.ReadString('\n')
		c.send("bo")
		time.Sleep(50 * ms)
		c.send("dy")
		c.expect("body")
		s.end()
		if r := s.Report(); r.KillReason != "" || r.GaveUp > 0 {
			t.Errorf("%v", r)
		}
	}
}

// TestPipelined: of requests that were sent behind one another the first is
// answered whole. If its answer says close, the others are the client's to
// repeat (RFC 9112 9.3.2); if it began before the stop and so does not, the
// next is answered as well, and says it.
func TestPipelined(t *testing.T) {
	t.Parallel()
	for _, begun := range []bool{false, true} {
		for _, secure := range []bool{false, true} {
			g := newGate()
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if begun {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
				}
				g.ServeHTTP(w, r)
				io.WriteString(w, strings.Repeat("x", 1<<16))
			})
			srv := &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 100 * ms, Timeout: 10 * time.Second}
			s, c := servePlainOrTLS(t, srv, secure)
			c.send("GET /first HTTP/1.1\r\nHost: h\r\n\r\nGET /second HTTP/1.1\r\nHost: h\r\n\r\n")
			<-g.entered
			s.stop()
			waitPhase(s, graceful.PhaseDraining)
			time.Sleep(200 * ms) // longer than the quiet window
			close(g.open)
			first := c.expect("/first" + strings.Repeat("x", 1<<16))
			if first.close == begun {
				t.Errorf("begun before the stop %v, TLS %v: says close %v", begun, secure, first.close)
			}
			if begun {
				if second := c.expect("/second" + strings.Repeat("x", 1<<16)); !second.close {
					t.Errorf("TLS %v: the second answer does not say close", secure)
				}
			}
			if err := c.ended(); err != nil {
				t.Errorf("begun %v, TLS %v: after the last answer: %v", begun, secure, err)
			}
			s.end()
			if r := s.Report(); r.KillReason != "" {
				t.Errorf("begun %v, TLS %v: %v", begun, secure, r)
			}
		}
	}
}

// TestPipelinedInTwo: what a client sends behind a request that is in progress,
// whole or in part, is not served once the response has said close, though its
// header was composed before the stop. A body that looks like a request is not
// taken for one.
func TestPipelinedInTwo(t *testing.T) {
	const body = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
	post := fmt.Sprintf("POST /second HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", len(body))
	for _, tc := range []struct {
		name   string
		before string // comes with the first request, or what the first request is
		after  string // comes when the first is answered
	}{
		{"nothing behind", "GET /first HTTP/1.1\r\nHost: h\r\n\r\n", post + body},
		{"nothing behind a body", "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nnine\r\n\r\n\r", post + body},
		{"a header", "GET /first HTTP/1.1\r\nHost: h\r\n\r\n" + post, body},
		{"a header behind a body", "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nfour" + post, body},
		{"a header behind chunks", "POST /first HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + post, body},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				var served []string
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					served = append(served, r.URL.Path)
					io.Copy(io.Discard, r.Body)
					io.WriteString(w, strings.Repeat("x", 3000)) // the header is composed, and not sent
					time.Sleep(time.Second)
				})
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}}, l)
				c := newClient(t, l.dial())
				c.send(tc.before)
				synctest.Wait()
				s.stop()
				if got := c.expect(strings.Repeat("x", 3000)); !got.close {
					t.Error("the response does not say close")
				}
				io.WriteString(c, tc.after)
				c.ended()
				s.end()
				if diff := cmp.Diff([]string{"/first"}, served); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestSlowUpload: a body that is on its way when the stop comes is read to its
// end, and the answer sent, over a connection that was idle for a while before.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(b)
	})
	s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 20 * ms, Timeout: 10 * time.Second}, listenTCP(t))
	c := dialClient(t, waitAddr(s))
	c.get("/", "")
	body := strings.Repeat("0123456789", 20)
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n" + body[:10])
	waitStats(s, func(st graceful.Stats) int { return st.Active }, 1)
	s.stop()
	for i := 10; i < 200; i += 38 {
		time.Sleep(30 * ms)
		c.send(body[i : i+38])
	}
	c.expect(body)
	s.end()
	if diff := cmp.Diff(0, s.Report().GaveUp+len(s.Report().Killed)); diff != "" {
		t.Errorf("%v", s.Report())
	}
}
