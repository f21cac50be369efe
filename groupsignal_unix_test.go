//go:build unix

package graceful

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/childproc"
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
	c := childproc.Start(t, "TestConductChild", signalChildEnv+"=conduct")
	c.Says("ready")
	c.Signal(syscall.SIGTERM)
	for _, want := range []string{"delay", "initiate true", "<nil>"} {
		c.Says(want)
	}
	c.Exit(0, 0)
}
