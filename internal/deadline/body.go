package deadline

import (
	"io"
	"maps"
	"net/http"
)

// A guardedBody is a request body whose methods fail once the exchange has
// expired.
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

// leave ends a call that enter began and that has read n bytes. It returns the
// error for the handler.
func (b *guardedBody) leave(n int, err error) error {
	x := b.x
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reading--
	x.read += int64(n)
	x.callEndedLocked()
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

// copyTrailers copies the request's trailers, which net/http puts into its own
// request, to the handler's request. If trailers were announced, the handler has
// a Trailer already, which is filled in.
func (x *exchange) copyTrailers() {
	switch {
	case len(x.r.Trailer) == 0:
	case x.req.Trailer == nil:
		x.req.Trailer = x.r.Trailer.Clone()
	default:
		maps.Copy(x.req.Trailer, x.r.Trailer.Clone())
	}
}
