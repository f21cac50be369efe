package graceful

import (
	"crypto/tls"
	"io"
	"net/http"
	"runtime"
	"testing"
)

// TestHTTP2Assumptions fails when a new Go has changed what http2guard.go
// relies on. Servers are then as net/http makes them: they work, and lose what
// net/http loses.
func TestHTTP2Assumptions(t *testing.T) {
	reason := http2Probed()
	if reason == "" {
		return
	}
	t.Fatalf(`%s: %s.
What to do:
 1. Look in $(go env GOROOT)/src/net/http for "unencrypted_http2": the entry of
    TLSNextProto, the method UnencryptedNetConn, the preface that is read
    already, and RegisterOnShutdown(... startGracefulShutdown).
 2. If they have moved, follow them in http2guard.go; probeHTTP2 is the test.
 3. If they are gone, see whether net/http now sends GOAWAY in two steps itself
    (golang/go issues with "GOAWAY" in the title): then the layer can go too.
 4. Until then users of this Go get one GOAWAY, and Report says so; tell them in
    CHANGELOG.md.`, runtime.Version(), reason)
}

// TestHTTP2ProbeFindsOut: what another Go might do must not be taken for good.
func TestHTTP2ProbeFindsOut(t *testing.T) {
	real, err := configureHTTP2(new(http.Server))
	if err != nil {
		t.Fatal(err)
	}
	for name, serve := range map[string]nextProto{
		"panics":           func(*http.Server, *tls.Conn, http.Handler) { panic("not this way") },
		"returns":          func(*http.Server, *tls.Conn, http.Handler) {},
		"takes it for TLS": func(_ *http.Server, c *tls.Conn, _ http.Handler) { io.Copy(io.Discard, c) },
		"does not send GOAWAY": func(hs *http.Server, c *tls.Conn, h http.Handler) {
			real.TLSNextProto[protoUnencryptedHTTP2](hs, c, h)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if reason := probeHTTP2(serve, func() {}); reason == "" {
				t.Error("taken for good")
			}
		})
	}
	if http2Assumed(nil) == "" {
		t.Error("no entry at all is taken for good")
	}
}
