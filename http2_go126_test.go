//go:build !go1.27

package graceful

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/http2wire"
)

// TestHTTP2Entry pins what is assumed of net/http up to Go 1.26, which documents
// none of it: ServeTLS configures HTTP/2 before it opens the files, and leaves a
// function in TLSNextProto that serves HTTP/2 on any connection whose preface has
// been read, and returns at the connection's end.
func TestHTTP2Entry(t *testing.T) {
	srv := &Server{Server: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}, NoSignalHandling: true}
	if err := srv.prepare(); err != nil {
		t.Fatal(err)
	}
	serve := srv.side.hs.TLSNextProto[protoUnencryptedHTTP2]
	if serve == nil {
		t.Fatal("no entry")
	}
	client, server := net.Pipe()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve(srv.side.hs, unencrypted(server), http.NotFoundHandler())
	}()
	var c http2wire.Cursor
	b := make([]byte, 1)
	for ended := false; !ended; _, ended = c.Advance(b) {
		if _, err := client.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	if c.Type() != http2wire.Settings {
		t.Errorf("the first frame is of type %d", c.Type())
	}
	client.Close()
	<-served
	if _, err := server.Write(b); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the connection was left open: %v", err)
	}
}
