//go:build unix

package graceful_test

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/childproc"
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
			c := childproc.Start(t, "TestGroupChild", groupChildEnv+"="+tc.part)
			for _, step := range append([]string{"ready"}, tc.steps...) {
				switch step {
				case "wait":
					time.Sleep(again)
				case "SIGTERM":
					c.Signal(syscall.SIGTERM)
				default:
					c.Says(step)
				}
			}
			c.Exit(3, tc.died)
		})
	}
}
