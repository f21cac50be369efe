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
	soAttachReusePortCBPF = 51         // Linux 4.5
	soBindToIfIndex       = 62         // Linux 5.7, for any user
	noInterface           = 0x7fffffff // no interface has this index
)

// soReusePort returns SO_REUSEPORT, which is 15, except on MIPS.
func soReusePort() int {
	switch runtime.GOARCH {
	case "mips", "mipsle", "mips64", "mips64le":
		return 0x200
	}
	return 15
}

// SetReusePort makes lc's sockets share their port with other sockets of the
// same user. It turns Multipath TCP off, whose sockets do not support
// steerToSuccessor.
func SetReusePort(lc *net.ListenConfig) error {
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, rc syscall.RawConn) error {
		return control(rc, func(fd int) error {
			return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soReusePort(), 1)
		})
	}
	return nil
}

// StopAdmitting makes the kernel refuse new connections to l, while connections
// whose TCP handshake is under way still enter the accept queue. It reports
// whether it did; otherwise the socket is unchanged. A unix socket admits no
// connections once the caller has removed its file.
//
// It binds the socket to an interface that does not exist, on which no connection
// can arrive. With reuse, it first directs all new connections to another socket
// of the port, because the kernel would still choose this socket for its share of
// them, and drop those.
func StopAdmitting(l net.Listener, reuse bool) bool {
	if ul, ok := l.(*net.UnixListener); ok {
		return ul != nil
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
			// An error is ignored: without a successor, the call below suffices.
			_ = steerToSuccessor(fd)
		}
		return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soBindToIfIndex, noInterface)
	}) == nil
}

// steerToSuccessor makes the kernel give all new connections of a port that several
// sockets share to the second socket that was bound to it. It has no effect while
// there is only one socket.
func steerToSuccessor(fd int) error {
	program := []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: 1}}
	prog := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	err := syscall.SetsockoptString(fd, syscall.SOL_SOCKET, soAttachReusePortCBPF,
		unsafe.String((*byte)(unsafe.Pointer(&prog)), int(unsafe.Sizeof(prog))))
	runtime.KeepAlive(program)
	return err
}

// AcceptQueued reports whether a connection is in l's accept queue, and whether
// that is known.
func AcceptQueued(l net.Listener) (waits, known bool) {
	const pollIn = 1
	sc, ok := l.(syscall.Conn)
	if !ok {
		return false, false
	}
	is, err := poll(sc, pollIn)
	if errors.Is(err, syscall.EINTR) {
		return true, true // the caller tries again
	}
	return is, err == nil
}

// PeerClosed reports whether the peer of the socket below nc is known to have
// closed its side. Bytes may still wait to be read.
func PeerClosed(nc net.Conn) bool {
	const pollRDHup = 0x2000
	sc, ok := Bottom(nc).(syscall.Conn)
	if !ok {
		return false
	}
	is, err := poll(sc, pollRDHup)
	return err != nil && !errors.Is(err, syscall.EINTR) || is // an error: nc is closed
}

// poll reports whether one of the events or POLLHUP is pending, without blocking.
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

// Handshaking reports whether a TCP handshake with l's port is known to be under
// way: whether the kernel has a connection for the port in the state SYN_RECV.
func Handshaking(l net.Listener) bool {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return false // connecting to a unix socket has no handshake
	}
	return anyInSynRecv(syscall.AF_INET, addr.Port) || anyInSynRecv(syscall.AF_INET6, addr.Port)
}

// anyInSynRecv reports whether the kernel has a connection of the address family
// in the state SYN_RECV whose local port is port. See sock_diag(7).
func anyInSynRecv(family byte, port int) bool {
	const (
		netlinkSockDiag  = 4
		sockDiagByFamily = 20
		synRecv          = 1 << 3 // TCP_SYN_RECV as a bit in a set of states
		size             = syscall.NLMSG_HDRLEN + 56
	)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	// The kernel's answer is ready when Sendto returns. The timeout is a safeguard.
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
	// The first message suffices: it is a connection, or the end of the dump.
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

// control calls f with the file descriptor of rc.
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
