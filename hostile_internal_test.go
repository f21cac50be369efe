package graceful

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestBlindBacklogKill: who was taken out of a queue that can't be looked into, and
// not served when the time is over, is let go of.
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
