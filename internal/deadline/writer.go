package deadline

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"path"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sendfile"
)

// A guarded is a ResponseWriter whose calls pass a gate. The inner writer is
// net/http's or an outer handler's, or one that Unwrap has returned. guarded has
// the methods of ResponseWriter and those that only http.ResponseController looks
// for; writerLike adds the optional methods that the inner writer has.
type guarded struct {
	gate gate
	w    http.ResponseWriter // inner
}

// enter begins a call into the inner writer, or returns the error for the handler
// instead. Like net/http it logs misuse, with the handler's line, which net/http
// would not find. name is the method's name in net/http's log; if it is empty, a
// call after a hijack is not logged.
func (g *guarded) enter(call callKind, name string) error {
	switch v := g.gate.enter(g.w, call); {
	case v == pass:
		return nil
	case v == tooLate:
		return http.ErrHandlerTimeout
	case v == superfluous:
		g.logMisuse("superfluous response.WriteHeader call")
	case name != "":
		g.logMisuse(name + " on hijacked connection")
	}
	return http.ErrHijacked
}

// enterWrite is enter for a write of n bytes.
func (g *guarded) enterWrite(n int) error {
	if n == 0 {
		return g.enter(callBody, "") // net/http does not log it
	}
	return g.enter(callBody, "response.Write")
}

// logMisuse logs a mistake of the handler with the line of its call.
func (g *guarded) logMisuse(mistake string) {
	ctx, major := g.gate.requestInfo()
	if major >= 2 {
		return // net/http does not log it
	}
	at := caller()
	Logf(ctx)("http: %s from %s (%s:%d)", mistake, at.Function, path.Base(at.File), at.Line)
}

// caller returns the first function on the stack that is neither net/http's nor
// this package's.
func caller() runtime.Frame {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(1, pc)])
	for {
		frame, more := frames.Next()
		if !more || !strings.HasPrefix(frame.Function, "net/http.") && !strings.HasPrefix(frame.Function, thisPackage) {
			return frame
		}
	}
}

var thisPackage = reflect.TypeFor[guarded]().PkgPath() + "."

func (g *guarded) Header() http.Header { return g.gate.header(g.w) }

func (g *guarded) WriteHeader(code int) {
	if g.enter(statusCall(code), "response.WriteHeader") == nil {
		defer g.gate.leave(nil)
		g.w.WriteHeader(code)
	}
}

func (g *guarded) Write(p []byte) (n int, err error) {
	if err := g.enterWrite(len(p)); err != nil {
		return 0, err
	}
	defer func() { err = g.gate.leave(err) }()
	return g.w.Write(p)
}

func (g *guarded) WriteString(s string) (n int, err error) {
	if err := g.enterWrite(len(s)); err != nil {
		return 0, err
	}
	defer func() { err = g.gate.leave(err) }()
	return io.WriteString(g.w, s)
}

func (g *guarded) FlushError() (err error) {
	if !canFlush(g.w) {
		return http.ErrNotSupported
	}
	if err := g.enter(callBody, ""); err != nil {
		return err
	}
	defer func() { err = g.gate.leave(err) }()
	return http.NewResponseController(g.w).Flush()
}

// canFlush reports whether http.ResponseController can flush w.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case interface{ FlushError() error }, http.Flusher:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

func (g *guarded) SetReadDeadline(t time.Time) error {
	return g.control(func(rc *http.ResponseController) error { return rc.SetReadDeadline(t) })
}

func (g *guarded) SetWriteDeadline(t time.Time) error {
	return g.control(func(rc *http.ResponseController) error { return rc.SetWriteDeadline(t) })
}

func (g *guarded) EnableFullDuplex() error {
	return g.control((*http.ResponseController).EnableFullDuplex)
}

func (g *guarded) control(do func(*http.ResponseController) error) error {
	return g.gate.control(g.w, do)
}

func (g *guarded) push(target string, opts *http.PushOptions) (err error) {
	if err := g.enter(callOther, ""); err != nil {
		return err
	}
	defer func() { err = g.gate.leave(err) }()
	return g.w.(http.Pusher).Push(target, opts)
}

// unwrap returns the writer below the inner writer, behind the same gate.
func (g *guarded) unwrap() http.ResponseWriter {
	w := g.w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
	if w == nil {
		return nil
	}
	return writerLike(&guarded{g.gate, w})
}

// A gate decides about the calls of a handler into the inner ResponseWriter: it
// keeps the state of the response, and whether the handler may still write.
type gate interface {
	// header returns the response's header as the handler sees it.
	header(w http.ResponseWriter) http.Header

	// enter begins a call into the inner writer w if it returns pass. leave ends
	// the call, which returned err, and returns the error for the handler.
	enter(w http.ResponseWriter, call callKind) verdict
	leave(err error) error

	// control calls do, which must not block, unless the handler is cut off.
	control(w http.ResponseWriter, do func(*http.ResponseController) error) error

	// hijack hijacks w, which is an http.Hijacker.
	hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error)

	// requestInfo returns the context of the outer handler's request, and the
	// major version of its protocol.
	requestInfo() (ctx context.Context, major int)
}

// A callKind is a kind of call into a ResponseWriter.
type callKind int

const (
	callOther   callKind = iota // does not change the response: Push
	callInterim                 // WriteHeader, with a 1xx status that is not 101
	callInvalid                 // WriteHeader, with a status over which net/http panics
	callStatus                  // WriteHeader, with any other status
	callBody                    // Write, WriteString, ReadFrom, Flush
)

func statusCall(code int) callKind {
	switch {
	case code < 100 || code > 999:
		return callInvalid
	case code <= 199 && code != http.StatusSwitchingProtocols:
		return callInterim
	}
	return callStatus
}

// commits reports whether the header cannot be changed after the call.
func (c callKind) commits() bool { return c >= callStatus }

// setsStatus reports whether the call is one of WriteHeader.
func (c callKind) setsStatus() bool { return callInterim <= c && c <= callStatus }

// A verdict is a gate's decision about a call.
type verdict int

const (
	pass        verdict = iota // the call is made
	tooLate                    // the exchange has expired
	superfluous                // the status was written already
	afterHijack                // the connection was hijacked
)

// judge returns the verdict on a call of a handler that is not cut off.
func judge(call callKind, committed, hijacked bool) verdict {
	switch {
	case hijacked:
		return afterHijack
	case committed && call.setsStatus():
		return superfluous
	}
	return pass
}

// isEventStream reports whether a response with header h is a stream of
// server-sent events, which is long-running.
func isEventStream(h http.Header) bool {
	if v := h["Content-Type"]; len(v) > 0 {
		media, _, _ := strings.Cut(v[0], ";")
		return strings.EqualFold(strings.TrimSpace(media), "text/event-stream")
	}
	return false
}

// readFrom passes files to the inner writer's ReadFrom, for sendfile. For an
// exchange, other sources are read here and passed on in pieces, because a Read of
// src inside the inner writer's ReadFrom may block, and the deadline cannot
// interrupt it.
//
// The first bytes are always read here, because the response does not begin if
// src is empty.
func (g *guarded) readFrom(src io.Reader) (n int64, err error) {
	_, interrupts := g.gate.(*exchange)
	whole := !interrupts || sendfile.IsFile(src)
	buf := copyBufs.Get().(*[copyBufSize]byte)
	defer copyBufs.Put(buf)
	size := len(buf)
	if whole {
		size = 512 // as much as net/http copies to detect the Content-Type
	}
	for {
		if whole && n > 0 {
			nw, err := g.readFromInner(src)
			return n + nw, err
		}
		nr, rerr := src.Read(buf[:size])
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

// A piece is a Reader of bytes that were read from a source.
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
