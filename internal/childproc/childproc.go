//go:build unix

// Package childproc plays a part of a test in a process of its own: signals are
// sent to it, and what it prints is compared.
package childproc

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Child is this test binary once more, running a single test of its own.
type Child struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *os.File
	lines  *bufio.Scanner  // of stdout
	stderr strings.Builder // read only when it has been waited for
}

// Start runs the test named test, with env, as "NAME=value", added to the
// environment: that tells the test that it is the child. It does not outlast t.
//
// through, if given, is a command that is started instead and gets the child's
// command line as arguments. It has to become the child: see Ignoring.
func Start(t *testing.T, test, env string, through ...string) *Child {
	t.Helper()
	args := append(through, os.Args[0], "-test.run=^"+test+"$")
	c := &Child{t: t, cmd: exec.Command(args[0], args[1:]...)}
	c.cmd.Env = append(os.Environ(), env)
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Where the tests themselves run with signals ignored (a shell's
	// background job), the child would too: what is caught here is at its
	// default there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err = c.cmd.Start()
	signal.Stop(caught)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	c.stdout = out.(*os.File)
	c.lines = bufio.NewScanner(out)
	return c
}

// Ignoring returns a command for Start that starts the child with the signals,
// such as "INT TERM", ignored, as nohup does with SIGHUP.
func Ignoring(signals string) []string {
	return []string{"sh", "-c", "trap '' " + signals + `; exec "$@"`, "sh"}
}

// Line returns the next line that the child prints.
func (c *Child) Line() string {
	c.t.Helper()
	c.stdout.SetReadDeadline(time.Now().Add(time.Minute))
	if !c.lines.Scan() {
		c.fatalf("child said nothing more (%v)", c.lines.Err())
	}
	return c.lines.Text()
}

// Says expects want as the next line.
func (c *Child) Says(want string) {
	c.t.Helper()
	if got := c.Line(); got != want {
		c.fatalf("child said %q, want %q", got, want)
	}
}

// Signal sends sig.
func (c *Child) Signal(sig os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.fatalf("%v", err)
	}
}

// Exit waits for the end and expects the exit status code or, if died is not
// 0, the death of that signal, and nothing more on standard output. It returns
// what was written to standard error.
func (c *Child) Exit(code int, died syscall.Signal) string {
	c.t.Helper()
	c.stdout.SetReadDeadline(time.Now().Add(time.Minute))
	for c.lines.Scan() {
		c.t.Errorf("child also said %q", c.lines.Text())
	}
	err := c.cmd.Wait()
	var ws syscall.WaitStatus
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		ws = exit.Sys().(syscall.WaitStatus)
	} else if err != nil {
		c.t.Error(err)
	}
	if died != 0 && (!ws.Signaled() || ws.Signal() != died) || died == 0 && (ws.Signaled() || ws.ExitStatus() != code) {
		c.t.Errorf("child ended with %v, want exit %d, signal %v\n%s", err, code, died, &c.stderr)
	}
	return c.stderr.String()
}

// Kill ends the child, if it has not ended.
func (c *Child) Kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait() // an error after Exit's, which told all there is
}

func (c *Child) fatalf(format string, args ...any) {
	c.t.Helper()
	c.Kill()
	c.t.Fatalf(format+"\n%s", append(args, &c.stderr)...)
}
