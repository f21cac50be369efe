package main

import (
	"os/exec"
	"syscall"
)

// ownGroup puts cmd into a process group of its own, and has the kernel kill it
// when the thread that starts it ends: it must be one that lasts.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
