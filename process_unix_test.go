//go:build unix

package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/childproc"
)

// serverChildEnv names the part that this test binary plays as a child.
const serverChildEnv = "GRACEFUL_TEST_SERVER_CHILD"

// TestServerChild is not a test: it is what the child process of
// TestServerSignals runs.
func TestServerChild(t *testing.T) {
	part := os.Getenv(serverChildEnv)
	if part == "" {
		t.Skip("only as a child process")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Path[1:]); err == nil {
			fmt.Println("handling")
			time.Sleep(d)
		}
		io.WriteString(w, "done")
	})
	newServer := func() *graceful.Server {
		return &graceful.Server{
			Server:    &http.Server{Addr: "127.0.0.1:0", Handler: h},
			Timeout:   20 * time.Second,
			IdleGrace: 20 * ms,
			Logger:    graceful.DefaultLogger(),
		}
	}
	var stopped []<-chan struct{}
	start := func(srv *graceful.Server) {
		ch, err := srv.Start(context.Background())
		if err != nil {
			fmt.Println(err)
			os.Exit(9)
		}
		stopped = append(stopped, ch)
		fmt.Println("serving", srv.Addrs()[0])
	}
	end := func() {
		for _, ch := range stopped {
			<-ch
		}
		fmt.Println("stopped")
	}
	switch part {
	case "one":
		start(newServer())
		end()
	case "quit":
		srv := newServer()
		srv.Signals = []os.Signal{syscall.SIGQUIT, syscall.SIGHUP}
		start(srv)
		end()
	case "none":
		srv := newServer()
		srv.Signals = []os.Signal{}
		start(srv)
		end()
	case "second":
		srv := newServer()
		srv.ShutdownInitiated = func() { fmt.Println("draining") }
		start(srv)
		end()
	case "two":
		start(newServer())
		start(newServer())
		end()
	case "descriptors":
		srv := newServer()
		srv.Logger = nil
		srv.LogFunc = func(format string, _ ...any) {
			if strings.HasPrefix(format, "shutdown initiated") {
				fmt.Println("stopping")
			}
		}
		said := false // net/http logs from one goroutine
		srv.ErrorLog = log.New(writerFunc(func(p []byte) (int, error) {
			if !said && strings.Contains(string(p), "too many open files") {
				said = true
				fmt.Println("full")
			}
			return len(p), nil
		}), "", 0)
		released := make(chan struct{})
		srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-released
			io.WriteString(w, "done")
		})
		release := make(chan os.Signal, 1)
		signal.Notify(release, syscall.SIGUSR1)
		go func() { <-release; close(released) }()
		start(srv)
		// Descriptors are given out from the lowest number on.
		next, err := syscall.Dup(0)
		if err != nil {
			fmt.Println(err)
			os.Exit(9)
		}
		syscall.Close(next)
		var lim syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim)
		setLimit(&lim.Cur, next+8)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			fmt.Println(err)
			os.Exit(9)
		}
		fmt.Println("limited")
		end()
	case "veto":
		srv := newServer()
		first := true
		srv.BeforeShutdown = func() bool {
			fmt.Println("asked")
			ok := !first
			first = false
			return ok
		}
		start(srv)
		end()
	case "hangs":
		srv := newServer()
		srv.BeforeShutdown = func() bool {
			fmt.Println("asked")
			select {}
		}
		start(srv)
		end()
		time.Sleep(20 * time.Second) // until a signal ends it
	case "not ours": // the signal's default is the end
		srv := newServer()
		srv.NoSignalHandling = true
		start(srv)
		end()
	case "afterwards":
		srv := newServer()
		start(srv)
		srv.Shutdown(context.Background())
		end()
		time.Sleep(20 * time.Second) // until a signal ends it
	case "run":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Println(err)
			os.Exit(9)
		}
		addr := l.Addr().String()
		l.Close() // Run does not tell its port
		fmt.Println("serving", addr)
		graceful.Run(addr, 10*time.Second, h)
		fmt.Println("stopped")
	case "run fails":
		l, _ := net.Listen("tcp", "127.0.0.1:0")
		graceful.Run(l.Addr().String(), 0, h)
		fmt.Println("Run returned")
	}
	os.Exit(0)
}

// setLimit sets a field of syscall.Rlimit, whose type is not the same everywhere.
func setLimit[T int64 | uint64](field *T, n int) { *field = T(n) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A child is a process with servers in it.
type child struct {
	*childproc.Child
	addr []net.Addr
}

func startChild(t *testing.T, part string, servers int, through ...string) *child {
	t.Helper()
	c := &child{Child: childproc.Start(t, "TestServerChild", serverChildEnv+"="+part, through...)}
	for range servers {
		line := c.Line()
		text, ok := strings.CutPrefix(line, "serving ")
		addr, err := net.ResolveTCPAddr("tcp", text)
		if !ok || err != nil {
			t.Fatalf("child said %q, %v", line, err)
		}
		c.addr = append(c.addr, addr)
	}
	return c
}

// later is when a signal counts as another one than the first.
const later = 300 * ms

// TestServerSignals sends real signals to real servers.
func TestServerSignals(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			c := startChild(t, "one", 1)
			cl := dialClient(t, c.addr[0])
			cl.ask("/500ms")
			c.Says("handling")
			c.Signal(sig)
			sent := time.Now()
			// The same keypress, forwarded by a supervisor; the other kind,
			// for the kernel makes one of two that are alike.
			c.Signal(syscall.SIGINT + syscall.SIGTERM - sig)
			echo := time.Since(sent) < 100*ms
			if got := cl.answer(); echo && (got.err != nil || got.body != "done") {
				t.Errorf("got %+v", got)
			}
			c.Says("stopped")
			log := c.Exit(0, 0)
			if !echo {
				t.Skip("machine too slow for two signals within the window")
			}
			for _, text := range []string{"[graceful] shutdown initiated: ", "1 in flight", "[graceful] stopped after"} {
				if !strings.Contains(log, text) {
					t.Errorf("%q is not in the log:\n%s", text, log)
				}
			}
			if strings.Contains(log, "second signal") {
				t.Errorf("killed by an echo:\n%s", log)
			}
		})
	}
	t.Run("the second kills", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "second", 1)
		cl := dialClient(t, c.addr[0])
		cl.ask("/1h")
		c.Says("handling")
		c.Signal(syscall.SIGTERM)
		c.Says("draining") // the window has begun by now
		time.Sleep(later)
		c.Signal(syscall.SIGINT)
		if got := cl.answer(); got.err == nil {
			t.Errorf("got %+v", got)
		}
		c.Says("stopped")
		log := c.Exit(0, 0)
		if !strings.Contains(log, "killed: second signal: interrupt") || !strings.Contains(log, "GET \"/1h\"") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("two servers", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "two", 2)
		c1, c2 := dialClient(t, c.addr[0]), dialClient(t, c.addr[1])
		c1.ask("/300ms")
		c.Says("handling")
		c2.ask("/300ms")
		c.Says("handling")
		c.Signal(syscall.SIGTERM)
		c1.expect("done")
		c2.expect("done")
		c.Says("stopped")
		log := c.Exit(0, 0)
		if n := strings.Count(log, "shutdown initiated: terminated"); n != 2 {
			t.Errorf("%d servers were stopped:\n%s", n, log)
		}
	})
	t.Run("storm", func(t *testing.T) {
		t.Parallel()
		for try := 1; !signalStorm(t); try++ {
			if try == 5 {
				t.Skip("machine too slow for a storm within the window")
			}
		}
	})
	t.Run("veto", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "veto", 1)
		c.Signal(syscall.SIGTERM)
		c.Says("asked")
		time.Sleep(later)
		dialClient(t, c.addr[0]).get("/", "done")
		c.Signal(syscall.SIGINT)
		c.Says("asked")
		c.Says("stopped")
		c.Exit(0, 0)
	})
	t.Run("ignored", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "one", 1, childproc.Ignoring("INT")...)
		c.Signal(syscall.SIGINT)
		dialClient(t, c.addr[0]).get("/", "done")
		time.Sleep(later)
		c.Signal(syscall.SIGTERM)
		c.Says("stopped")
		if log := c.Exit(0, 0); !strings.Contains(log, "shutdown initiated: terminated") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("BeforeShutdown hangs", func(t *testing.T) {
		// Nothing short of SIGKILL used to end such a process.
		t.Parallel()
		c := startChild(t, "hangs", 1)
		cl := dialClient(t, c.addr[0])
		cl.ask("/1h")
		c.Says("handling")
		c.Signal(syscall.SIGTERM)
		c.Says("asked")
		time.Sleep(later)
		c.Signal(syscall.SIGTERM)
		if got := cl.answer(); got.err == nil {
			t.Errorf("got %+v", got)
		}
		c.Says("stopped")
		c.Signal(syscall.SIGTERM) // the third
		if log := c.Exit(0, syscall.SIGTERM); !strings.Contains(log, "killed: second signal: terminated") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("Signals", func(t *testing.T) {
		t.Parallel()
		for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGHUP} {
			c := startChild(t, "quit", 1)
			c.Signal(sig)
			c.Says("stopped")
			if log := c.Exit(0, 0); !strings.Contains(log, "shutdown initiated: "+sig.String()) {
				t.Errorf("log:\n%s", log)
			}
		}
		c := startChild(t, "quit", 1)
		c.Signal(syscall.SIGTERM) // not one of them
		c.Exit(0, syscall.SIGTERM)
		c = startChild(t, "none", 1)
		c.Signal(syscall.SIGTERM)
		c.Exit(0, syscall.SIGTERM)
		// As under nohup.
		c = startChild(t, "quit", 1, childproc.Ignoring("HUP")...)
		c.Signal(syscall.SIGHUP)
		dialClient(t, c.addr[0]).get("/", "done")
		c.Signal(syscall.SIGQUIT)
		c.Says("stopped")
		c.Exit(0, 0)
	})
	t.Run("NoSignalHandling", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "not ours", 1)
		c.Signal(syscall.SIGTERM)
		c.Exit(0, syscall.SIGTERM)
	})
	t.Run("nothing is left", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "afterwards", 1)
		c.Says("stopped")
		c.Signal(syscall.SIGTERM)
		c.Exit(0, syscall.SIGTERM)
	})
	t.Run("Run", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "run", 1)
		eventually(t, func() (bool, any) { return fetch("http", c.addr[0]) == "done", "it does not serve" })
		c.Signal(syscall.SIGINT)
		c.Says("stopped")
		if log := c.Exit(0, 0); !strings.Contains(log, "[graceful] shutdown initiated: interrupt") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("Run fails", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "run fails", 0)
		if log := c.Exit(1, 0); !strings.Contains(log, "[graceful] listen tcp") || !strings.Contains(log, "in use") {
			t.Errorf("log:\n%s", log)
		}
	})
}

const groupChildEnv = "GRACEFUL_TEST_GROUP_CHILD"

// TestGroupChild is not a test: it is what the child process of
// TestGroupSignals runs.
func TestGroupChild(t *testing.T) {
	part := os.Getenv(groupChildEnv)
	if part == "" {
		t.Skip("only as a child process")
	}
	g := &graceful.Group{Budget: time.Minute}
	quit := make(chan struct{})
	g.AddFuncs("web", func() error { <-quit; return nil }, func(ctx context.Context) error {
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

// signalStorm sends hundreds of signals within the time of one keypress to two
// servers with a request each. It reports whether they came within that time.
func signalStorm(t *testing.T) bool {
	c := startChild(t, "two", 2)
	c1, c2 := dialClient(t, c.addr[0]), dialClient(t, c.addr[1])
	c1.ask("/500ms")
	c.Says("handling")
	c2.ask("/500ms")
	c.Says("handling")
	first := time.Now()
	for range 100 {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGCONT} {
			c.Signal(sig)
		}
		if time.Since(first) > 100*ms {
			c.Kill()
			return false
		}
	}
	c1.expect("done")
	c2.expect("done")
	c.Says("stopped")
	log := c.Exit(0, 0)
	if n := strings.Count(log, "shutdown initiated"); n != 2 || strings.Contains(log, "second signal") {
		t.Errorf("%d servers were stopped:\n%s", n, log)
	}
	return true
}

// TestNoDescriptors: a process that has no descriptor left accepts waiting
// connections as others end, while it serves and also when it is stopped in that
// state. No request is lost.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped=%v", stopped), func(t *testing.T) {
			t.Parallel()
			c := startChild(t, "descriptors", 1)
			c.Says("limited")
			const clients = 40
			got := make(chan reply, clients)
			for range clients { // all are connected before the stop
				cl := dialClient(t, c.addr[0])
				cl.ask("/")
				go func() { got <- cl.answer(); cl.Close() }()
			}
			c.Says("full")
			if stopped {
				c.Signal(syscall.SIGTERM)
				c.Says("stopping")
			}
			c.Signal(syscall.SIGUSR1)
			for range clients {
				if r := <-got; r.err != nil || r.body != "done" {
					t.Errorf("a client got %+v", r)
				}
			}
			if !stopped {
				c.Signal(syscall.SIGTERM)
				c.Says("stopping")
			}
			c.Says("stopped")
			c.Exit(0, 0)
		})
	}
}

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
	l.IdleGrace = 50 * time.Millisecond
	l.LogFunc = func(format string, _ ...any) {
		if strings.HasPrefix(format, "shutdown initiated") {
			fmt.Println("initiated")
		}
	}
	s := (&lineServer{handle: func(_ net.Conn, line string) (string, bool) {
		fmt.Println("at", line)
		return "", false
	}}).start(l)
	fmt.Println(l.Addr())
	<-l.StopChan()
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
			p.Says("at x")
			work := "wait 400ms"
			if tc.second {
				work = "wait 1m"
			}
			c.say(t, work+"\n")
			p.Says("at " + work) // when the signal comes
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

// notifySocket plays the service manager: it returns what the process is
// expected to tell, a datagram at a time.
func notifySocket(t *testing.T) (next func() string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return func() string {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestSystemdNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := graceful.SystemdNotify("READY=1"); err != nil {
		t.Error(err)
	}
	next := notifySocket(t)
	if err := graceful.SystemdNotify("READY=1", "STATUS=at work"); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1\nSTATUS=at work" {
		t.Errorf("%q", got)
	}
}

// The watchdog follows the checks of liveness.
func TestSystemdWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "")
	t.Setenv("WATCHDOG_USEC", "")
	health := graceful.Health{CheckMaxAge: -1}
	if err := graceful.SystemdWatchdog(t.Context(), health.Alive); err != nil {
		t.Error(err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if err := graceful.SystemdWatchdog(t.Context(), health.Alive); err == nil {
		t.Error("no error")
	}

	t.Setenv("WATCHDOG_USEC", "400000")
	next := notifySocket(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	health.AddLiveCheck("loop", func(context.Context) error {
		if asked++; asked <= 3 {
			return nil
		}
		cancel()
		return errors.New("deadlocked")
	})
	if err := graceful.SystemdWatchdog(ctx, health.Alive); err != nil {
		t.Error(err)
	}
	graceful.SystemdNotify("END=1")
	for _, want := range []string{"WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "END=1"} {
		if got := next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestReadyBeforeStopping: a process that is stopped as soon as it is ready does not say
// that it is ready after it has said that it stops.
func TestReadyBeforeStopping(t *testing.T) {
	next := notifySocket(t)
	for i := range 200 {
		srv := &graceful.Server{
			Server:           &http.Server{Addr: "127.0.0.1:0"},
			NoSignalHandling: true,
			IdleGrace:        ms,
			Process:          &graceful.Process{},
		}
		if _, err := srv.Start(bg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 5 * time.Microsecond)
		if err := srv.Shutdown(bg); err != nil {
			t.Error(err)
		}
		graceful.SystemdNotify("STATUS=stopped")
		said := next()
		if said == "READY=1" {
			said = next()
		}
		if last := next(); !strings.HasPrefix(said, "STOPPING=1") || last != "STATUS=stopped" {
			t.Fatalf("%q, then %q", said, last)
		}
	}
}

// TestLateUpgradeSignal: a signal for an upgrade that comes while the process drains is
// refused. The default effect of SIGHUP would end the process, and with it the requests
// in progress.
func TestLateUpgradeSignal(t *testing.T) {
	entered, open := make(chan struct{}), make(chan struct{})
	logged := make(chan string, 100)
	srv := &graceful.Server{
		Server: &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-open
			io.WriteString(w, "served")
		})},
		NoSignalHandling: true,
		LogFunc:          func(format string, args ...any) { logged <- fmt.Sprintf(format, args...) },
		Process:          &graceful.Process{UpgradeSignals: []os.Signal{syscall.SIGHUP}, Path: "/does/not/exist"},
	}
	if _, err := srv.Start(bg); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { got <- fetch("http", srv.Addrs()[0]) }()
	<-entered
	srv.Stop(0)
	for srv.Phase() != graceful.PhaseDraining {
		time.Sleep(ms)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for told, late := false, time.After(time.Minute); !told; {
		select {
		case line := <-logged:
			told = strings.Contains(line, "upgrade failed: a shutdown has begun")
		case <-late:
			t.Fatal("the signal was not received")
		}
	}
	close(open)
	if text := <-got; text != "served" {
		t.Errorf("got %q", text)
	}
	if err := srv.Wait(); err != nil {
		t.Error(err)
	}
}
