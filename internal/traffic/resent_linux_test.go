//go:build amd64 || arm64

package traffic_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// resending reports whether the kernel has sent a SYN to the port of 127.0.0.1
// more than once. See proc_net_tcp in the kernel's documentation.
func resending(t *testing.T, port int) bool {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const synSent = "02"
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port)) && f[3] == synSent && strings.Trim(f[6], "0") != "" {
			return true
		}
	}
	return false
}

// TestResent: a connection that the kernel let wait is counted.
func TestResent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	rc, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }) // which has room for one
	if err != nil {
		t.Fatal(err)
	}
	full, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	run, err := traffic.Load{Addr: ln.Addr().String(), Kind: traffic.KeepAlive, Clients: 1, Limit: 2}.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !resending(t, ln.Addr().(*net.TCPAddr).Port); {
		if time.Now().After(end) {
			t.Fatal("no SYN was sent again")
		}
		time.Sleep(10 * time.Millisecond)
	}
	srv := &http.Server{Handler: new(traffic.Handler)}
	go srv.Serve(ln)
	defer srv.Close()
	<-run.Done()
	if res := run.Stop(); res.Answered != 2 || res.Resent != 1 {
		t.Errorf("%d connections whose SYN was sent again: %v", res.Resent, res)
	}
}
