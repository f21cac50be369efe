//go:build unix

package interop

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/childproc"
)

const tableflipEnv = "GRACEFUL_TEST_TABLEFLIP"

// TestTableflipChild is not a test: it is each process of TestTableflip. SIGHUP
// makes it start its successor.
func TestTableflipChild(t *testing.T) {
	if os.Getenv(tableflipEnv) == "" {
		t.Skip("only as a child process")
	}
	time.AfterFunc(time.Minute, func() { os.Exit(9) }) // the parent has failed long ago
	upg, err := tableflip.New(tableflip.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer upg.Stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	l, err := upg.Listen("tcp", "127.0.0.1:0") // the one that was inherited, if there is one
	if err != nil {
		t.Fatal(err)
	}
	srv := &graceful.Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "ok")
		})},
		IdleGrace: grace,
	}
	g := newGroup()
	g.NoSignalHandling = false
	g.Add("web", srv, func() error { return srv.Serve(l) })
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Println("serving", l.Addr(), os.Getpid())
	if err := upg.Ready(); err != nil {
		t.Fatal(err)
	}
	go func() {
		upg.WaitForParent(t.Context()) // before that there is no upgrade
		for range hup {
			if err := upg.Upgrade(); err != nil {
				fmt.Println("upgrade:", err)
			}
		}
	}()
	go func() { <-upg.Exit(); g.Stop("upgraded") }()
	fmt.Println("stopped", os.Getpid(), g.Wait(), len(srv.Report().Killed))
	os.Exit(0)
}

// TestTableflip: processes that hand a socket on, one to the next. No request is
// lost, and no client is refused. The socket is shared with the successor, so
// OwnsListener is not set.
func TestTableflip(t *testing.T) {
	var first *childproc.Child
	pid := 0 // of the process that serves
	play(t, func() server {
		if first == nil {
			first = childproc.Start(t, "TestTableflipChild", tableflipEnv+"=1")
		} else if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		var s server
		if _, err := fmt.Sscanf(first.Line(), "serving %s %d", &s.addr, &pid); err != nil {
			t.Fatal(err)
		}
		mine := pid
		s.stop = func() {
			syscall.Kill(mine, syscall.SIGTERM) // the last has no successor
			first.Says(fmt.Sprint("stopped ", mine, " <nil> 0"))
		}
		return s
	}, func(l *load, n int) { http1Client(l, n, nil, "ok") }).wantNoLoss()
}
