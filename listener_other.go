//go:build !linux

package graceful

import "net"

// stopAdmitting reports whether the kernel was made to refuse new connections
// to l while it still completes those under way. Only Linux can; a unix
// socket admits nobody once its file is gone.
func stopAdmitting(l net.Listener, _ bool) bool {
	_, ok := l.(*net.UnixListener)
	return ok
}

// acceptQueued reports whether a connection waits in l's accept queue. Here it
// can't be known.
func acceptQueued(net.Listener) (waits, known bool) { return false, false }

// handshaking reports whether a handshake with l's port is known to be under
// way. Here it isn't.
func handshaking(net.Listener) bool { return false }
