package graceful_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	l, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dialLines(t *testing.T, l net.Listener) *lineClient {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return newLineClient(c)
}

// TLS above and below a Listener: the states are those of the protocol, Busy
// finds the connection, and the end is TLS's own.
func TestListenerTLS(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"above", "below"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			bare := listenLocal(t)
			below := bare
			if where == "below" {
				below = tls.NewListener(bare, traffic.ServerTLS())
			}
			l := newListener(below)
			l.Timeout, l.IdleGrace = 20*time.Second, 50*time.Millisecond
			var above net.Listener = l
			if where == "above" {
				above = tls.NewListener(l, traffic.ServerTLS())
			}
			release := make(chan struct{})
			held := make(chan struct{})
			s := (&lineServer{left: make(chan struct{}, 2), handle: func(c net.Conn, line string) (string, bool) {
				if line != "hold" {
					return "", false
				}
				cs, ok := c.(interface{ ConnectionState() tls.ConnectionState })
				if !ok || !cs.ConnectionState().HandshakeComplete {
					t.Error("no TLS state")
				}
				done := graceful.Busy(c)
				go func() {
					<-release
					io.WriteString(c, "pushed\n")
					done()
				}()
				close(held)
				return "", true
			}}).start(above)

			dial := func() *lineClient {
				c := dialLines(t, bare)
				config := traffic.ClientTLS()
				config.ServerName = "127.0.0.1"
				c = newLineClient(tls.Client(c.Conn, config))
				c.ask(t, "x")
				return c
			}
			quiet, busy := dial(), dial()
			busy.say(t, "hold\n")
			<-held
			stopped := beginShut(t, l)
			quiet.end(t)                // io.EOF: it had a close_notify
			<-s.left                    // which comes before the connection's end
			time.Sleep(2 * l.IdleGrace) // it would be closed by then if it were idle
			if s := l.Stats(); s.Active != 1 || s.Open() != 1 {
				t.Errorf("while one is busy: %v", s)
			}
			close(release)
			busy.hear(t, "pushed")
			busy.end(t)
			<-stopped
			s.wait()
			if len(s.errs) > 0 {
				t.Error(s.errs)
			}
		})
	}
}

// A plain http.Server over a Listener works as over any other.
func TestListenerUnderHTTP(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("graceful\n", 200_000)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newListener(listenLocal(t))
	l.IdleGrace = 50 * time.Millisecond
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if _, ok := c.(io.ReaderFrom); !ok {
				t.Error("no ReaderFrom: sendfile is lost")
			}
			if _, ok := c.(syscall.Conn); !ok {
				t.Error("no SyscallConn")
			}
			if _, ok := c.(interface{ CloseWrite() error }); !ok {
				t.Error("no CloseWrite")
			}
			return ctx
		},
	}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	client := &http.Client{Transport: new(http.Transport)}
	for range 3 {
		resp, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != content {
			t.Errorf("%d bytes, %v", len(body), err)
		}
		resp.Body.Close()
	}
	// The server may still be on its way back to Read.
	eventually(t, func() (bool, any) { s := openStates(l); return s == "0 new, 0 active, 1 idle", s })
	shutListener(t, l)
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	// Its own Shutdown closes the Listener, which is then over as well.
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	client.CloseIdleConnections()
}

// Clients that have not been accepted when the shutdown begins are served.
func TestListenerEmptiesQueue(t *testing.T) {
	t.Parallel()
	const waiting = 50
	below := listenLocal(t)
	l := newListener(below)
	l.IdleGrace = 200 * time.Millisecond
	gate := make(chan struct{})
	s := (&lineServer{}).start(&hookedListener{Listener: l, accept: func() (net.Conn, error) {
		<-gate
		return l.Accept()
	}})
	var clients []*lineClient
	for range waiting {
		c := dialLines(t, below)
		c.say(t, "x\n") // some have said something, too
		clients = append(clients, c)
	}
	gate <- struct{}{} // Accept is called once, so that serving has begun
	clients[0].hear(t, "ok x")
	stopped := beginShut(t, l)
	eventually(t, func() (bool, any) { p := l.Phase(); return p == graceful.PhaseDraining, p })
	close(gate)
	for _, c := range clients[1:] {
		c.hear(t, "ok x")
	}
	for _, c := range clients {
		c.end(t)
	}
	<-stopped
	s.wait()
	if len(s.errs) > 0 {
		t.Error(s.errs)
	}
}

// counters is the state that the servers of TestListenerNoLoss share: it
// outlives each of them.
type counters struct {
	mu sync.Mutex // guards by
	by map[string]int
}

func (k *counters) handle(_ net.Conn, line string) (string, bool) {
	key, ok := strings.CutPrefix(line, "incr ")
	if !ok {
		return "", false
	}
	k.mu.Lock()
	k.by[key]++
	n := k.by[key]
	k.mu.Unlock()
	time.Sleep(time.Millisecond) // carried out, and not acknowledged yet
	return fmt.Sprint(n), true
}

// counting increments its counter until stop is closed, depth commands at a
// time, and reconnects when the connection ends between two commands, whereupon
// it says again what had no answer. It returns the last number it was told, and
// what was wrong.
func counting(addr, key string, depth int, pause time.Duration, stop <-chan struct{}) (acked int, wrong []string) {
	unanswered := 0
	for {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			select {
			case <-stop:
				return acked, wrong
			case <-time.After(time.Millisecond):
			}
			continue // between two servers
		}
		r := bufio.NewReader(c)
		for {
			select {
			case <-stop:
				if unanswered == 0 {
					c.Close()
					return acked, wrong
				}
			default:
			}
			if unanswered == 0 {
				unanswered = depth
			}
			if _, err = io.WriteString(c, strings.Repeat("incr "+key+"\n", unanswered)); err != nil {
				break
			}
			for unanswered > 0 {
				var line string
				if line, err = r.ReadString('\n'); err != nil {
					if line != "" {
						wrong = append(wrong, fmt.Sprintf("cut: %q, %v", line, err))
					}
					break
				}
				if line != fmt.Sprintln(acked+1) {
					wrong = append(wrong, fmt.Sprintf("%q after %d", line, acked))
					fmt.Sscan(line, &acked)
				} else {
					acked++
				}
				unanswered--
			}
			if err != nil {
				break
			}
			time.Sleep(pause)
		}
		c.Close()
	}
}

// TestListenerNoLoss stops and restarts a server under clients that count what
// was carried out: nothing without its answer, and nothing twice. A bare accept
// loop under the same clients shows that they can tell.
func TestListenerNoLoss(t *testing.T) {
	t.Parallel()
	const restarts = 5
	for _, kind := range []string{"Listener", "bare"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := &counters{by: make(map[string]int)}
			addr := "127.0.0.1:0"
			start := func() (stop func()) {
				var below net.Listener
				eventually(t, func() (_ bool, seen any) { // the port's last owner has just gone
					var err error
					below, err = graceful.Listen("tcp", addr)
					return err == nil, err
				})
				addr = below.Addr().String()
				s := &lineServer{handle: k.handle}
				if kind == "bare" {
					all := make(chan net.Conn, 10_000)
					s.over = func(c net.Conn) net.Conn { all <- c; return c }
					s.start(below)
					return func() {
						below.Close()
						<-s.done
						close(all)
						for c := range all {
							c.Close()
						}
						s.conns.Wait()
					}
				}
				l := newListener(below)
				l.IdleGrace, l.Timeout = 50*time.Millisecond, 20*time.Second
				s.start(l)
				return func() {
					shutListener(t, l)
					s.wait()
				}
			}
			stop := start()
			to := addr
			over := make(chan struct{})
			var mu sync.Mutex
			acked := make(map[string]int)
			var wrong []string
			var clients sync.WaitGroup
			for i := range 16 {
				key := fmt.Sprint("client", i)
				depth := []int{1, 1, 1, 8}[i%4]
				pause := time.Duration(i%3) * 3 * time.Millisecond
				clients.Go(func() {
					n, w := counting(to, key, depth, pause, over)
					mu.Lock()
					defer mu.Unlock()
					acked[key] = n
					wrong = append(wrong, w...)
				})
			}
			for range restarts {
				time.Sleep(30 * time.Millisecond) // of load
				stop()
				stop = start()
			}
			close(over)
			clients.Wait()
			stop()
			lost := 0
			for key, n := range k.by {
				if n != acked[key] {
					lost++
				}
			}
			if kind == "bare" {
				if len(wrong) == 0 {
					t.Error("a bare accept loop lost nothing: can these clients tell?")
				}
				return
			}
			if lost > 0 || len(wrong) > 0 {
				t.Errorf("%d counters differ: %v, told %v; %v", lost, k.by, acked, wrong)
			}
		})
	}
}

// TestProxiedIdle: a connection of a proxy, which copies in both directions, is
// idle while neither side speaks. It used to count as in use, because
// io.Copy is one call of ReadFrom.
func TestProxiedIdle(t *testing.T) {
	up := listenTCP(t)
	go func() {
		if c, err := up.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	l := newListener(listenTCP(t))
	l.Timeout, l.IdleGrace = 20*time.Second, 20*ms
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u, err := net.Dial("tcp", up.Addr().String())
			if err != nil {
				t.Error(err)
				c.Close()
				return
			}
			go func() {
				io.Copy(u, c)
				u.(*net.TCPConn).CloseWrite()
			}()
			go func() {
				io.Copy(c, u)
				c.Close()
				u.Close()
			}()
		}
	}()
	c := dialClient(t, l.Addr())
	c.echo("hello")
	if err := l.Shutdown(bg); err != nil {
		t.Errorf("%v\n%v", err, l.Report())
	}
	if err := c.ended(); err != nil {
		t.Error(err)
	}
}
