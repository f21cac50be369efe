package graceful_test

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-121bbccf/graceful"
)

// TestUpgradePID1: the successor of a process that is PID 1 in its namespace would be
// killed when the process ends.
func TestUpgradePID1(t *testing.T) {
	const env = "GRACEFUL_TEST_PID1"
	if os.Getenv(env) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestUpgradePID1$", "-test.v")
		cmd.Env = append(os.Environ(), env+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		out, err := cmd.CombinedOutput()
		if len(out) == 0 && err != nil {
			t.Skip("no PID namespace: ", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	srv := &graceful.Server{
		Server:           &http.Server{Addr: "127.0.0.1:0"},
		NoSignalHandling: true,
		Process:          &graceful.Process{Path: "/does/not/exist"},
	}
	if _, err := srv.Start(bg); err != nil {
		t.Fatal(err)
	}
	if err := srv.Upgrade(bg); err == nil || !strings.Contains(err.Error(), "this process is PID 1") {
		t.Error(err)
	}
	if err := srv.Shutdown(bg); err != nil {
		t.Error(err)
	}
}
