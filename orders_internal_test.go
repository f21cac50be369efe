package graceful

import (
	"testing"
	"testing/synctest"
	"time"
)

// A signal that came while Stop's BeforeShutdown was thinking used to be told
// that the shutdown had begun. After a veto the next signal was then the
// "second" one, and killed a server that nobody had stopped.
func TestAskMeanwhile(t *testing.T) {
	for _, agreed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{
				NoSignalHandling: true,
				BeforeShutdown:   func() bool { time.Sleep(time.Second); return agreed },
			}
			s.Stop(0)
			synctest.Wait()
			began := time.Now()
			if got := s.life.ask("terminated", nil); got != agreed || time.Since(began) != time.Second {
				t.Errorf("ask returned %v after %v, want %v", got, time.Since(began), agreed)
			}
			if got := s.Phase() != PhaseServing; got != agreed {
				t.Errorf("in %v, agreed: %v", s.Phase(), agreed)
			}
		})
	}
}
