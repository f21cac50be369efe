package sdnotify

import (
	"syscall"
	"time"
	"unsafe"
)

// monotonic returns the time of CLOCK_MONOTONIC, or 0 if it can't be had.
func monotonic() time.Duration {
	const clockMonotonic = 1
	var ts syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}
