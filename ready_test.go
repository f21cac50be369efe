package graceful_test

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// TestReadyHandler: ready while serving, and from the first moment of the
// shutdown on not; always as text that nobody keeps.
func TestReadyHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer outlast()
		l := newVirtListener()
		srv := &graceful.Server{
			Server:        &http.Server{Handler: sleeper},
			ShutdownDelay: 2 * time.Second,
			Timeout:       time.Second,
		}
		ready := srv.ReadyHandler()
		var got []int
		look := func() {
			t.Helper()
			synctest.Wait()
			w := httptest.NewRecorder()
			ready.ServeHTTP(w, httptest.NewRequest("GET", "/ready", nil))
			got = append(got, w.Code)
			if w.Header().Get("Cache-Control") != "no-store" || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
				t.Errorf("%d with the header %v", w.Code, w.Header())
			}
			if w.Body.Len() == 0 || !strings.HasSuffix(w.Body.String(), "\n") {
				t.Errorf("%d with the body %q", w.Code, w.Body)
			}
		}
		look()
		s := serve(t, srv, l)
		newClient(t, l.dial()).ask("/1h")
		look()
		s.stop()
		look() // delaying
		time.Sleep(2 * time.Second)
		look() // draining
		s.end()
		look()
		if diff := cmp.Diff([]int{200, 200, 503, 503, 503}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestReadyWithPhase: who has seen the phase finds the handler in it.
func TestReadyWithPhase(t *testing.T) {
	for range 200 {
		srv := &graceful.Server{NoSignalHandling: true}
		ready := srv.ReadyHandler()
		srv.Stop(0)
		for srv.Phase() == graceful.PhaseServing {
			runtime.Gosched()
		}
		w := httptest.NewRecorder()
		ready.ServeHTTP(w, httptest.NewRequest("GET", "/ready", nil))
		<-srv.StopChan()
		if w.Code != 503 || !srv.Interrupted {
			t.Fatalf("the ready handler says %d, interrupted: %v", w.Code, srv.Interrupted)
		}
	}
}
