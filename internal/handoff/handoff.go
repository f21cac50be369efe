// Package handoff hands listening sockets from one process to another: Receive
// takes those that systemd (socket activation) or a predecessor passed to this
// process, and Start starts a successor, passes sockets to it, and waits until
// it is ready.
//
// Both follow the protocol of sd_listen_fds(3): the descriptors are 3, 4 and so
// on, LISTEN_FDS is their number, LISTEN_FDNAMES their names, LISTEN_PID the
// process that they are for. The predecessor cannot know the successor's PID
// before it is started, so that GRACEFUL_HANDOFF takes the place of LISTEN_PID:
// the predecessor's own PID, the descriptor of the pipe by which the successor
// says that it is ready, and which of the sockets the processes of this family
// have opened themselves, as "PID:FD:0110".
//
// Only Unix systems can do this. Elsewhere Receive finds nothing, and Start
// fails with errors.ErrUnsupported.
package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	firstFD = 3 // SD_LISTEN_FDS_START
	maxFDs  = 1 << 12

	envPID     = "LISTEN_PID"
	envFDs     = "LISTEN_FDS"
	envNames   = "LISTEN_FDNAMES"
	envPIDFD   = "LISTEN_PIDFDID" // systemd 257: LISTEN_PID's unique ID
	envHandoff = "GRACEFUL_HANDOFF"

	// readyMessage is what a successor writes to the pipe.
	readyMessage = "READY=1\n"
)

// A Socket is a listening stream socket that is handed from one process to
// another.
type Socket struct {
	net.Listener

	// Name is the socket's name: FileDescriptorName in systemd's unit, and
	// there by default the unit's name. It may be empty when sent, and is then
	// received as "unknown", and must not contain a colon or a control
	// character.
	Name string

	// Owned is true if this process or one of its predecessors opened the
	// socket, and false if systemd did, which goes on holding it.
	Owned bool
}

// Sockets are what was handed to a process. The methods may be called
// concurrently; those of nil find nothing.
type Sockets struct {
	mu    sync.Mutex // guards all fields
	left  []Socket   // not yet taken
	ready *os.File   // the pipe to the predecessor; nil if there is none
	told  bool       // Ready has told the predecessor
}

// Receive returns the sockets that were handed to this process, and removes
// them from the environment, so that no child process takes them for its own.
// Their descriptors are made close-on-exec. It must be called once, early, and
// not concurrently with changes of the environment.
//
// It returns no sockets if there is nothing for this process, and an error if
// the environment makes no sense: the sockets that it names are then closed.
// Descriptors that are not listening stream sockets (datagrams, FIFOs, accepted
// connections) are left open, close-on-exec, for the program to use.
func Receive() (*Sockets, error) {
	defer func() {
		for _, name := range []string{envPID, envFDs, envNames, envPIDFD, envHandoff} {
			os.Unsetenv(name)
		}
	}()
	h, err := parse(os.Getenv, os.Getpid(), os.Getppid())
	if err != nil {
		return nil, fmt.Errorf("sockets handed down: %w", err)
	}
	return receive(h)
}

// Take returns a socket that listens on address, and reports whether there is
// one. Each socket is returned once. The network is "tcp", "tcp4", "tcp6" or
// "unix", and the address is as for net.Listen; a host name in it is resolved.
// Port 0 matches nothing. The addresses of all interfaces ("", "0.0.0.0" and
// "[::]") are taken for the same, within what the network allows.
func (s *Sockets) Take(network, address string) (Socket, bool) {
	if s == nil {
		return Socket{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.left) == 0 {
		return Socket{}, false // without resolving the address
	}
	var listensThere func(net.Addr) bool
	switch network {
	case "unix":
		path, err := filepath.Abs(address)
		if err != nil || strings.HasPrefix(address, "@") {
			path = address
		}
		listensThere = func(a net.Addr) bool {
			u, ok := a.(*net.UnixAddr)
			return ok && (u.Name == address || u.Name == path)
		}
	case "tcp", "tcp4", "tcp6":
		want, err := net.ResolveTCPAddr(network, address)
		if err != nil || want.Port == 0 {
			return Socket{}, false
		}
		listensThere = func(a net.Addr) bool {
			t, ok := a.(*net.TCPAddr)
			return ok && matches(network, want, t)
		}
	default:
		return Socket{}, false
	}
	return s.takeLocked(func(c Socket) bool { return listensThere(c.Addr()) })
}

// TakeName is Take by name: it returns the first socket that has it.
func (s *Sockets) TakeName(name string) (Socket, bool) {
	if s == nil {
		return Socket{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked(func(c Socket) bool { return c.Name == name })
}

func (s *Sockets) takeLocked(wanted func(Socket) bool) (Socket, bool) {
	for i, c := range s.left {
		if wanted(c) {
			s.left = append(s.left[:i:i], s.left[i+1:]...)
			return c, true
		}
	}
	return Socket{}, false
}

// matches reports whether a socket that is bound to have serves want.
func matches(network string, want, have *net.TCPAddr) bool {
	if want.Port != have.Port {
		return false
	}
	is4 := have.IP.To4() != nil
	if network == "tcp4" && !is4 || network == "tcp6" && is4 {
		return false
	}
	if want.IP == nil || want.IP.IsUnspecified() {
		return have.IP.IsUnspecified()
	}
	return want.IP.Equal(have.IP) && want.Zone == have.Zone
}

// Unused returns the sockets that were not taken, by "NAME ADDRESS".
func (s *Sockets) Unused() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var unused []string
	for _, c := range s.left {
		unused = append(unused, c.Name+" "+c.Addr().String())
	}
	return unused
}

// Ready tells the predecessor, if there is one, that this process serves, and
// closes the sockets that were not taken, so that their clients do not wait in vain.
// It reports whether there is one. Further calls do nothing and report false. An error
// means that the predecessor has gone, or has given up on this process and is about to
// end it.
func (s *Sockets) Ready() (told bool, err error) {
	if s == nil {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLeftLocked()
	if s.ready == nil {
		return false, nil
	}
	_, err = s.ready.WriteString(readyMessage)
	s.ready.Close()
	s.ready = nil
	if err != nil {
		return false, fmt.Errorf("tell the predecessor: %w", err)
	}
	s.told = true
	return true, nil
}

// Told reports whether Ready has told a predecessor that this process serves. A
// predecessor that has heard it leaves the sockets to this process: Told waits for a
// Ready that is under way.
func (s *Sockets) Told() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// Close closes what was not taken. If Ready was not called before, a
// predecessor takes it for a failure.
func (s *Sockets) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLeftLocked()
	if s.ready != nil {
		s.ready.Close()
		s.ready = nil
	}
}

func (s *Sockets) closeLeftLocked() {
	for _, c := range s.left {
		c.Close()
	}
	s.left = nil
}

// Options say what Start starts.
type Options struct {
	// Sockets are handed to the successor, and stay open here.
	Sockets []Socket

	// Path is the program. Empty means this process's own, at the place from
	// which it was started: a new file there is a new program. Where that
	// place is reached by a symbolic link that is redirected at a deployment,
	// Path has to be the link.
	Path string

	// Args are its arguments without the name. Nil means this process's.
	Args []string

	// Env is its environment. Nil means this process's.
	Env []string

	// StopTimeout is how long a successor that was not ready in time has
	// between SIGTERM and SIGKILL: it may have begun to serve. Zero means 5 s.
	StopTimeout time.Duration
}

// A Successor is a process that has taken over.
type Successor struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when err is set
	err    error
}

// PID returns the successor's process ID.
func (s *Successor) PID() int { return s.cmd.Process.Pid }

// Terminate asks the successor to end, as SIGTERM does, and does not wait for that.
func (s *Successor) Terminate() { s.cmd.Process.Signal(syscall.SIGTERM) }

// HasSocket reports whether l has a socket that Start can hand on.
func HasSocket(l net.Listener) bool {
	_, ok := l.(syscall.Conn)
	return ok
}

// Exited returns a channel that is closed when the successor has ended.
func (s *Successor) Exited() <-chan struct{} { return s.exited }

// Err says how the successor ended, also if it did so well. It must not be
// called before the channel of Exited is closed.
func (s *Successor) Err() error {
	if s.err == nil {
		return errors.New("exit status 0")
	}
	return s.err
}

// A handover is what the environment says.
type handover struct {
	names   []string // one for each descriptor from firstFD on
	owned   []bool   // as many
	readyFD int      // 0 if systemd is the sender
}

// parse reads the environment of process pid with the parent ppid.
func parse(getenv func(string) string, pid, ppid int) (handover, error) {
	var h handover
	fds, sent := getenv(envFDs), getenv(envHandoff)
	if fds == "" {
		if sent != "" {
			return h, fmt.Errorf("%s is set, but %s is not", envHandoff, envFDs)
		}
		return h, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxFDs {
		return h, fmt.Errorf("%s=%q is not a number of descriptors", envFDs, fds)
	}
	var owned string
	if sent != "" {
		// The predecessor's.
		parts := strings.Split(sent, ":")
		if len(parts) != 3 {
			return h, fmt.Errorf("%s=%q is malformed", envHandoff, sent)
		}
		from, err1 := strconv.Atoi(parts[0])
		ready, err2 := strconv.Atoi(parts[1])
		owned = parts[2]
		if err1 != nil || err2 != nil || ready != firstFD+n || len(owned) != n || strings.Trim(owned, "01") != "" {
			return h, fmt.Errorf("%s=%q is malformed", envHandoff, sent)
		}
		if from != ppid {
			return h, nil // inherited from a process that did not take it
		}
		h.readyFD = ready
	} else {
		// systemd's.
		text := getenv(envPID)
		if text == "" {
			return h, nil // as sd_listen_fds has it
		}
		to, err := strconv.Atoi(text)
		if err != nil || to <= 0 {
			return h, fmt.Errorf("%s=%q is not a process", envPID, text)
		}
		if to != pid {
			return h, nil
		}
	}
	h.names = make([]string, n)
	h.owned = make([]bool, n)
	for i := range n {
		h.names[i] = "unknown" // as sd_listen_fds_with_names has it
		h.owned[i] = owned != "" && owned[i] == '1'
	}
	if names := getenv(envNames); names != "" {
		list := strings.Split(names, ":")
		if len(list) != n {
			return handover{}, fmt.Errorf("%s=%q has %d names for %d descriptors", envNames, names, len(list), n)
		}
		for i, name := range list {
			if name != "" {
				h.names[i] = name
			}
		}
	}
	return h, nil
}

// environ returns base with the variables that hand sockets to a child of the
// process pid.
func environ(base []string, sockets []Socket, pid int) ([]string, error) {
	var names, owned strings.Builder
	for i, s := range sockets {
		if strings.ContainsFunc(s.Name, func(r rune) bool { return r == ':' || r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("the socket name %q has a colon or a control character", s.Name)
		}
		if i > 0 {
			names.WriteByte(':')
		}
		names.WriteString(s.Name)
		if s.Owned {
			owned.WriteByte('1')
		} else {
			owned.WriteByte('0')
		}
	}
	env := make([]string, 0, len(base)+3)
	for _, entry := range base {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case envPID, envFDs, envNames, envPIDFD, envHandoff:
		case "WATCHDOG_PID": // this process's; without it the watchdog is the successor's
		default:
			env = append(env, entry)
		}
	}
	return append(env,
		envFDs+"="+strconv.Itoa(len(sockets)),
		envNames+"="+names.String(),
		fmt.Sprintf("%s=%d:%d:%s", envHandoff, pid, firstFD+len(sockets), owned.String()),
	), nil
}
