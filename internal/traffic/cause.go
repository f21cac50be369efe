package traffic

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// A failure is an error that has a cause of its own, which the error's type
// cannot tell.
type failure struct {
	cause string
	err   error
}

func (f *failure) Error() string { return f.cause + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

const (
	causeDoubled = "doubled" // an answer without a request
	causeWrong   = "wrong"   // complete, but not the answer to this request

	causePaused = "paused" // see Load.Window

	// An HTTP/2 request that the server handed back untouched, and whose replay
	// found no server to connect to.
	causeReplay = "replay refused"
)

// causeOf returns the word under which err is counted.
func causeOf(err error) string {
	var f *failure
	var ne net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &f):
		return f.cause
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return "reset"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no local port"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case strings.Contains(err.Error(), "GOAWAY"), strings.Contains(err.Error(), "after Request.Body was written"):
		// http.Transport has no exported error for either.
		return "GOAWAY"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "truncated"
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return "EOF"
	case errors.As(err, new(tls.AlertError)):
		return "TLS alert"
	case strings.Contains(err.Error(), "connection reset by peer"), strings.Contains(err.Error(), "broken pipe"):
		// crypto/tls and http.Transport lose the errno of some.
		return "reset"
	}
	return "other"
}
