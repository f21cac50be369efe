//go:build unix

package sock

import (
	"net"
	"syscall"
)

// Pending reports whether bytes wait in the receive queue of the socket below
// nc. It is false where nothing waits, where the peer has closed, and where there
// is no socket at the end of nc's NetConn methods.
func Pending(nc net.Conn) bool {
	sc, ok := Bottom(nc).(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	rc.Control(func(fd uintptr) {
		var b [1]byte
		for {
			// A peek does what FIONREAD does, and is in package syscall on every
			// Unix.
			var err error
			n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if err != syscall.EINTR {
				break
			}
		}
	})
	return n > 0
}
