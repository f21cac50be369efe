//go:build go1.27

package graceful

// http2TakesAnyConn reports whether net/http serves HTTP/2 by itself on a connection
// that has a ConnectionState method. From Go 1.27 on that is documented, see
// http.Server.Serve.
const http2TakesAnyConn = true

// http2KeepsContext reports whether net/http's HTTP/2 leaves the http.Server in the
// context as it is.
const http2KeepsContext = true
