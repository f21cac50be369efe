package graceful

import (
	"io"
	"io/fs"
	"maps"
	"net/http"
	"sync"
)

// readFrom hands files to the inner writer as they are, for sendfile. What
// else there is to read from may block, and the deadline could not free it
// from inside the inner writer: that is read here, and handed over in pieces.
func (g *guarded) readFrom(src io.Reader) (n int64, err error) {
	if isFile(src) {
		return g.readFromInner(src)
	}
	buf := copyBufs.Get().(*[copyBufSize]byte)
	defer copyBufs.Put(buf)
	for {
		nr, rerr := src.Read(buf[:])
		if nr > 0 {
			nw, werr := g.readFromInner(&piece{buf[:nr]})
			n += nw
			if werr != nil {
				return n, werr
			}
			if nw < int64(nr) {
				return n, io.ErrShortWrite
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

func (g *guarded) readFromInner(src io.Reader) (n int64, err error) {
	if err := g.enter(callBody, "response.Write"); err != nil {
		return 0, err
	}
	defer func() { err = g.gate.leave(err) }()
	return g.w.(io.ReaderFrom).ReadFrom(src)
}

const copyBufSize = 32 << 10

var copyBufs = sync.Pool{New: func() any { return new([copyBufSize]byte) }}

// A piece is the rest of what has been read.
type piece struct{ b []byte }

func (p *piece) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

// WriteTo saves io.Copy a buffer.
func (p *piece) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(p.b)
	p.b = p.b[n:]
	return int64(n), err
}

// isFile reports whether r is a regular file, or part of one: to read from it
// does not wait for anybody. io.Copy hides the *os.File in a type of os's own.
func isFile(r io.Reader) bool {
	if l, ok := r.(*io.LimitedReader); ok {
		r = l.R
	}
	f, ok := r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// A guardedBody is a request body that the deadline closes.
type guardedBody struct {
	x     *exchange
	inner io.ReadCloser
}

func (b *guardedBody) Read(p []byte) (n int, err error) {
	if !b.enter() {
		return 0, http.ErrHandlerTimeout
	}
	defer b.leave(&err)
	return b.inner.Read(p)
}

func (b *guardedBody) Close() (err error) {
	if !b.enter() {
		return http.ErrHandlerTimeout
	}
	defer b.leave(&err)
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

func (b *guardedBody) leave(err *error) {
	x := b.x
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reading--
	x.tellOutLocked()
	switch {
	case x.phase == exchangeExpired:
		if *err != nil && *err != io.EOF {
			*err = http.ErrHandlerTimeout
		}
	case *err == io.EOF:
		x.sawEOF = true
		x.copyTrailers()
	}
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
