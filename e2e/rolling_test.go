package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// rolls is how many stops each test makes; a tenth of it with -short.
const rolls = 20

// ports are the arguments of the server under test that draincheck fills in.
var ports = []string{"-port", "{port}", "-tls-port", "{tlsport}"}

// A report is what draincheck -json says, as far as it matters here.
type report struct {
	Subjects []struct {
		Stops []struct {
			Status string  `json:"exit_status"`
			Killed bool    `json:"killed"`
			Exit   float64 `json:"exit_ms"`
		} `json:"stops"`
		Kinds []struct {
			Name     string            `json:"name"`
			Skipped  string            `json:"skipped"`
			Sent     int               `json:"sent"`
			Answered int               `json:"answered"`
			Refused  map[string]int    `json:"refused"`
			Lost     map[string]int    `json:"lost"`
			Doubled  int               `json:"doubled"`
			Errors   map[string]string `json:"errors"`
			Before   latency           `json:"latency_before"`
			During   latency           `json:"latency_during"`
		} `json:"kinds"`
	} `json:"subjects"`
}

type latency struct {
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// A successor binds the same port before the stop: no request is lost, no
// connection is refused, and no client waits for a SYN to be repeated, which takes
// a second.
func TestSuccessorByReusePort(t *testing.T) {
	rep := roll(t, []string{"-replace"}, append(ports, "-reuseport")...)
	busy := rep.Subjects[0].Kinds[0].Before.P99 > 50
	for _, k := range rep.Subjects[0].Kinds {
		for cause, n := range k.Refused {
			t.Errorf("%s: %d refused: %s: %s", k.Name, n, cause, k.Errors[cause])
		}
		if k.During.Max >= 1000 && busy {
			t.Logf("%s: the slowest request took %.0f ms, but so did others before the stop: the machine is busy", k.Name, k.During.Max)
		} else if k.During.Max >= 1000 {
			t.Errorf("%s: the slowest request took %.0f ms", k.Name, k.During.Max)
		}
	}
}

// One of two instances down in between: ShutdownDelay gives HAProxy the time to
// notice.
func TestHAProxy(t *testing.T) {
	need(t, "haproxy")
	roll(t, []string{"-via", "haproxy", "-health", "/ready"}, append(ports, "-delay", "1s")...)
}

// With a successor that overlaps HAProxy need not notice anything.
func TestHAProxyWithSuccessor(t *testing.T) {
	need(t, "haproxy")
	roll(t, []string{"-via", "haproxy", "-health", "/ready", "-replace"}, append(ports, "-reuseport", "-delay", "1s")...)
}

// nginx does not check: only a successor that overlaps helps.
func TestNginxWithSuccessor(t *testing.T) {
	need(t, "nginx")
	roll(t, []string{"-via", "nginx", "-replace"}, append(ports, "-reuseport", "-delay", "300ms")...)
}

// roll has draincheck roll the server under test, and fails t if anything was
// lost or the server did not end well.
func roll(t *testing.T, flags []string, args ...string) report {
	t.Helper()
	n := rolls
	if testing.Short() {
		n /= 10
	}
	cmd := exec.CommandContext(t.Context(), draincheck(t), "-json", "-", "-rounds", strconv.Itoa(n), "-clients", "8", "-rate", "150", "-window", "500ms")
	cmd.Args = append(append(append(cmd.Args, flags...), "--", os.Args[0], serve), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatalf("draincheck: %v: %s", err, &errs)
	}
	s := rep.Subjects[0]
	if len(s.Stops) != n {
		t.Errorf("%d stops, want %d", len(s.Stops), n)
	}
	for _, k := range s.Kinds {
		// nginx speaks HTTP/1 to the servers, which gRPC cannot use.
		if k.Skipped != "" && !(slices.Contains(flags, "nginx") && strings.HasPrefix(k.Name, "grpc")) {
			t.Errorf("%s was skipped: %s", k.Name, k.Skipped)
		}
	}
	for i, st := range s.Stops {
		if st.Status != "0" || st.Killed {
			t.Errorf("stop %d: exit status %s after %.0f ms, killed %v", i, st.Status, st.Exit, st.Killed)
		}
	}
	sent := 0
	for _, k := range s.Kinds {
		sent += k.Sent
		if k.Doubled != 0 {
			t.Errorf("%s: %d doubled", k.Name, k.Doubled)
		}
		for cause, n := range k.Lost {
			if cause == "paused" {
				// The client was not scheduled for longer than the server's
				// quiet window, and spoke as its connection was closed.
				t.Logf("%s: %d excused: %s", k.Name, n, cause)
				continue
			}
			t.Errorf("%s: %d of %d lost: %s: %s", k.Name, n, k.Sent, cause, k.Errors[cause])
		}
	}
	t.Logf("%d stops, %d requests", len(s.Stops), sent)
	return rep
}

// draincheck returns the program, which TestMain's end removes again.
func draincheck(t *testing.T) string {
	t.Helper()
	path, err := buildDraincheck()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildDraincheck = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "draincheck")
	out, err := exec.Command("go", "build", "-o", path, "github.com/seed-121bbccf/graceful/cmd/draincheck").CombinedOutput()
	if err != nil {
		return "", errors.New("building draincheck: " + string(out))
	}
	return path, nil
})

// need returns the path of a program. It skips t if the program is not installed,
// and fails it where CI is set.
func need(t testing.TB, program string) string {
	t.Helper()
	for _, path := range []string{program, "/usr/sbin/" + program, "/usr/local/sbin/" + program} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	missing := "needs " + program + ": apt-get install haproxy nginx iproute2 nftables"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}
