//go:build unix

package graceful_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

const groupChildEnv = "GRACEFUL_TEST_GROUP_CHILD"

// TestGroupChild is not a test: it is what the child process of
// TestGroupSignals runs.
func TestGroupChild(t *testing.T) {
	part := os.Getenv(groupChildEnv)
	if part == "" {
		t.Skip("only as a child process")
	}
	g := &graceful.Group{Timeout: time.Minute}
	quit := make(chan struct{})
	g.Server("web", func() error { <-quit; return nil }, func(ctx context.Context) error {
		defer close(quit)
		fmt.Println("drains")
		if part == "drain" {
			return nil
		}
		<-ctx.Done()
		fmt.Println("cut")
		return ctx.Err()
	})
	g.Go("mail", func(ctx context.Context) error {
		<-ctx.Done()
		fmt.Println("finishes")
		return nil
	})
	g.Defer("db", func(context.Context) error {
		fmt.Println("cleans")
		if part == "third" {
			select {}
		}
		return nil
	})
	g.Go("ready", func(context.Context) error { fmt.Println("ready"); return nil })
	err := g.Run(context.Background())
	r := g.Report()
	fmt.Println(r.Reason, r.Killed, err)
	if part == "again" {
		time.Sleep(30 * time.Second)
	}
	os.Exit(3)
}

func TestGroupSignals(t *testing.T) {
	t.Parallel()
	const again = 300 * time.Millisecond // more than the 250 of one keypress
	killed := []string{"SIGTERM", "drains", "wait", "SIGTERM", "cut", "finishes", "cleans"}
	for _, tc := range []struct {
		part  string
		steps []string
		died  syscall.Signal
	}{
		{"drain", []string{"SIGTERM", "drains", "finishes", "cleans", "signal terminated false <nil>"}, 0},
		{"kill", append(killed[:len(killed):len(killed)], "signal terminated true web: context canceled"), 0},
		{"third", append(killed[:len(killed):len(killed)], "SIGTERM"), syscall.SIGTERM},
		{"again", append(killed[:len(killed):len(killed)], "signal terminated true web: context canceled", "SIGTERM"), syscall.SIGTERM},
	} {
		t.Run(tc.part, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestGroupChild$")
			cmd.Env = append(os.Environ(), groupChildEnv+"="+tc.part)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			lines := bufio.NewScanner(out)
			for _, step := range append([]string{"ready"}, tc.steps...) {
				switch step {
				case "wait":
					time.Sleep(again)
				case "SIGTERM":
					if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
				default:
					if !lines.Scan() || lines.Text() != step {
						t.Fatalf("child said %q, want %q (%v)", lines.Text(), step, lines.Err())
					}
				}
			}
			if lines.Scan() {
				t.Errorf("child also said %q", lines.Text())
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) {
				t.Fatalf("child ended with %v", err)
			}
			ws := exit.Sys().(syscall.WaitStatus)
			if tc.died != 0 && (!ws.Signaled() || ws.Signal() != tc.died) || tc.died == 0 && ws.ExitStatus() != 3 {
				t.Errorf("child ended with %v, want signal %v or exit 3", exit, tc.died)
			}
		})
	}
}
