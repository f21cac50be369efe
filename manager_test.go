package graceful

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A connection that fell idle after Patience used to wait behind one that had
// connected later and said nothing, for as long as that one's quiet window.
func TestHurryPassesWhoWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(drainRules{grace: time.Second, patience: 2 * time.Second})
		go m.run()
		accept := func() (*fakeConn, net.Conn, *conn) {
			f := newFakeConn(func() {})
			nc, c := track(m, f, nil, new(ioState))
			m.added(c)
			return f, nc, c
		}
		fake, nc, _ := accept()
		fake.peerSends(1)
		nc.Read(make([]byte, 1)) // in use
		m.signal(m.begin)
		time.Sleep(3 * time.Second) // hurry
		_, silent, _ := accept()
		go func() {
			silent.Read(make([]byte, 1))
			silent.Close()
		}()
		time.Sleep(10 * time.Millisecond)

		nc.Write([]byte("x"))
		began := time.Now()
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read: %v; want io.EOF", err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("ended after %v; want at once", took)
		}
		nc.Close()
		m.signal(m.sealed)
		<-m.done
	})
}

// Nothing blocks on a manager that has returned.
func TestManagerThatHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(drainRules{})
		go m.run()
		f := newFakeConn(func() {})
		_, c := track(m, f, nil, nil)
		m.added(c)
		m.signal(m.begin)
		if left := m.abandon(); len(left) != 1 || left[0] != c {
			t.Errorf("abandon left %v", left)
		}
		if m.added(c) {
			t.Error("added to a manager that has gone")
		}
		c.setState(connActive)
		c.setState(connIdle)
		c.gone()
		m.signal(m.begin)
		m.signal(m.sealed)
		if _, ok := m.count(); ok {
			t.Error("counted by a manager that has gone")
		}
		if left := m.abandon(); left != nil {
			t.Errorf("a second abandon left %v", left)
		}
	})
}

// socketPair returns a tracked TCP connection that is idle, and its peer.
func socketPair(t *testing.T, m *manager) (nc net.Conn, c *conn, peer net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		raw.Close()
		peer.Close()
	})
	nc, c = track(m, raw, nil, nil)
	m.added(c)
	c.setState(connActive)
	c.setState(connIdle)
	return nc, c, peer
}

func startManager(t *testing.T) *manager {
	m := newManager(drainRules{})
	go m.run()
	t.Cleanup(func() { m.abandon() })
	return m
}

// awaitPending waits until bytes have come to c, which no goroutine reads.
func awaitPending(t *testing.T, c *conn) {
	t.Helper()
	Eventually(t, func() (bool, any) { return sock.Pending(c.raw), "nothing has come, or Pending can't tell" })
}

// A request that is in the kernel when its connection's time has come has not
// been read, but it is there.
func TestEndSparesWhoHasSpoken(t *testing.T) {
	nc, c, peer := socketPair(t, startManager(t))
	io.WriteString(peer, "hello")
	awaitPending(t, c)
	c.end(c.load())
	c.expire()
	buf := make([]byte, 16)
	if n, err := nc.Read(buf); string(buf[:n]) != "hello" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if s := c.load().state(); s != connReceiving {
		t.Errorf("it is %v; want receiving", s)
	}
}

// A request that comes when its connection has just been told to end is read,
// and the connection goes on: its deadline is taken back.
func TestEndedReadLooksOnceMore(t *testing.T) {
	nc, c, peer := socketPair(t, startManager(t))
	if !c.end(c.load()) {
		t.Fatal("an idle connection was not told to end")
	}
	c.expire()
	io.WriteString(peer, "hello")
	awaitPending(t, c)
	buf := make([]byte, 16)
	if n, err := nc.Read(buf); string(buf[:n]) != "hello" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if s := c.load().state(); s != connReceiving {
		t.Errorf("it is %v; want receiving", s)
	}
	io.WriteString(peer, "again")
	if n, err := nc.Read(buf); string(buf[:n]) != "again" || err != nil {
		t.Errorf("the rest of the request: %q, %v", buf[:n], err)
	}
}

// What has told a connection to end can't be put off by the deadlines that the
// server above sets, before or after.
func TestEndCannotBePutOff(t *testing.T) {
	nc, c, _ := socketPair(t, startManager(t))
	nc.SetReadDeadline(time.Now().Add(time.Hour))
	if !c.end(c.load()) {
		t.Fatal("an idle connection was not told to end")
	}
	c.expire()
	for _, d := range []time.Time{{}, time.Now().Add(time.Hour)} {
		c.h1.response() // the second deadline behind it would say that a request is there
		nc.SetReadDeadline(d)
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read: %v; want io.EOF", err)
		}
		nc.SetDeadline(d)
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read: %v; want io.EOF", err)
		}
	}
}

// A deadline that the server above has set itself comes back as it is.
func TestOthersDeadlines(t *testing.T) {
	nc, _, _ := socketPair(t, startManager(t))
	nc.SetReadDeadline(aLongTimeAgo)
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v; want a timeout", err)
	}
}

// A connection whose state changed while it was about to be told is left alone.
func TestEndOfAnotherState(t *testing.T) {
	_, c, _ := socketPair(t, startManager(t))
	w := c.load()
	c.setState(connActive)
	if c.end(w) {
		t.Error("a connection in use was told to end")
	}
}

// The place of a connection that could not be accepted is free again, and an
// Accept that waits for a place lets go when the listener closes.
func TestListenerSlots(t *testing.T) {
	m := startManager(t)
	limit := newLimiter(1)
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(new(lifecycle), m, newHeldListener(below, 3), limit)
	for range 3 {
		if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
			t.Fatalf("Accept: %v; want the listener's own error", err)
		}
	}
	if n := len(limit.slots); n != 0 {
		t.Errorf("%d places are taken; want none", n)
	}
	limit.tryAcquire()
	accepted := make(chan error)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v; want net.ErrClosed", err)
	}
	if n := len(limit.slots); n != 1 {
		t.Errorf("%d places are taken; want the one", n)
	}
}

// A waitHeap gives its connections in the order of their times, whatever was
// changed and removed in between, and holds each of them once.
func TestWaitHeap(t *testing.T) {
	var h waitHeap
	var want []time.Duration
	for i := range 200 {
		c := new(conn)
		h.set(c, time.Duration(rand.IntN(1000)))
		switch {
		case i%3 == 0:
			h.set(c, time.Duration(rand.IntN(1000)))
			want = append(want, c.wait.due)
		case i%5 == 0:
			h.remove(c)
			h.remove(c)
		default:
			want = append(want, c.wait.due)
		}
	}
	var got []time.Duration
	for len(h) > 0 {
		got = append(got, h[0].wait.due)
		h.remove(h[0])
	}
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
