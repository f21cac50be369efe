//go:build unix

package graceful

import (
	"net"
	"syscall"
)

// pending reports how many bytes, one at the most, wait in the socket's
// receive queue, so that a request which nobody has been scheduled to read yet
// is seen. It is 0 where nothing waits, where the peer has closed, and where
// nc is no socket.
//
// A peek does what FIONREAD does, and is in package syscall on every Unix.
func pending(nc net.Conn) int {
	sc, ok := socketOf(nc).(syscall.Conn)
	if !ok {
		return 0
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	rc.Control(func(fd uintptr) {
		var b [1]byte
		for {
			var err error
			n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if err != syscall.EINTR {
				break
			}
		}
	})
	return max(n, 0)
}
