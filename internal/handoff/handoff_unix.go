//go:build unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// executable is the path of this process's program. It is read when the package is
// initialized, because on Linux os.Executable says where that file is now, also if it
// has been renamed to make place for a new one.
var executable, errExecutable = os.Executable()

// receive takes the descriptors that h names.
func receive(h handover) (*Sockets, error) {
	s := new(Sockets)
	if h.readyFD != 0 {
		syscall.CloseOnExec(h.readyFD)
		s.ready = os.NewFile(uintptr(h.readyFD), "readiness pipe")
	}
	var failed error
	for i, name := range h.names {
		fd := firstFD + i
		syscall.CloseOnExec(fd)
		listens, err := isListener(fd)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("sockets handed down: descriptor %d (%s): %w", fd, name, err))
			continue
		}
		if !listens {
			continue
		}
		// FileListener makes a copy.
		f := os.NewFile(uintptr(fd), name)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("sockets handed down: descriptor %d (%s): %w", fd, name, err))
			continue
		}
		s.left = append(s.left, Socket{Listener: l, Name: name, Owned: h.owned[i]})
	}
	if failed != nil {
		s.Close()
		return nil, failed
	}
	return s, nil
}

// isListener reports whether fd is a stream socket that listens. It fails if
// fd is not open.
func isListener(fd int) (bool, error) {
	typ, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	switch {
	case errors.Is(err, syscall.ENOTSOCK):
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("getsockopt", err)
	case typ != syscall.SOCK_STREAM:
		return false, nil
	}
	listens, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil { // POSIX allows that; a connection then fails at its first Accept
		return true, nil
	}
	return listens != 0, nil
}

// Start starts a successor with this process's standard streams and waits until
// it calls Ready. If it exits before that, or closes the pipe, or ctx ends, Start
// ends it and returns an error once it has gone: this process then still has its
// sockets, and goes on serving.
func Start(ctx context.Context, o Options) (*Successor, error) {
	fail := func(err error) (*Successor, error) {
		return nil, fmt.Errorf("start a successor: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	path, args, env := o.Path, o.Args, o.Env
	if path == "" {
		if errExecutable != nil {
			return fail(errExecutable)
		}
		path = executable
	}
	if args == nil && len(os.Args) > 0 {
		args = os.Args[1:]
	}
	if env == nil {
		env = os.Environ()
	}
	env, err := environ(env, o.Sockets, os.Getpid())
	if err != nil {
		return fail(err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer ready.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, s := range o.Sockets {
		f, err := duplicate(s.Listener)
		if err != nil {
			theirs.Close()
			closeAll(cmd.ExtraFiles)
			return fail(fmt.Errorf("%s: %w", s.Addr(), err))
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	err = cmd.Start()
	closeAll(cmd.ExtraFiles)
	if err != nil {
		return fail(err)
	}

	s := &Successor{cmd: cmd, exited: make(chan struct{})}
	go func() {
		s.err = cmd.Wait()
		close(s.exited)
	}()
	said := make(chan error, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(ready, int64(len(readyMessage))))
		if err == nil && string(b) != readyMessage {
			err = fmt.Errorf("it closed the pipe after %q", b)
		}
		said <- err
	}()
	select {
	case err = <-said:
		if err != nil {
			// A process that dies closes the pipe first; its end says more.
			select {
			case <-s.exited:
			case <-time.After(time.Second):
			}
		}
	case <-s.exited: // the pipe may be held open by a child of its own
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	select {
	case <-s.exited:
		err = s.Err()
	default:
		if err == nil {
			return s, nil
		}
		s.end(o.StopTimeout)
		err = fmt.Errorf("%w (then: %v)", err, s.Err())
	}
	return fail(fmt.Errorf("process %d did not become ready: %w", s.PID(), err))
}

// end makes the successor end, and returns when it has.
func (s *Successor) end(patience time.Duration) {
	if patience <= 0 {
		patience = 5 * time.Second
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-s.exited:
	case <-t.C:
		s.cmd.Process.Kill()
		<-s.exited
	}
}

// duplicate returns l's socket as a file. That of l's File method would not do:
// exec asks a file for its Fd, and for files of package net that makes the
// socket blocking, for this process too.
func duplicate(l net.Listener) (*os.File, error) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T has no socket", l)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	err = rc.Control(func(old uintptr) {
		syscall.ForkLock.RLock() // no child may inherit it before it is close-on-exec
		defer syscall.ForkLock.RUnlock()
		if fd, dupErr = syscall.Dup(int(old)); dupErr == nil {
			syscall.CloseOnExec(fd)
		}
	})
	if err == nil {
		err = os.NewSyscallError("dup", dupErr)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), l.Addr().String()), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
