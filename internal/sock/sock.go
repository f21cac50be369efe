// Package sock asks and tells sockets what package net does not offer: whether
// bytes wait to be read, whether a connection waits to be accepted, that a
// listening socket shall admit nobody any more, that another process may bind the
// same port. What an operating system can't do, its functions say.
package sock

import "net"

// Bottom returns what lies at the bottom of nc's NetConn methods.
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
