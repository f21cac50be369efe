//go:build !go1.27

package graceful

// Up to Go 1.26 net/http serves HTTP/2 over TLS on a *tls.Conn only. A connection
// that is tracked above TLS is served by TLSNextProto["unencrypted_http2"] instead,
// which is not documented. TestHTTP2Entry tests the assumptions about it.
//
// This file can be removed when Go 1.26 is not supported any more.

// http2TakesAnyConn reports whether net/http serves HTTP/2 by itself on a connection
// that has a ConnectionState method.
const http2TakesAnyConn = false

// http2KeepsContext reports whether net/http's HTTP/2 leaves the http.Server in the
// context as it is.
const http2KeepsContext = false
