package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The service runs as in its image: PID 1, not root, and nothing there but its
// binary. SIGTERM is obeyed, which the kernel leaves to PID 1 to do.
func TestAsPID1(t *testing.T) {
	root := t.TempDir()
	// What the Dockerfile runs.
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s", "-o", filepath.Join(root, "hello"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bin, err := elf.Open(filepath.Join(root, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	for _, p := range bin.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to have another root directory and user")
	}
	os.Chmod(root, 0o755)

	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/hello", "-addr="+addr, "-delay=1s", "-timeout=10s")
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     root,
		Credential: &syscall.Credential{Uid: 65532, Gid: 65532},
		Cloneflags: syscall.CLONE_NEWPID,
	}
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("no PID namespaces here: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })

	get := func(path string) (code int, body string, err error) {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if code, _, _ := get("/readyz"); code == 200 {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("it does not become ready")
		}
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if got := field(status, "NSpid"); !strings.HasSuffix(got, "\t1") {
		t.Errorf("NSpid: %s", got)
	}
	if got := strings.Fields(field(status, "Uid")); strings.Join(got, " ") != "65532 65532 65532 65532" {
		t.Errorf("Uid: %s", got)
	}

	slow := make(chan string, 1)
	go func() {
		_, body, err := get("/?work=2s")
		slow <- body + errText(err)
	}()
	// It is served whether it comes before the signal or during the delay.
	cmd.Process.Signal(syscall.SIGTERM)
	if got := <-slow; got != "Hello.\n" {
		t.Errorf("%q", got)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if log := stderr.String(); !strings.Contains(log, "stopped") {
		t.Errorf("log: %s", log)
	}
}

// freeAddr returns an address that was free a moment ago: the service does not
// say which port it has.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// field returns a field of /proc/PID/status.
func field(status []byte, name string) string {
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), name+":"); ok {
			return v
		}
	}
	return ""
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
