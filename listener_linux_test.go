package graceful_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/seed-121bbccf/graceful"
)

// TestAbstractUnixSocket: an abstract socket has no file, so a file that is
// called like it is another's. Closing the socket used to remove it.
func TestAbstractUnixSocket(t *testing.T) {
	t.Chdir(t.TempDir())
	name := fmt.Sprintf("@graceful-%d", os.Getpid())
	if err := os.WriteFile(name, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"closed", "served"} {
		l, err := graceful.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		if how == "closed" {
			l.Close()
		} else {
			srv := &graceful.Server{Server: &http.Server{}, NoSignalHandling: true, IdleGrace: -1}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(l) }()
			nc, err := net.Dial("unix", name)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(nc, "GET / HTTP/1.0\r\n\r\n")
			if _, err := nc.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			nc.Close()
			srv.Shutdown(context.Background())
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%s: the file is gone: %v", how, err)
		}
	}
}
