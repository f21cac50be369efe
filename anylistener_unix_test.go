//go:build unix

package graceful_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/childproc"
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
	l.LogFunc = func(format string, _ ...any) {
		if strings.HasPrefix(format, "shutdown initiated") {
			fmt.Println("initiated")
		}
	}
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
			p := childproc.Start(t, "TestListenerChild", listenerChildEnv+"=1")
			nc, err := net.Dial("tcp", p.Line())
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
			p.Signal(syscall.SIGTERM)
			p.Says("initiated")
			if tc.second {
				time.Sleep(300 * time.Millisecond) // more than the 250 of one keypress
				p.Signal(syscall.SIGTERM)
			} else {
				c.hear(t, "ok "+work)
			}
			c.end(t)
			p.Says(tc.want)
			p.Exit(3, 0)
		})
	}
}
