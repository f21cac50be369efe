package graceful

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestBlindLimit: where the queue can't be looked into, who waits in it when
// the stop comes and all slots are taken is served as they come free, and not
// before. The queue used to be given up.
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
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
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
			resp.Body.Close()
		})
	}
	for range limit {
		<-entered
	}
	s.Stop(20 * time.Second)
	<-s.life.draining
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
	if r := s.Report(); r.Late != clients-limit || r.KillReason != "" {
		t.Errorf("%v", r)
	}
	if n := len(s.side.limit.slots); n != 0 {
		t.Errorf("%d slots were not given back", n)
	}
}

// TestBlindLimitKill: who was accepted and waits for a slot is let go of when
// the time is over.
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
