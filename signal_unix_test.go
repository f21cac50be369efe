//go:build unix

package graceful

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/childproc"
)

// signalChildEnv names the part that this test binary plays as a child.
const signalChildEnv = "GRACEFUL_TEST_SIGNAL_CHILD"

// TestSignalChild is not a test: it is what the child process of
// TestCatchSignalsProcess runs.
func TestSignalChild(t *testing.T) {
	part := os.Getenv(signalChildEnv)
	if part == "" || part == "conduct" || part == "ignored" {
		t.Skip("only as a child process")
	}
	veto := part == "veto"
	var stop func()
	ready := make(chan struct{})
	stop = catchSignals(signalsOf(nil, false), func(sig os.Signal) bool {
		<-ready
		fmt.Println("initiate", sig)
		if part == "stop inside" {
			stop()
			fmt.Println("stopped")
		}
		ok := !veto
		veto = false
		return ok
	}, func(sig os.Signal) {
		fmt.Println("kill", sig)
		if part == "kill returns" {
			os.Exit(7)
		}
		select {} // a kill that hangs must not keep a third signal off
	})
	if part == "stop outside" {
		stop()
	}
	close(ready)
	fmt.Println("ready")
	time.Sleep(30 * time.Second) // the parent ends it long before
}

type signalStep struct {
	sig  syscall.Signal
	wait time.Duration // before it; -1 for an echo of the one before
	want string        // the line to come, or none
}

func TestCatchSignalsProcess(t *testing.T) {
	t.Parallel()
	const (
		INT  = syscall.SIGINT
		TERM = syscall.SIGTERM
	)
	const later = samePress + 50*time.Millisecond
	for _, tc := range []struct {
		part  string
		steps []signalStep
		died  syscall.Signal // by the runtime's default
		exit  int
	}{
		// The second within 250 ms is ignored, the next kills, and as that
		// hangs the last one ends the process as if nothing had been caught.
		{"kill hangs", []signalStep{
			{TERM, 0, "initiate terminated"}, {INT, -1, ""}, {INT, later, "kill interrupt"}, {TERM, 0, ""},
		}, TERM, 0},
		{"kill returns", []signalStep{{INT, 0, "initiate interrupt"}, {TERM, later, "kill terminated"}}, 0, 7},
		{"veto", []signalStep{
			{INT, 0, "initiate interrupt"}, {TERM, later, "initiate terminated"},
			{INT, later, "kill interrupt"}, {INT, 0, ""},
		}, INT, 0},
		{"stop inside", []signalStep{{TERM, 0, "initiate terminated"}, {0, 0, "stopped"}, {INT, 0, ""}}, INT, 0},
		{"stop outside", []signalStep{{TERM, 0, ""}}, TERM, 0},
	} {
		t.Run(tc.part, func(t *testing.T) {
			t.Parallel()
			// A machine too busy to send the echo in time says nothing about
			// the catcher: again.
			for try := 1; !playSignals(t, tc.part, tc.steps, tc.died, tc.exit); try++ {
				if try == 5 {
					t.Skip("machine too slow for two signals within the window")
				}
			}
		})
	}
}

// playSignals runs one part in a child process. It reports whether the echoes
// were sent in time to be some.
func playSignals(t *testing.T, part string, steps []signalStep, died syscall.Signal, code int) bool {
	t.Helper()
	c := childproc.Start(t, "TestSignalChild", signalChildEnv+"="+part)
	c.Says("ready")
	var sent time.Time
	for _, s := range steps {
		time.Sleep(s.wait)
		if s.wait < 0 && time.Since(sent) > samePress/2 {
			c.Kill()
			return false
		}
		sent = time.Now()
		if s.sig != 0 {
			c.Signal(s.sig)
		}
		if s.want != "" {
			c.Says(s.want)
		}
	}
	c.Exit(code, died)
	return true
}

// TestIgnoredChild is not a test: it is what the child process of
// TestIgnoredSignalsProcess runs.
func TestIgnoredChild(t *testing.T) {
	if os.Getenv(signalChildEnv) != "ignored" {
		t.Skip("only as a child process")
	}
	// Neither another part of the program that catches the signals nor an
	// earlier server makes the second one catch what was ignored.
	c := make(chan os.Signal, 4)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	catchSignals(signalsOf(nil, false), func(os.Signal) bool { return true }, func(os.Signal) {})()
	stop := catchSignals(signalsOf(nil, false), func(sig os.Signal) bool {
		fmt.Println("initiate", sig)
		return true
	}, func(sig os.Signal) {
		fmt.Println("kill", sig)
		os.Exit(7)
	})
	defer stop()
	fmt.Println("ready")
	for range 2 {
		fmt.Println("also got", <-c)
	}
	signal.Stop(c) // and SIGINT is ignored again
	fmt.Println("alone")
	time.Sleep(30 * time.Second)
}

// TestIgnoredSignalsProcess: SIGINT that was ignored when the process started
// neither begins a shutdown nor kills. It used to do both: signal.Notify alone
// ends the ignoring.
func TestIgnoredSignalsProcess(t *testing.T) {
	t.Parallel()
	c := childproc.Start(t, "TestIgnoredChild", signalChildEnv+"=ignored", childproc.Ignoring("INT")...)
	c.Says("ready")
	for range 2 {
		c.Signal(syscall.SIGINT)
		c.Says("also got interrupt") // so the runtime has delivered it to all
	}
	c.Says("alone")
	c.Signal(syscall.SIGINT)
	c.Signal(syscall.SIGTERM)
	c.Says("initiate terminated")
	time.Sleep(samePress + 50*time.Millisecond)
	c.Signal(syscall.SIGINT)
	c.Signal(syscall.SIGTERM)
	c.Says("kill terminated")
	c.Exit(7, 0)
}

// TestConductChild is not a test: it is what the child process of
// TestConductProcess runs. It has a catcher like that of a server which the
// group knows only as two functions.
func TestConductChild(t *testing.T) {
	if os.Getenv(signalChildEnv) != "conduct" {
		t.Skip("only as a child process")
	}
	quit := make(chan struct{})
	g := &Group{ShutdownDelay: 400 * time.Millisecond, LogFunc: func(format string, args ...any) {
		if format == "graceful: unready, still serving; draining begins in %v" {
			fmt.Println("delay")
		}
	}}
	stop := catchSignals(signalsOf(nil, false), func(os.Signal) bool {
		fmt.Println("initiate", g.Report().Took >= g.ShutdownDelay)
		close(quit)
		return true
	}, func(os.Signal) {})
	g.AddFuncs("web", func() error { <-quit; return nil }, func(context.Context) error { <-quit; return nil })
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
