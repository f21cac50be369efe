package graceful

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// portable makes a Server's next listener one of a system where nothing but
// deadlines is known: no socket can be told to admit nobody, and of no queue
// can be told whether it is empty.
func portable(t *testing.T, s *Server) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	return l
}

// servePortable serves l with s, and returns what Serve will return.
func servePortable(t *testing.T, s *Server, l net.Listener) <-chan error {
	t.Helper()
	tl, err := s.open(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	tl.owned = false
	tl.queued = func(net.Listener) (waits, known bool) { return false, false }
	done := make(chan error, 1)
	go func() { done <- s.run(tl) }()
	return done
}

// TestPortableQueue: where the queue cannot be looked into it is emptied all
// the same: who has connected and sent a request before the stop is answered,
// though nobody was accepted meanwhile.
func TestPortableQueue(t *testing.T) {
	t.Parallel()
	for range 3 {
		entered, open := make(chan struct{}, 100), make(chan struct{})
		s := &Server{
			Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				entered <- struct{}{}
				<-open
				io.WriteString(w, "ok")
			})},
			NoSignalHandling: true,
			Timeout:          20 * time.Second,
		}
		l := portable(t, s)
		accepting := &slowListener{TCPListener: l.(*net.TCPListener), mayGo: make(chan struct{})}
		done := servePortable(t, s, accepting)
		const n = 50
		var clients sync.WaitGroup
		for range n {
			nc, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			clients.Go(func() {
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				if err != nil {
					t.Errorf("lost: %v", err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			})
		}
		s.Stop(20 * time.Second)
		for s.Phase() < PhaseDraining {
			time.Sleep(time.Millisecond)
		}
		close(accepting.mayGo)
		for range n {
			<-entered
		}
		// Nobody else comes, and nobody is waited for: it is closed.
		waitClosed(t, l)
		close(open)
		clients.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r := s.Report(); r.Late < n || r.KillReason != "" {
			t.Errorf("%v", r)
		}
	}
}

// A slowListener accepts nobody until it may.
type slowListener struct {
	*net.TCPListener
	mayGo chan struct{}
}

func (l *slowListener) Accept() (net.Conn, error) {
	<-l.mayGo
	return l.TCPListener.Accept()
}

// A starvedListener has no file descriptor to accept with for a while.
type starvedListener struct {
	*net.TCPListener
	mayGo    chan struct{}
	failures atomic.Int32 // that are still to come
}

func (l *starvedListener) Accept() (net.Conn, error) {
	<-l.mayGo
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.TCPListener.Accept()
}

// TestStarvedQueue: who waits in the queue at the stop is answered though there
// is no file descriptor for a moment. The listener used to be closed at the
// first error, and reset them.
func TestStarvedQueue(t *testing.T) {
	t.Parallel()
	s := &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "ok")
	})}, NoSignalHandling: true, Timeout: 20 * time.Second}
	l := &starvedListener{TCPListener: portable(t, s).(*net.TCPListener), mayGo: make(chan struct{})}
	l.failures.Store(3)
	done := servePortable(t, s, l)
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	s.Stop(20 * time.Second)
	for s.Phase() != PhaseDraining {
		time.Sleep(time.Millisecond)
	}
	for tl := s.life.m; !tl.draining.Load(); {
		time.Sleep(time.Millisecond)
	}
	close(l.mayGo)
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatalf("who waited in the queue: %v", err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
		t.Errorf("answered %q, %v", b, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPortableBusy: stops while clients make a connection for each request.
// Some are refused or reset when the socket is closed: the kernel goes on
// completing handshakes for it, which only Linux can be talked out of. Whoever
// was accepted is answered.
func TestPortableBusy(t *testing.T) {
	t.Parallel()
	const enough = 100
	underLoad := make(chan struct{}) // closed when so many have been answered
	var accepted, answered atomic.Int32
	s := &Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			accepted.Add(1)
			io.WriteString(w, "ok")
		})},
		NoSignalHandling: true,
		Timeout:          20 * time.Second,
	}
	l := portable(t, s)
	done := servePortable(t, s, l)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				nc, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return
				}
				nc.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
				b, err := io.ReadAll(nc)
				nc.Close()
				if err == nil && len(b) > 0 {
					if answered.Add(1) == enough {
						close(underLoad)
					}
				} else if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a client hangs")
				}
			}
		})
	}
	<-underLoad
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	clients.Wait()
	if a, b := accepted.Load(), answered.Load(); a != b {
		t.Errorf("%d requests reached the handler, %d were answered", a, b)
	}
}

// TestPortableLimit: with all slots taken, and nobody in a queue that tells
// nothing, the socket is closed without waiting for a slot.
func TestPortableLimit(t *testing.T) {
	t.Parallel()
	open, entered := make(chan struct{}), make(chan struct{})
	s := &Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-open
		})},
		NoSignalHandling: true,
		ListenLimit:      1,
		IdleGrace:        20 * time.Millisecond,
	}
	l := portable(t, s)
	done := servePortable(t, s, l)
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-entered
	s.life.mu.Lock()
	tl := s.life.listeners[0]
	s.life.mu.Unlock()
	s.Stop(0)
	select {
	case <-tl.closed:
	case <-time.After(10 * time.Second):
		t.Fatal("the socket is still open")
	}
	close(open)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// waitClosed waits until nobody can connect to l any more.
func waitClosed(t *testing.T, l net.Listener) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return
		}
		nc.Close()
		if time.Since(began) > 10*time.Second {
			t.Fatal("the socket is still open")
		}
	}
}
