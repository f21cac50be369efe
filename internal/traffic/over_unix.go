//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package traffic

import (
	"net"
	"syscall"
)

// peek looks at what nc's kernel holds, without waiting: ended is true if that is
// nothing but the peer's end of the connection, pending if there are bytes.
func peek(nc net.Conn) (ended, pending bool) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, false
	}
	rc.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		ended = err == nil && n == 0 || err == syscall.ECONNRESET || err == syscall.EPIPE
		pending = n > 0
		return true
	})
	return ended, pending
}
