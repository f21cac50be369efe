//go:build unix

package handoff

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// childEnv names the part that this test binary plays as a child, childAddr
// the addresses that it serves, separated by commas.
const (
	childEnv  = "HANDOFF_TEST_CHILD"
	childAddr = "HANDOFF_TEST_ADDR"
)

// An account is what a child says to everybody who connects.
type account struct {
	PID     int
	Name    string
	Owned   bool
	Unused  []string
	Left    []string // variables of the protocol that are still set
	Inherit []int    // descriptors that a child of the child's would inherit
}

// TestChild is not a test: it is what the child processes run.
func TestChild(t *testing.T) {
	part := os.Getenv(childEnv)
	if part == "" {
		t.Skip("only as a child process")
	}
	time.AfterFunc(2*time.Minute, func() { os.Exit(1) }) // no child outlasts the tests for long
	switch part {
	case "exits":
		os.Exit(3)
	case "crashes":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "exits, pipe held":
		sleep := exec.Command("sleep", "100")
		sleep.ExtraFiles = []*os.File{os.NewFile(3, ""), os.NewFile(4, "")}
		if sleep.Start() == nil {
			os.WriteFile(os.Getenv(childAddr), []byte(strconv.Itoa(sleep.Process.Pid)), 0o600)
		}
		os.Exit(4)
	case "hangs":
		signal.Ignore(syscall.SIGTERM)
		select {}
	case "yields": // not ready either, but it obeys
		select {}
	case "replaced":
		path := os.Args[0]
		if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, []byte("#!/bin/sh\nexit 33\n"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if _, err := Start(t.Context(), Options{Args: []string{"-test.run=^$"}}); err == nil || !strings.Contains(err.Error(), "exit status 33") {
			t.Error(err)
		}
		return
	}

	s, err := Receive()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(5)
	}
	if part == "closes" {
		s.Close()
		select {}
	}
	a := account{PID: os.Getpid(), Inherit: inheritable()}
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "LISTEN_") || name == envHandoff {
			a.Left = append(a.Left, name)
		}
	}
	var taken []Socket
	for addr := range strings.SplitSeq(os.Getenv(childAddr), ",") {
		network := "tcp"
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		c, ok := s.Take(network, addr)
		if !ok {
			c, ok = s.TakeName(addr)
		}
		if !ok {
			fmt.Fprintln(os.Stderr, "nothing handed down for", addr)
			os.Exit(6)
		}
		taken = append(taken, c)
	}
	a.Unused = s.Unused()
	for _, c := range taken {
		go serve(c, a, taken)
	}
	if _, err := s.Ready(); err != nil {
		os.Exit(7)
	}
	select {}
}

// serve answers with the account; "upgrade" starts a successor first, after
// which the process ends.
func serve(c Socket, a account, all []Socket) {
	a.Name, a.Owned = c.Name, c.Owned
	for {
		conn, err := c.Accept()
		if err != nil {
			return
		}
		command, _ := bufio.NewReader(conn).ReadString('\n')
		if command == "upgrade\n" {
			// The process reports a failure by its exit status: no test reads this connection.
			if _, err := Start(context.Background(), Options{Sockets: all}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(8)
			}
		}
		json.NewEncoder(conn).Encode(a)
		conn.Close()
		if command != "\n" {
			os.Exit(0)
		}
	}
}

// inheritable returns the descriptors above 2 that are not close-on-exec.
func inheritable() (fds []int) {
	for fd := 3; fd < 64; fd++ {
		// F_GETFD; the number is the same on all systems.
		if flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), 1, 0); errno == 0 && flags&syscall.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// TestReplacedProgram: a new file at the path of the program is what is started, also if
// the old one was renamed.
func TestReplacedProgram(t *testing.T) {
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, program, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"=replaced")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func ask(network, addr, command string) (a account, err error) {
	c, err := net.DialTimeout(network, addr, 10*time.Second)
	if err != nil {
		return a, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintln(c, command); err != nil {
		return a, err
	}
	return a, json.NewDecoder(c).Decode(&a)
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// start starts a successor that plays part, with a time limit.
func start(t *testing.T, limit time.Duration, part, addr string, sockets ...Socket) (*Successor, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := Start(ctx, Options{
		Sockets:     sockets,
		Args:        []string{"-test.run=^TestChild$"},
		Env:         append(os.Environ(), childEnv+"="+part, childAddr+"="+addr),
		StopTimeout: 50 * time.Millisecond,
	})
	if err == nil {
		t.Cleanup(func() {
			s.cmd.Process.Kill()
			<-s.Exited()
		})
	}
	return s, err
}

// A successor serves what it was handed, by address and by name, over TCP and
// over a unix socket; what it does not take is closed when it is ready.
func TestHandoff(t *testing.T) {
	web := listen(t, "tcp", "127.0.0.1:0")
	admin := listen(t, "tcp", "127.0.0.1:0")
	spare := listen(t, "tcp", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "s")
	local := listen(t, "unix", path)
	before := descriptors(t)
	s, err := start(t, time.Minute, "serves", web.Addr().String()+",admin,"+path,
		Socket{web, "web", true}, Socket{admin, "admin", false}, Socket{spare, "spare", true}, Socket{local, "", true})
	if err != nil {
		t.Fatal(err)
	}
	// One may be the successor's: os holds it until the process has ended.
	if after := descriptors(t); after > before+1 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	unused := []string{"spare " + spare.Addr().String()}
	local.(*net.UnixListener).SetUnlinkOnClose(false)
	for _, l := range []net.Listener{web, admin, spare, local} {
		// An Accept that is under way comes back from Close only if the
		// socket is still non-blocking.
		accepting := make(chan error)
		go func() {
			_, err := l.Accept()
			accepting <- err
		}()
		l.Close()
		if err := <-accepting; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		l     net.Listener
		name  string
		owned bool
	}{{web, "web", true}, {admin, "admin", false}, {local, "unknown", true}} {
		got, err := ask(tt.l.Addr().Network(), tt.l.Addr().String(), "")
		if diff := cmp.Diff(account{PID: s.PID(), Name: tt.name, Owned: tt.owned, Unused: unused, Inherit: inheritable()}, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", tt.name, err, diff)
		}
	}
	if c, err := net.Dial("tcp", spare.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a socket that was not taken: %v, %v", c, err)
	}
}

// descriptors counts those of this process, or returns 0.
func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Log("descriptors can't be counted here")
	}
	return len(entries)
}

// Start does not make the sockets blocking, as exec does to those that are
// given to it with package net's File.
func TestStaysNonblocking(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	start(t, time.Minute, "exits", "", Socket{l, "web", true})
	rc, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) {
		const getFL = 3 // the number is the same on all systems
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, getFL, 0)
		if errno != 0 || flags&syscall.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v", flags, errno)
		}
	})
}

// A successor that fails leaves everything as it was, and nothing of itself.
func TestFailures(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	socket := Socket{l, "web", true}
	pidFile := filepath.Join(t.TempDir(), "pid")
	t.Cleanup(func() {
		if b, err := os.ReadFile(pidFile); err == nil {
			if pid, err := strconv.Atoi(string(b)); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	for _, tt := range []struct {
		part, addr, want string
		limit            time.Duration
	}{
		{"exits", "", "exit status 3", time.Minute},
		{"crashes", "", "signal: killed", time.Minute},
		{"exits, pipe held", pidFile, "exit status 4", time.Minute},
		{"hangs", "", "context deadline exceeded (then: signal: killed)", time.Second},
		{"yields", "", "context deadline exceeded (then: signal: terminated)", time.Second},
		{"closes", "", `it closed the pipe after "" (then: `, time.Minute},
		{"serves", "127.0.0.1:1", "exit status 6", time.Minute},
	} {
		t.Run(tt.part, func(t *testing.T) {
			before := descriptors(t)
			began := time.Now()
			s, err := start(t, tt.limit, tt.part, tt.addr, socket)
			if took := time.Since(began); tt.limit == time.Minute && took > tt.limit/2 {
				t.Errorf("after %v, by the time limit", took)
			}
			if err == nil || !strings.Contains(err.Error(), "did not become ready: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if s != nil {
				t.Errorf("returned %v", s)
			}
			if after := descriptors(t); after > before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
			var ws syscall.WaitStatus
			if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); err == nil {
				t.Errorf("process %d is left", pid)
			}
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("not now"))
	if _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Start(t.Context(), Options{Path: "/does/not/exist", Sockets: []Socket{socket}}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Start(t.Context(), Options{Sockets: []Socket{{Listener: struct{ net.Listener }{l}}}}); err == nil || !strings.Contains(err.Error(), "has no socket") {
		t.Error(err)
	}
	l.Close()
	if _, err := Start(t.Context(), Options{Sockets: []Socket{socket}}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A chain of successors refuses no client.
func TestChain(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	addr := l.Addr().String()
	t.Setenv(childEnv, "serves") // the children hand it on
	t.Setenv(childAddr, addr)
	first, err := start(t, time.Minute, "serves", addr, Socket{l, "web", true})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()

	var clients sync.WaitGroup
	var stop atomic.Bool
	var asked atomic.Int64
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				if _, err := ask("tcp", addr, ""); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
					// The children end as soon as they have a successor, with
					// the connections that they have accepted: draining is
					// not this package's part.
					t.Error(err)
				}
				asked.Add(1)
			}
		})
	}
	pids := []int{first.PID()}
	const upgrades = 10
	for range upgrades {
		a, err := ask("tcp", addr, "upgrade")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(pids, a.PID) {
			pids = append(pids, a.PID)
		}
	}
	stop.Store(true)
	clients.Wait()
	last, err := ask("tcp", addr, "quit")
	if err != nil || slices.Contains(pids, last.PID) || len(pids) != upgrades || last.Name != "web" || !last.Owned || last.Left != nil {
		t.Errorf("%v, then %+v, %v", pids, last, err)
	}
	t.Logf("%d clients", asked.Load())
}

// systemd's form: LISTEN_PID, and sockets and files that are not for us.
func TestActivation(t *testing.T) {
	web := listen(t, "tcp", "127.0.0.1:0")
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	fifo, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	defer w.Close()
	webFile, err := duplicate(web)
	if err != nil {
		t.Fatal(err)
	}
	defer webFile.Close()
	udpFile, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer udpFile.Close()

	// The shell knows the PID that the program will have.
	run := func(fds string, files ...*os.File) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@"`, os.Args[0], "-test.run=^TestChild$")
		cmd.Env = append(os.Environ(), childEnv+"=serves", childAddr+"="+web.Addr().String(), envFDs+"="+fds)
		cmd.ExtraFiles = files
		return cmd
	}
	cmd := run("3", udpFile, fifo, webFile)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	web.Close()
	got, err := ask("tcp", web.Addr().String(), "quit")
	if err != nil {
		cmd.Process.Kill()
	}
	if diff := cmp.Diff(account{PID: cmd.Process.Pid, Name: "unknown", Inherit: inheritable()}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}

	// A descriptor that is not open.
	cmd = run("40", webFile)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "descriptor 42 (unknown)") {
		t.Errorf("%v: %s", err, out)
	}
}
