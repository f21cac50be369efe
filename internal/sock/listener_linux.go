package sock

import (
	"encoding/binary"
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

// SetReusePort makes lc's sockets share their port with other sockets of the
// same user. Multipath TCP is turned off, for its sockets refuse to be
// steered.
func SetReusePort(lc *net.ListenConfig) error {
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, rc syscall.RawConn) error {
		return control(rc, func(fd int) error {
			return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soReusePort(), 1)
		})
	}
	return nil
}

// StopAdmitting makes the kernel refuse new connections to l, while those
// whose handshake is under way still come into its queue. It reports whether
// it did; the socket is as it was if not.
//
// A socket that is bound to an interface sees only what comes in there, and to
// one that does not exist nothing comes in. With reuse, the other sockets of
// the port are made to get all new connections first: the kernel would still
// choose this one for its share of them, and drop those.
func StopAdmitting(l net.Listener, reuse bool) bool {
	if ul, ok := l.(*net.UnixListener); ok {
		return ul != nil // its file is gone: the caller has removed it
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

// AcceptQueued reports whether a connection waits in l's accept queue, and
// whether that can be known.
func AcceptQueued(l net.Listener) (waits, known bool) {
	const pollIn = 1
	sc, ok := l.(syscall.Conn)
	if !ok {
		return false, false
	}
	is, err := poll(sc, pollIn)
	if errors.Is(err, syscall.EINTR) {
		return true, true // ask again
	}
	return is, err == nil
}

// PeerClosed reports whether the peer of the socket below nc has closed its side,
// though bytes may still wait to be read. Where that can't be known it is false.
func PeerClosed(nc net.Conn) bool {
	const pollRDHup = 0x2000
	sc, ok := Bottom(nc).(syscall.Conn)
	if !ok {
		return false
	}
	is, err := poll(sc, pollRDHup)
	return err != nil && !errors.Is(err, syscall.EINTR) || is // it is closed
}

// poll reports whether one of the events is there, or the socket is hung up.
func poll(sc syscall.Conn, events int16) (is bool, err error) {
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, err
	}
	err = control(rc, func(fd int) error {
		p := struct {
			fd              int32
			events, revents int16
		}{fd: int32(fd), events: events}
		var now syscall.Timespec
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL,
			uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		const pollHup = 0x10
		is = n == 1 && p.revents&(events|pollHup) != 0
		return nil
	})
	return is, err
}

// Handshaking reports whether a handshake with l's port is under way: whether
// the kernel has a connection for it in the state SYN_RECV. It is false where
// that can't be known.
func Handshaking(l net.Listener) bool {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return false // a unix socket's connect has no such state
	}
	return anyInSynRecv(syscall.AF_INET, addr.Port) || anyInSynRecv(syscall.AF_INET6, addr.Port)
}

// anyInSynRecv asks the kernel for the connections of the family in the state
// SYN_RECV whose local port it is, and reports whether there is one. See
// sock_diag(7).
func anyInSynRecv(family byte, port int) bool {
	const (
		netlinkSockDiag  = 4
		sockDiagByFamily = 20
		synRecv          = 1 << 3 // in a set of states
		size             = syscall.NLMSG_HDRLEN + 56
	)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	// The kernel has its answer ready when Sendto returns; this is for a
	// kernel that knows better.
	timeout := syscall.Timeval{Usec: 100_000}
	_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout)

	req := make([]byte, size) // struct nlmsghdr, struct inet_diag_req_v2
	binary.NativeEndian.PutUint32(req[0:], size)
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_DUMP)
	req[16] = family
	req[17] = syscall.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[20:], synRecv)
	binary.BigEndian.PutUint16(req[24:], uint16(port))
	if syscall.Sendto(fd, req, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}) != nil {
		return false
	}
	// The first message says it all: a connection, or the end of the dump.
	reply := make([]byte, 4096)
	for {
		n, _, err := syscall.Recvfrom(fd, reply, 0)
		if err == syscall.EINTR {
			continue
		}
		return err == nil && n >= syscall.NLMSG_HDRLEN &&
			binary.NativeEndian.Uint16(reply[4:]) == sockDiagByFamily
	}
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
