package graceful

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// Poll asks until ok says yes, and reports whether it did within limit. It is for
// what no channel tells of, here and in the tests outside of the package.
func Poll(limit time.Duration, ok func() bool) bool {
	for began := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(began) > limit {
			return false
		}
	}
	return true
}

// Eventually waits until look says yes. What look has seen is said of a wait in
// vain.
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
