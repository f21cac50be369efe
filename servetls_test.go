package graceful_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// HTTP/2 has not to be asked for: as under net/http, a TLS configuration whose
// NextProtos are empty offers it, and the server speaks it. It used to offer it
// and then close every connection that took the offer.
func TestServeTLSSpeaksHTTP2(t *testing.T) {
	cert := traffic.ServerTLS().Certificates
	for name, tc := range map[string]struct {
		protos []string
		want   string
	}{
		"none named":   {nil, "HTTP/2.0"},
		"HTTP/1 first": {[]string{"http/1.1"}, "HTTP/1.1"}, // the server's order decides
		"HTTP/2 named": {[]string{"h2"}, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &graceful.Server{
				Server: &http.Server{
					TLSConfig: &tls.Config{Certificates: cert, NextProtos: tc.protos},
					Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
				},
				NoSignalHandling: true,
			}
			served := make(chan error, 1)
			go func() { served <- srv.ServeTLS(l, "", "") }()
			tr := &http.Transport{TLSClientConfig: traffic.ClientTLS(), ForceAttemptHTTP2: true}
			resp, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String())
			if err != nil {
				t.Error(err)
			} else if body, err := io.ReadAll(resp.Body); err != nil || string(body) != tc.want {
				t.Errorf("%q, %v", body, err)
			}
			tr.CloseIdleConnections()
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}
