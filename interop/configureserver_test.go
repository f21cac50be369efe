package interop

//lint:file-ignore SA1019 programs still use the deprecated function

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"

	"golang.org/x/net/http2"

	"github.com/seed-121bbccf/graceful"
)

// TestConfigureServer: a program that brings golang.org/x/net's HTTP/2 gets that,
// and loses nothing. .ci/run plays it with the x/net of go.mod, which from 0.55
// on hands over to net/http where that is Go 1.27's, and with an older one, which
// never does (oldxnet.mod).
func TestConfigureServer(t *testing.T) {
	const streams = 7 // as no default has it
	cert, clientTLS := certificate(t)
	play(t, func() server {
		srv := &graceful.Server{
			Server: &http.Server{
				TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(w, r.Body)
					io.WriteString(w, r.Proto)
				}),
			},
			IdleGrace: grace,
		}
		if err := http2.ConfigureServer(srv.Server, &http2.Server{MaxConcurrentStreams: streams}); err != nil {
			t.Fatal(err)
		}
		l := listen(t)
		g := newGroup()
		g.Add("web", srv, func() error { return srv.ServeTLS(l, "", "") })
		s := start(t, l.Addr().String(), g)
		if got, err := streamLimit(s.addr, clientTLS); err != nil || got != streams {
			t.Errorf("the server allows %d streams, %v, want the configured %d", got, err, streams)
		}
		return s
	}, func(l *load, n int) {
		tr := &http.Transport{DialContext: l.dialContext, TLSClientConfig: clientTLS.Clone(), ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		for i := 0; !l.ended(); i++ {
			l.exchange(post(tr, "https://example.com/", message(n, i), "HTTP/2.0"))
		}
	}).wantNoLoss()
}

// streamLimit returns how many streams a server allows at once by its SETTINGS.
func streamLimit(addr string, cfg *tls.Config) (uint32, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	nc, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	io.WriteString(nc, http2.ClientPreface)
	fr := http2.NewFramer(nc, nc)
	fr.WriteSettings()
	f, err := fr.ReadFrame()
	if err != nil {
		return 0, err
	}
	s, ok := f.(*http2.SettingsFrame)
	if !ok {
		return 0, fmt.Errorf("first frame: %v", f)
	}
	v, _ := s.Value(http2.SettingMaxConcurrentStreams)
	return v, nil
}
