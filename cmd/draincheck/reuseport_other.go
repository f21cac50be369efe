//go:build !unix || solaris || illumos || aix

package main

import (
	"errors"
	"syscall"
)

func reusePort(_, _ string, _ syscall.RawConn) error {
	return errors.New("-replace: this system has no SO_REUSEPORT")
}
