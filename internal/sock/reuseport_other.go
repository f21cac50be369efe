//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package sock

import (
	"errors"
	"fmt"
	"net"
	"runtime"
)

// SetReusePort returns an error that wraps errors.ErrUnsupported.
func SetReusePort(*net.ListenConfig) error {
	return fmt.Errorf("ReusePort on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
