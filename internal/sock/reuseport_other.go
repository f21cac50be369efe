//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package sock

import (
	"errors"
	"fmt"
	"net"
	"runtime"
)

func SetReusePort(*net.ListenConfig) error {
	return fmt.Errorf("ReusePort on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
