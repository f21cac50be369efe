//go:build !linux

package sock

import "net"

// StopAdmitting reports whether the kernel refuses new connections to l while it
// still completes TCP handshakes under way. That is supported on Linux only. A unix
// socket admits no connections once the caller has removed its file.
func StopAdmitting(l net.Listener, _ bool) bool {
	_, ok := l.(*net.UnixListener)
	return ok
}

// AcceptQueued reports whether a connection is in l's accept queue, and whether
// that is known. On this operating system it is not.
func AcceptQueued(net.Listener) (waits, known bool) { return false, false }

// Handshaking reports whether a TCP handshake with l's port is known to be under
// way. On this operating system that is not known.
func Handshaking(net.Listener) bool { return false }

// PeerClosed reports whether the peer is known to have closed its side. On this
// operating system that is not known.
func PeerClosed(net.Conn) bool { return false }
