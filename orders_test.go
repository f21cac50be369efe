package graceful_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// TestStopHalfSpoken: how long half a request is waited for follows from the
// timeout that Stop was given. It used to follow from the Timeout field: Stop(0)
// of a server that has one never ended.
func TestStopHalfSpoken(t *testing.T) {
	for _, tc := range []struct {
		name          string
		timeout, stop time.Duration
		want          time.Duration
		ends          ends
	}{
		{"no timeout in place of one", time.Minute, 0, 5 * time.Second, ends{GaveUp: 1}},
		{"a timeout in place of none", 0, 30 * time.Second, 30 * time.Second, ends{Killed: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				defer outlast()
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: sleeper}, Timeout: tc.timeout}, l)
				newClient(t, l.dial()).send("GET / HT")
				synctest.Wait()
				s.stopAt = time.Now()
				s.Stop(tc.stop)
				time.AfterFunc(time.Hour, func() { s.Close() })
				if got := s.end(); got != tc.want {
					t.Errorf("over after %v, want %v", got, tc.want)
				}
				if got := endsOf(s.Report()); got != tc.ends {
					t.Errorf("ends are %+v, want %+v", got, tc.ends)
				}
			})
		})
	}
}

// TestStopWhileDelaying: a shutdown that is under way can only be shortened,
// also before its drain. Stop(0) used to take the timeout away.
func TestStopWhileDelaying(t *testing.T) {
	for _, longer := range []time.Duration{0, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := newVirtListener()
			defer outlast()
			s := serve(t, &graceful.Server{
				Server: &http.Server{Handler: sleeper}, Timeout: time.Second, ShutdownDelay: time.Second,
			}, l)
			newClient(t, l.dial()).ask("/1h")
			synctest.Wait()
			s.stop()
			synctest.Wait()
			s.Stop(longer)
			if got := s.end(); got != 2*time.Second {
				t.Errorf("Stop(%v): over after %v", longer, got)
			}
		})
	}
}

// TestVetoedTimeout: a Stop that came while BeforeShutdown was thinking, and was
// refused with the rest, used to leave its timeout behind.
func TestVetoedTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		defer outlast()
		agree := make(chan bool)
		s := serve(t, &graceful.Server{
			Server: &http.Server{Handler: sleeper}, Timeout: time.Minute,
			BeforeShutdown: func() bool { return <-agree },
		}, l)
		newClient(t, l.dial()).ask("/1h")
		synctest.Wait()
		s.Stop(time.Hour)
		synctest.Wait()
		s.Stop(time.Second)
		synctest.Wait()
		agree <- false
		synctest.Wait()
		s.stopAt = time.Now()
		go s.Shutdown(bg)
		if got := s.end(); got != time.Minute {
			t.Errorf("over after %v", got)
		}
	})
}

// TestShutdownAfterEnd: after an orderly end Shutdown returns nil, whatever has
// become of its context. It used to be a matter of luck.
func TestShutdownAfterEnd(t *testing.T) {
	s := serve(t, &graceful.Server{IdleGrace: -1}, listenTCP(t))
	waitAddr(s)
	s.stop()
	s.end()
	ctx, cancel := context.WithCancel(bg)
	cancel()
	for range 20 {
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
