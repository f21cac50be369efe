package graceful

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

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
	m := newManager(drainRules{grace: time.Hour, half: time.Hour})
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
			d.expireForeign()
			c.goOn(connActive)
			m.rules.grace, d.m.rules.grace = time.Hour, time.Hour
		}
	}
	if n := len(d.waiting); n > conns || cap(d.waiting) > 4*conns || cap(d.foreign) > 4*conns {
		t.Errorf("%d connections wait in %d places; room for %d, and for %d foreign ones", conns, n, cap(d.waiting), cap(d.foreign))
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
