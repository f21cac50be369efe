// Package sock has operations on sockets that package net does not offer: whether
// bytes wait to be read, whether a connection is in the accept queue, making a
// listening socket refuse new connections, sharing a port with another process.
// Where an operating system does not support an operation, its function returns
// false, or an error.
package sock

import "net"

// Bottom returns the innermost connection that nc wraps, found by NetConn methods.
func Bottom(nc net.Conn) net.Conn {
	for {
		w, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		below := w.NetConn()
		if below == nil {
			return nc
		}
		nc = below
	}
}
