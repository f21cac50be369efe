package graceful

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestBlindBacklogKill: a connection that was taken out of a queue that can't be
// inspected, and was not served when the time is over, is closed.
func TestBlindBacklogKill(t *testing.T) {
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
	const clients = 6
	var conns []net.Conn
	for range clients {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, nc)
	}
	<-entered
	s.Stop(300 * time.Millisecond)
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(open)
	for i, nc := range conns {
		if _, err := nc.Read(make([]byte, 1)); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("client %d was left open", i)
			}
		}
	}
	if n := len(s.side.limit.slots); n != 0 {
		t.Errorf("%d slots were not given back", n)
	}
}

// TestKillLeavesHijacked: a connection that was hijacked at the moment of the kill
// is left alone, as one that was hijacked before.
func TestKillLeavesHijacked(t *testing.T) {
	m := newManager(drainRules{grace: time.Hour})
	go m.run()
	_, c := track(m, new(net.TCPConn), nil, nil)
	m.added(c)
	c.setState(connActive)
	m.signal(m.begin)
	m.count()
	c.word.Store(uint64(m.stamp(connHijacked))) // changed follows
	if left := m.abandon(); len(left) != 0 || m.last.left != 1 {
		t.Errorf("%d connections are to be killed, %d left", len(left), m.last.left)
	}
}

// TestReportAddsUp: connections that end before the listeners are told to stop, as
// with ShutdownSendRetryAfter, are in the report as well.
func TestReportAddsUp(t *testing.T) {
	entered, open := make(chan struct{}), make(chan struct{})
	s := &Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			entered <- struct{}{}
			<-open
		})},
		NoSignalHandling:       true,
		ShutdownSendRetryAfter: time.Second,
	}
	nc, stopped := startAndDial(t, s)
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-entered
	s.Stop(10 * time.Second)
	Eventually(t, func() (bool, any) { r := s.Report(); return r.Start.Active == 1, r })
	late, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(late, "GET / HTTP/1.1\r\nHost: h\r\n\r\n") // is refused
	io.Copy(io.Discard, late)
	close(open)
	io.Copy(io.Discard, nc)
	<-stopped
	if r := s.Report(); r.AcceptedLate != 1 || r.Finished != 2 {
		t.Errorf("%v", r)
	}
}
