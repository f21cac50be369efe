//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package traffic

import "net"

// peek cannot look here.
func peek(net.Conn) (ended, pending bool) { return false, false }
