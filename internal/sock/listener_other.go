//go:build !linux

package sock

import "net"

// StopAdmitting reports whether the kernel was made to refuse new connections
// to l while it still completes those under way. Only Linux can; a unix
// socket admits nobody once its file is gone.
func StopAdmitting(l net.Listener, _ bool) bool {
	_, ok := l.(*net.UnixListener)
	return ok
}

// AcceptQueued reports whether a connection waits in l's accept queue. Here it
// can't be known.
func AcceptQueued(net.Listener) (waits, known bool) { return false, false }

// Handshaking reports whether a handshake with l's port is known to be under
// way. Here it isn't.
func Handshaking(net.Listener) bool { return false }

// PeerClosed reports whether the peer is known to have closed its side. Here that
// is not known.
func PeerClosed(net.Conn) bool { return false }
