package graceful

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"unsafe"
)

// Socket options that package syscall doesn't name.
const (
	soAttachReusePortCBPF = 51 // Linux 4.5
	soBindToIfIndex       = 62 // Linux 5.7, for any user
	noInterface           = 0x7fffffff
)

// soReusePort is 15 but on MIPS.
func soReusePort() int {
	switch runtime.GOARCH {
	case "mips", "mipsle", "mips64", "mips64le":
		return 0x200
	}
	return 15
}

// setReusePort makes lc's sockets share their port with other sockets of the
// same user. Multipath TCP is turned off, for its sockets refuse to be
// steered.
func setReusePort(lc *net.ListenConfig) error {
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, rc syscall.RawConn) error {
		return control(rc, func(fd int) error {
			return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soReusePort(), 1)
		})
	}
	return nil
}

// stopAdmitting makes the kernel refuse new connections to l, while those
// whose handshake is under way still come into its queue. It reports whether
// it did; the socket is as it was if not.
//
// A socket that is bound to an interface sees only what comes in there, and to
// one that does not exist nothing comes in. With reuse, the other sockets of
// the port are made to get all new connections first: the kernel would still
// choose this one for its share of them, and drop those.
func stopAdmitting(l net.Listener, reuse bool) bool {
	if ul, ok := l.(*net.UnixListener); ok {
		return ul != nil // its file is gone: see ownListener.removeFile
	}
	sc, ok := l.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	return control(rc, func(fd int) error {
		if reuse {
			// Without a successor, or where it is refused, what follows
			// does what it does without reuse.
			_ = steerToSuccessor(fd)
		}
		return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soBindToIfIndex, noInterface)
	}) == nil
}

// steerToSuccessor gives all new connections of a port that several sockets
// share to the second that was bound to it. The kernel ignores it while there
// is but one.
func steerToSuccessor(fd int) error {
	program := []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: 1}}
	prog := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	err := syscall.SetsockoptString(fd, syscall.SOL_SOCKET, soAttachReusePortCBPF,
		unsafe.String((*byte)(unsafe.Pointer(&prog)), int(unsafe.Sizeof(prog))))
	runtime.KeepAlive(program)
	return err
}

// acceptQueued reports whether a connection waits in l's accept queue, and
// whether that can be known.
func acceptQueued(l net.Listener) (waits, known bool) {
	sc, ok := bareListener(l).(syscall.Conn)
	if !ok {
		return false, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, false
	}
	err = control(rc, func(fd int) error {
		const pollIn = 1
		p := struct {
			fd              int32
			events, revents int16
		}{fd: int32(fd), events: pollIn}
		var now syscall.Timespec
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL,
			uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		waits = n == 1 && p.revents&pollIn != 0
		return nil
	})
	if errors.Is(err, syscall.EINTR) {
		return true, true // ask again
	}
	return waits, err == nil
}

// control runs f on the descriptor of rc.
func control(rc syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	return nil
}
