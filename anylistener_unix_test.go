//go:build unix

package graceful_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

const listenerChildEnv = "GRACEFUL_TEST_LISTENER_CHILD"

// TestListenerChild is not a test: it is what the child process of
// TestListenerSignals runs.
func TestListenerChild(t *testing.T) {
	if os.Getenv(listenerChildEnv) == "" {
		t.Skip("only as a child process")
	}
	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := graceful.NewListener(below)
	l.HandleSignals = true
	l.IdleGrace = 50 * time.Millisecond
	s := (&lineServer{}).start(l)
	fmt.Println(l.Addr())
	<-l.Done()
	<-s.done // its connections may be at work on what was killed
	r := l.Report()
	fmt.Printf("%s; %s; %d killed\n", r.Reason, r.KillReason, len(r.Killed))
	os.Exit(3)
}

func TestListenerSignals(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		second bool
		want   string
	}{
		{"one", false, "terminated; ; 0 killed"},
		{"two", true, "terminated; second signal: terminated; 1 killed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestListenerChild$")
			cmd.Env = append(os.Environ(), listenerChildEnv+"=1")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			lines := bufio.NewReader(out)
			addr, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			nc, err := net.Dial("tcp", strings.TrimSpace(addr))
			if err != nil {
				t.Fatal(err)
			}
			c := newLineClient(nc)
			c.ask(t, "x")
			work := "wait 400ms"
			if tc.second {
				work = "wait 1m"
			}
			c.say(t, work+"\n")
			// The command has to be there when the signal comes.
			time.Sleep(50 * time.Millisecond)
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if tc.second {
				time.Sleep(300 * time.Millisecond) // more than the 250 of one keypress
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			} else {
				c.hear(t, "ok "+work)
			}
			c.end(t)
			if got, err := lines.ReadString('\n'); strings.TrimSpace(got) != tc.want {
				t.Errorf("child said %q, %v, want %q", got, err, tc.want)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Errorf("child ended with %v", err)
			}
		})
	}
}
