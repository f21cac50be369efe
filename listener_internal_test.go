package graceful

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// portable makes a Server's next listener one of a system where nothing but
// deadlines is known: a socket cannot be told to admit no connections, and whether
// a queue is empty cannot be found out.
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
	tl.handedOn.Store(true) // as if it were shared
	tl.queued = func(net.Listener) (waits, known bool) { return false, false }
	done := make(chan error, 1)
	go func() { done <- s.run(tl) }()
	return done
}

// TestPortableQueue: a queue that cannot be inspected is emptied as well. A client
// that has connected and sent a request before the stop is answered, although no
// connection was accepted meanwhile.
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
		accepting := newHeldListener(l, 0)
		accepting.mayGo = make(chan struct{})
		done := servePortable(t, s, accepting)
		const n = 50
		var clients sync.WaitGroup
		for range n {
			askAnswered(t, l.Addr(), &clients)
		}
		s.Stop(20 * time.Second)
		waitDraining(t, s)
		close(accepting.mayGo)
		for range n {
			<-entered
		}
		// No other client comes, and none is waited for: it is closed.
		waitClosed(t, l)
		close(open)
		clients.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r := s.Report(); r.AcceptedLate < n || r.KillReason != "" {
			t.Errorf("%v", r)
		}
	}
}

// waitDraining waits until connections that are accepted count as late: those that
// were there are counted some time after the phase has changed.
func waitDraining(t *testing.T, s *Server) {
	t.Helper()
	Eventually(t, func() (bool, any) { return s.life.m.draining.Load(), s.Phase() })
}

// A heldListener accepts no connection until it may, and then has no file descriptor
// to accept with for a while.
type heldListener struct {
	*net.TCPListener
	mayGo    chan struct{} // nil: it may
	failures atomic.Int32  // that are still to come
}

func (l *heldListener) Accept() (net.Conn, error) {
	if l.mayGo != nil {
		<-l.mayGo
	}
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.TCPListener.Accept()
}

func newHeldListener(l net.Listener, failures int32) *heldListener {
	held := &heldListener{TCPListener: l.(*net.TCPListener)}
	held.failures.Store(failures)
	return held
}

// TestStarvedQueue: connections in the queue at the stop are answered although no
// file descriptor is free for a moment. The listener used to be closed at the
// first error, and reset them.
func TestStarvedQueue(t *testing.T) {
	t.Parallel()
	s := &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "ok")
	})}, NoSignalHandling: true, Timeout: 20 * time.Second}
	l := newHeldListener(portable(t, s), 3)
	l.mayGo = make(chan struct{})
	done := servePortable(t, s, l)
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	s.Stop(20 * time.Second)
	waitDraining(t, s)
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
// completing handshakes for it, which can be prevented on Linux only. Every
// connection that was accepted is answered.
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

// TestPortableLimit: with all slots taken, and an empty queue that cannot be
// inspected, the socket is closed without waiting for a slot.
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

// waitClosed waits until connections to l are refused.
func waitClosed(t *testing.T, l net.Listener) {
	t.Helper()
	Eventually(t, func() (bool, any) {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			nc.Close()
		}
		return err != nil, "the socket is still open"
	})
}

// A floodedListener always has one more client in its queue, which has left when it
// is accepted: as a flood of connects to a socket that can't be shut.
type floodedListener struct {
	closed   chan struct{}
	once     sync.Once
	accepted atomic.Int64
	passed   atomic.Bool // the deadline is
}

func (l *floodedListener) Accept() (net.Conn, error) {
	if l.passed.Load() {
		return nil, os.ErrDeadlineExceeded // before a connection that is there, as package net has it
	}
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case <-time.After(time.Millisecond / 2):
	}
	l.accepted.Add(1)
	client, server := net.Pipe()
	client.Close()
	return server, nil
}

func (l *floodedListener) SetDeadline(at time.Time) error {
	l.passed.Store(!at.After(time.Now()))
	return nil
}

func (l *floodedListener) Addr() net.Addr { return &net.TCPAddr{} }
func (l *floodedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// TestFlood: the emptying of a queue that goes on filling has a bound: a second
// where the queue can be looked into, a tenth of it where it can't. It used to hold
// a stop for as long as the flood lasted.
func TestFlood(t *testing.T) {
	for _, known := range []bool{true, false} {
		for _, limit := range []int{0, 3} {
			t.Run(fmt.Sprintf("known %v, limit %d", known, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := &floodedListener{closed: make(chan struct{})}
					s := &Server{Server: &http.Server{}, NoSignalHandling: true, ListenLimit: limit}
					if err := s.prepare(); err != nil {
						t.Fatal(err)
					}
					tl, err := s.open(l, nil)
					if err != nil {
						t.Fatal(err)
					}
					tl.queued = func(net.Listener) (waits, _ bool) { return known, known }
					done := make(chan error, 1)
					go func() { done <- s.run(tl) }()
					time.Sleep(time.Second)
					began := time.Now()
					s.Stop(0)
					<-l.closed
					most := emptyingLimit + 10*time.Millisecond
					if !known {
						most = sweepLimit + 10*time.Millisecond
					}
					if took := time.Since(began); took > most {
						t.Errorf("closed after %v, want %v", took, most)
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
					if took := time.Since(began); took > 2*most {
						t.Errorf("over after %v", took)
					}
					if l.accepted.Load() < 500 {
						t.Errorf("%d accepted: that is no flood", l.accepted.Load())
					}
				})
			})
		}
	}
}

// TestDrainMemory: what a drain keeps follows from the connections that are open,
// not from how long it lasts and how often they change their states. Its list used
// to grow by an entry for each command.
func TestDrainMemory(t *testing.T) {
	const conns = 8
	m := newManager(drainRules{grace: time.Hour, receiving: time.Hour})
	var count census
	d := newDrain(m, &count)
	var all []*conn
	for range conns {
		_, c := track(m, newFakeConn(func() {}), nil, nil)
		all = append(all, c)
	}
	for i := range 100_000 {
		c := all[i%conns]
		c.setState([]connState{connActive, connIdle, connReceiving, connIdle}[i/conns%4])
		d.look(c)
		if i%1000 == 0 {
			c.word.Store(uint64(connIdle)) // since long ago
			m.rules.grace, d.m.rules.grace = 0, 0
			d.look(c) // is told to end
			d.expireBlocking()
			c.goOn(connActive)
			m.rules.grace, d.m.rules.grace = time.Hour, time.Hour
		}
	}
	if n := len(d.waiting); n > conns || cap(d.waiting) > 4*conns || cap(d.toExpire) > 4*conns {
		t.Errorf("%d connections wait in %d places; room for %d, and for %d foreign ones", conns, n, cap(d.waiting), cap(d.toExpire))
	}
	for _, c := range all {
		d.forget(c)
	}
	if len(d.waiting) > 0 {
		t.Errorf("%d wait that are gone", len(d.waiting))
	}
}

// TestPortableQueueLoss: emptying a queue that can't be looked into loses no more of
// the clients that connect for every request than closing the socket at once does:
// the kernel goes on admitting until it is closed. The two take turns, so that the
// machine's load hits both. It used to lose six times as many.
func TestPortableQueueLoss(t *testing.T) {
	t.Parallel()
	const turns, clients = 4, 8
	lose := func(wrap func(net.Listener) net.Listener) (lost, all int64) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "ok")
		})}, NoSignalHandling: true, Timeout: 20 * time.Second}
		go s.Serve(wrap(l))
		var stopped atomic.Bool
		warm := make(chan struct{}, clients)
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for n := 0; !stopped.Load(); n++ {
					nc, err := net.Dial("tcp", l.Addr().String())
					if err != nil {
						if !strings.Contains(err.Error(), "refused") {
							atomic.AddInt64(&lost, 1)
						}
						return
					}
					atomic.AddInt64(&all, 1)
					nc.SetDeadline(time.Now().Add(20 * time.Second))
					io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
					if _, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil {
						atomic.AddInt64(&lost, 1)
					}
					nc.Close()
					if n == 10 {
						warm <- struct{}{}
					}
				}
			})
		}
		for range clients {
			<-warm
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		stopped.Store(true)
		wg.Wait()
		return lost, all
	}
	var atOnce, emptied, all int64
	for range turns {
		n, _ := lose(func(l net.Listener) net.Listener { return struct{ net.Listener }{l} })
		atOnce += n
		n, of := lose(func(l net.Listener) net.Listener { return deadlineOnly{l, l.(*net.TCPListener)} })
		emptied, all = emptied+n, all+of
	}
	// Each client can be lost once a stop, or so.
	if emptied > 2*atOnce+turns*clients/2 {
		t.Errorf("%d of %d lost, and %d when the socket was closed at once", emptied, all, atOnce)
	}
	t.Logf("%d of %d lost, and %d when the socket was closed at once", emptied, all, atOnce)
}

// A deadlineOnly is a wrapper that passes SetDeadline on, and nothing else.
type deadlineOnly struct {
	net.Listener
	below *net.TCPListener
}

func (l deadlineOnly) SetDeadline(t time.Time) error { return l.below.SetDeadline(t) }

// TestBlindLimit: connections in a queue that can't be inspected, when the stop
// comes and all slots are taken, are served as slots come free, and not before. The queue used to be given up.
func TestBlindLimit(t *testing.T) {
	t.Parallel()
	const limit, clients = 2, 8
	entered, open := make(chan struct{}, clients), make(chan struct{})
	s := &Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			<-open
		})},
		NoSignalHandling: true,
		ListenLimit:      limit,
		Timeout:          20 * time.Second,
	}
	l := portable(t, s)
	done := servePortable(t, s, l)
	var wg sync.WaitGroup
	for range clients {
		askAnswered(t, l.Addr(), &wg)
	}
	for range limit {
		<-entered
	}
	s.Stop(20 * time.Second)
	<-s.life.drained
	select {
	case <-entered:
		t.Error("one came in above the limit")
	case <-time.After(50 * time.Millisecond):
	}
	close(open)
	wg.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r := s.Report(); r.AcceptedLate != clients-limit || r.KillReason != "" {
		t.Errorf("%v", r)
	}
	if n := len(s.side.limit.slots); n != 0 {
		t.Errorf("%d slots were not given back", n)
	}
}

// TestBlindLimitKill: a connection that was accepted and waits for a slot is closed
// when the time is over.
func TestBlindLimitKill(t *testing.T) {
	t.Parallel()
	entered, open := make(chan struct{}, 1), make(chan struct{})
	s := &Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			<-open
		})},
		NoSignalHandling: true,
		ListenLimit:      1,
	}
	l := portable(t, s)
	done := servePortable(t, s, l)
	for range 2 {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	<-entered
	s.Stop(50 * time.Millisecond)
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(open)
	if n := len(s.side.limit.slots); n != 0 {
		t.Errorf("%d slots were not given back", n)
	}
}

// askAnswered connects and sends a request, and fails t if no answer comes. wg
// waits for the answer.
func askAnswered(t *testing.T, addr net.Addr, wg *sync.WaitGroup) {
	t.Helper()
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Errorf("lost: %v", err)
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	})
}
