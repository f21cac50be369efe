//go:build amd64 || arm64

package traffic

import (
	"net"
	"syscall"
	"unsafe"
)

// synResent reports whether nc's peer let the first SYN go unanswered, so that
// it was sent again after a second. It is for a connection over which nothing
// else has been sent.
func synResent(nc net.Conn) bool {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return false
	}
	rc, err := tc.SyscallConn()
	if err != nil {
		return false
	}
	var info syscall.TCPInfo
	err = rc.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(info))
		syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return err == nil && info.Total_retrans > 0
}
