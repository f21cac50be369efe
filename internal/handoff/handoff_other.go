//go:build !unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func receive(h handover) (*Sockets, error) {
	if len(h.names) == 0 {
		return new(Sockets), nil
	}
	return nil, fmt.Errorf("sockets handed down: %w on %s", errors.ErrUnsupported, runtime.GOOS)
}

// Start fails: only Unix systems hand sockets from one process to another.
func Start(context.Context, Options) (*Successor, error) {
	return nil, fmt.Errorf("start a successor: %w on %s", errors.ErrUnsupported, runtime.GOOS)
}
