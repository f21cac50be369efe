package graceful

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// Poll calls ok until it returns true, and reports whether it did within limit. It
// is for events that no channel announces, here and in the tests of the external
// package.
func Poll(limit time.Duration, ok func() bool) bool {
	for began := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(began) > limit {
			return false
		}
	}
	return true
}

// Eventually waits until look returns true. If it never does, t fails with what
// look has seen last.
func Eventually(t testing.TB, look func() (ok bool, seen any)) {
	t.Helper()
	var seen any
	if !Poll(30*time.Second, func() (ok bool) { ok, seen = look(); return ok }) {
		t.Fatalf("waited in vain: %v", seen)
	}
}

// waitPhase waits until s has come to p.
func waitPhase(t *testing.T, s *Server, p Phase) {
	t.Helper()
	Eventually(t, func() (bool, any) { return s.Phase() >= p, s.Phase() })
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ = cmp.Diff
