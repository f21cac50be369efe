package main

import "slices"

// An expectation is that a test fails with the library, because a difference
// from http.Server that the library documents is what it tests for.
type expectation struct {
	reason   string
	releases []string // nil for all
	tests    []testName
}

var expectations = []expectation{{
	reason: "Hijack returns a wrapper with the methods of *net.TCPConn, so that the drain can wait for it",
	tests: []testName{
		"net/http.TestHijackAfterCloseNotifier/h1",
		"net/http/httputil.TestReverseProxyWebSocketHalfTCP/client_close_read",
		"net/http/httputil.TestReverseProxyWebSocketHalfTCP/client_close_write",
		"net/http/httputil.TestReverseProxyWebSocketHalfTCP/server_close_read",
		"net/http/httputil.TestReverseProxyWebSocketHalfTCP/server_close_write",
	},
}, {
	reason: "the http.Server is the configuration and is not changed: Serve does not fill its TLSNextProto",
	tests: []testName{
		"net/http.TestAutomaticHTTP2_Serve_NoTLSConfig",
		"net/http.TestAutomaticHTTP2_Serve_WithTLSConfig",
		"net/http.TestAutomaticHTTP2_Serve_H2TLSConfig",
	},
}, {
	reason:   "HTTP/2 clients are told to leave by two GOAWAYs; the test wants one that names the last stream",
	releases: []string{"go1.27"},
	tests:    []testName{"net/http/internal/http2.TestServerGracefulShutdown"},
}}

// expectedFailures returns the tests that are expected to fail on a release,
// and the reasons.
func expectedFailures(release string) map[testName]string {
	m := make(map[testName]string)
	for _, e := range expectations {
		if e.releases == nil || slices.Contains(e.releases, release) {
			for _, t := range e.tests {
				m[t] = e.reason
			}
		}
	}
	return m
}
