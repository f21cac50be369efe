package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// readyWithin is how long a server may take until it listens.
const readyWithin = 20 * time.Second

// A process is one server that draincheck has started. It is in a process group
// of its own: the signal that stops it goes to the process alone, as a
// supervisor's does, and the final SIGKILL to the whole group.
type process struct {
	cmd       *exec.Cmd
	port, tls int
	out       *tail
	pipe      io.Closer     // where out comes from
	read      chan struct{} // no values sent; closed when all output has been read
	done      chan struct{} // no values sent; closed when it has exited
	exited    time.Time     // set before done is closed
	status    string        // set before done is closed
	stdin     io.Closer     // held open; its end tells our own servers that we are gone
	mark      string        // in the environment of all that it starts
	listener  watch         // of the port, once it listens
}

// startProcess starts argv with its ports filled in.
func startProcess(argv []string, port, tlsPort int, verbose io.Writer) (*process, error) {
	fill := strings.NewReplacer("{port}", strconv.Itoa(port), "{tlsport}", strconv.Itoa(tlsPort))
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = fill.Replace(a)
	}
	p := &process{cmd: exec.Command(args[0], args[1:]...), port: port, tls: tlsPort, out: &tail{also: verbose}, read: make(chan struct{}), done: make(chan struct{})}
	p.mark = "DRAINCHECK_SERVER=" + rand.Text()
	p.cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(port), p.mark)
	ownGroup(p.cmd)
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	// A pipe of our own: exec's would put off the end of Wait for as long as a
	// grandchild holds it.
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr, p.pipe = in, in, out
	started := make(chan error, 1)
	go p.wait(started)
	err = <-started
	in.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	go func() {
		defer close(p.read)
		io.Copy(p.out, out)
	}()
	return p, nil
}

// wait starts p and waits for its end, all on one thread: see ownGroup.
func (p *process) wait(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	err = p.cmd.Wait()
	p.exited, p.status = time.Now(), "0"
	if err != nil {
		p.status = strings.TrimPrefix(err.Error(), "exit status ")
	}
	select {
	case <-p.read:
	case <-time.After(lastWords):
	}
	close(p.done)
}

// lastWords is how long a process's output may take to be read after its exit:
// something that it has started may never close it.
const lastWords = 200 * time.Millisecond

// ready waits until p listens on its port. Where one can look at the process's
// own sockets that is asked, so that a predecessor on the same port is not
// mistaken for it. If there is none (alone), a listener that belongs to somebody
// else will do in the end: Docker's, say.
func (p *process) ready(ctx context.Context, alone bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for began := time.Now(); ; {
		if w, ok := watchListener(p.cmd.Process.Pid, p.port); ok {
			p.listener = w
			return nil
		}
		if !canWatch || alone && time.Since(began) > 2*time.Second {
			c, err := net.DialTimeout("tcp", p.addr(), time.Second)
			if err == nil {
				c.Close()
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("the server exited (status %s) before it served on %s%s", p.status, p.addr(), p.out)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("the server did not listen on %s within %v: does it take {port} or PORT?%s", p.addr(), readyWithin, p.out)
			}
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *process) addr() string { return loopback(p.port) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// stop sends sig and waits for the exit, with SIGKILL after grace.
func (p *process) stop(ctx context.Context, sig syscall.Signal, grace time.Duration) (Stop, error) {
	s := Stop{Signal: signalName(sig), Began: time.Now()}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return s, fmt.Errorf("sending %s: %w", s.Signal, err)
	}
	closed := make(chan time.Time, 1)
	go func() { closed <- p.listener.gone(p.done) }()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		s.Killed, s.KilledAfter = true, ms(time.Since(s.Began))
		p.kill()
	case <-ctx.Done():
		p.kill()
		return s, ctx.Err()
	}
	s.Exit = ms(p.exited.Sub(s.Began))
	s.Closed = min(ms((<-closed).Sub(s.Began)), s.Exit)
	s.Status = p.status
	if !s.Killed {
		s.Left = p.left(ctx)
	}
	return s, nil
}

// died returns an error that says so if p has exited; p may be nil.
func (p *process) died() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return fmt.Errorf("the server exited by itself (status %s)%s", p.status, p.out)
	default:
		return nil
	}
}

// leaveWithin is how long what a server started may live on after its exit.
const leaveWithin = 200 * time.Millisecond

// left returns what p started and what outlives it, by name and number.
func (p *process) left(ctx context.Context) []string {
	for began := time.Now(); ; {
		pids := marked(p.mark)
		if len(pids) == 0 || time.Since(began) > leaveWithin || sleep(ctx, 10*time.Millisecond) != nil {
			var names []string
			for _, pid := range pids {
				names = append(names, fmt.Sprintf("%s (%d)", processName(pid), pid))
			}
			return names
		}
	}
}

// kill ends p and all that it started, and waits for it. What has left p's
// process group, by setsid, is found by p's mark.
func (p *process) kill() {
	killGroup(p.cmd)
	for _, pid := range marked(p.mark) {
		sendSignal(pid, syscall.SIGKILL)
	}
	<-p.done
	p.stdin.Close()
	p.pipe.Close()
}

// How much of a process's output is kept, and how much of it is shown when it
// fails.
const (
	tailBytes  = 16 << 10
	shownBytes = 4 << 10
)

// A tail is the last output of a process.
type tail struct {
	also io.Writer // or nil

	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = t.buf[over:]
	}
	if t.also != nil {
		t.also.Write(b)
	}
	return len(b), nil
}

// String returns the end of it indented, after a colon and a line's end; "" if
// there is none.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := bytes.TrimSpace(t.buf[max(0, len(t.buf)-shownBytes):])
	if len(s) == 0 {
		return ""
	}
	return ":\n    " + string(bytes.ReplaceAll(s, []byte("\n"), []byte("\n    ")))
}

// lines returns those of its whole lines that contain s.
func (t *tail) lines(s string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []string
	for line := range strings.Lines(string(t.buf)) {
		if strings.HasSuffix(line, "\n") && strings.Contains(line, s) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// freePorts returns n ports of 127.0.0.1 that are not in use. They are from below
// those that the kernel gives to connections: a client's connection, of this
// program or another, could take one while the server that it belongs to is
// down between two stops.
func freePorts(n int) ([]int, error) {
	const lowest = 10_000
	below := firstEphemeral()
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		port := 0 // whichever, if there seem to be none
		if tries < 100*n && below > lowest {
			port = lowest + mathrand.IntN(below-lowest)
		}
		ln, err := net.Listen("tcp", loopback(port))
		if err != nil {
			if port != 0 {
				continue
			}
			return nil, err
		}
		defer ln.Close() // together, or the same one would come twice
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// firstEphemeral returns the lowest port that the kernel gives to connections.
func firstEphemeral() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if f := strings.Fields(string(b)); err == nil && len(f) == 2 {
		if n, err := strconv.Atoi(f[0]); err == nil {
			return n
		}
	}
	return 32_768 // Linux's; of others it is higher
}

// ms returns d in milliseconds, as the report has it.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
