//go:build unix

package graceful

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestConductChild is not a test: it is what the child process of
// TestConductProcess runs. It has a catcher like that of a server which the
// group knows only as two functions.
func TestConductChild(t *testing.T) {
	if os.Getenv(signalChildEnv) != "conduct" {
		t.Skip("only as a child process")
	}
	quit := make(chan struct{})
	g := &Group{ShutdownDelay: 400 * time.Millisecond, LogFunc: func(format string, args ...any) {
		if format == "graceful: unready; the servers drain in %v" {
			fmt.Println("delay")
		}
	}}
	stop := catchSignals(func(os.Signal) bool {
		fmt.Println("initiate", g.Report().Took >= g.ShutdownDelay)
		close(quit)
		return true
	}, func(os.Signal) {})
	g.Server("web", func() error { <-quit; return nil }, func(context.Context) error { <-quit; return nil })
	g.Go("ready", func(context.Context) error { fmt.Println("ready"); return nil })
	fmt.Println(g.Run(t.Context()))
	stop()
	os.Exit(0)
}

func TestConductProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestConductChild$")
	cmd.Env = append(os.Environ(), signalChildEnv+"=conduct")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "delay", "initiate true", "<nil>"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("child said %q, want %q", lines.Text(), want)
		}
		if want == "ready" {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
