//go:build unix

package sock

import (
	"net"
	"syscall"
)

// Pending reports whether bytes wait in the receive queue of the socket below nc.
// It reports false if there are none, if the peer has closed, and if there is no
// socket below nc.
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
			// A peek, and not FIONREAD, which package syscall does not have on every
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
