package deadline

import (
	"io"
	"maps"
	"net/http"
)

// A guardedBody is a request body that the deadline closes.
type guardedBody struct {
	x     *exchange
	inner io.ReadCloser
}

func (b *guardedBody) Read(p []byte) (n int, err error) {
	if !b.enter() {
		return 0, http.ErrHandlerTimeout
	}
	defer func() { err = b.leave(n, err) }()
	return b.inner.Read(p)
}

func (b *guardedBody) Close() (err error) {
	if !b.enter() {
		return http.ErrHandlerTimeout
	}
	defer func() { err = b.leave(0, err) }()
	return b.inner.Close()
}

func (b *guardedBody) enter() bool {
	b.x.mu.Lock()
	defer b.x.mu.Unlock()
	if b.x.phase != exchangeRunning {
		return false
	}
	b.x.reading++
	return true
}

// leave ends what enter began, a call that has read n bytes, and returns the
// error that the handler gets for err.
func (b *guardedBody) leave(n int, err error) error {
	x := b.x
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reading--
	x.read += int64(n)
	x.tellOutLocked()
	switch {
	case x.phase == exchangeExpired:
		if err != nil && err != io.EOF {
			return http.ErrHandlerTimeout
		}
	case err == io.EOF:
		x.sawEOF = true
		x.copyTrailers()
	}
	return err
}

// copyTrailers gives the handler the request's trailers, which net/http puts
// into its own request: those that were announced into the header that is
// there, the others into a new one.
func (x *exchange) copyTrailers() {
	switch {
	case len(x.r.Trailer) == 0:
	case x.req.Trailer == nil:
		x.req.Trailer = x.r.Trailer.Clone()
	default:
		maps.Copy(x.req.Trailer, x.r.Trailer.Clone())
	}
}
