//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package graceful

import (
	"errors"
	"fmt"
	"net"
	"runtime"
)

func setReusePort(*net.ListenConfig) error {
	return fmt.Errorf("ReusePort on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
