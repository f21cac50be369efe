//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sock

import (
	"net"
	"syscall"
)

// SetReusePort makes lc's sockets share their port with other sockets of the
// same user. It turns Multipath TCP off.
func SetReusePort(lc *net.ListenConfig) error {
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEPORT, 1)
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
	return nil
}
