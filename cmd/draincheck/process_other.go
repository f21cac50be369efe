//go:build !unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// signalByName knows only what os.Process.Signal can send here.
func signalByName(name string) (syscall.Signal, error) {
	switch strings.TrimPrefix(strings.ToUpper(name), "SIG") {
	case "KILL", "TERM":
		return syscall.SIGKILL, nil
	}
	return 0, fmt.Errorf("-signal %q: on this system there is only KILL", name)
}

func signalName(syscall.Signal) string { return "SIGKILL" }

func ownGroup(*exec.Cmd) {}

func killGroup(cmd *exec.Cmd) { cmd.Process.Kill() }

func alive(pid int) bool {
	_, err := os.FindProcess(pid)
	return err == nil
}

func sendSignal(pid int, sig syscall.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(sig)
}
