//go:build !unix

package sock

import "net"

// Pending reports whether bytes are known to wait to be read. On this operating
// system that is not known.
func Pending(net.Conn) bool { return false }
