package graceful

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Listen is net.Listen for a socket that is going to be given to a Server or a
// Listener, and to nobody else: a socket that this process opened and shares
// with no other can be shut without losing the clients that have just
// connected (see Server.OwnsListener). The network must be "tcp", "tcp4",
// "tcp6" or "unix".
//
// The file of a unix socket is removed when the listener is closed, as
// net.Listen's is, unless another socket has taken its place since. An abstract
// socket, whose name begins with "@", has none.
func Listen(network, addr string) (net.Listener, error) {
	return listen(network, addr, false, 0)
}

// listen opens a listener of our own. A negative keepAlive turns TCP
// keep-alive off, 0 leaves it to package net.
func listen(network, addr string, reusePort bool, keepAlive time.Duration) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, fmt.Errorf("graceful: listen: %w", net.UnknownNetworkError(network))
	}
	lc := net.ListenConfig{KeepAlive: keepAlive}
	if reusePort && network != "unix" {
		if err := setReusePort(&lc); err != nil {
			return nil, fmt.Errorf("graceful: listen on %s: %w", addr, err)
		}
	}
	l, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	own := &ownListener{Listener: l}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false) // see removeFile
		own.path = ul.Addr().String()
		// An abstract socket has no file: a file of that name is another's.
		if !strings.HasPrefix(own.path, "@") {
			own.file, _ = os.Lstat(own.path)
		}
	}
	return own, nil
}

// An ownListener is a socket that this process opened and shares with nobody.
type ownListener struct {
	net.Listener

	// A unix socket's file, as it was when the socket was bound.
	path string
	file os.FileInfo // nil for others
}

// Close closes the socket.
func (l *ownListener) Close() error {
	l.removeFile()
	return l.Listener.Close()
}

// removeFile removes a unix socket's file, if it is still this socket's.
func (l *ownListener) removeFile() {
	if l.file == nil {
		return
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		os.Remove(l.path)
	}
}

// bareListener returns the listener below those of our own.
func bareListener(l net.Listener) net.Listener {
	for {
		switch below := l.(type) {
		case *ownListener:
			l = below.Listener
		case *tlsListener: // below a LimitListener
			l = below.Listener
		default:
			return l
		}
	}
}

// isOwn reports whether the socket of l is known to be ours alone.
func isOwn(l net.Listener) bool {
	if t, ok := l.(*tlsListener); ok {
		l = t.Listener
	}
	_, own := l.(*ownListener)
	return own
}
