package deadline

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// The bits of a writer's kind: the optional interfaces that it implements.
const (
	canFlushBit = 1 << iota
	canHijackBit
	canReadFromBit
	canPushBit
	canUnwrapBit
)

// writerLike returns g with the optional methods that its inner writer has,
// and with no others, since handlers find out by type assertions.
// All kinds hold a single pointer, so the interface value costs no allocation.
func writerLike(g *guarded) http.ResponseWriter {
	kind := 0
	if _, ok := g.w.(http.Flusher); ok {
		kind |= canFlushBit
	}
	if _, ok := g.w.(http.Hijacker); ok {
		kind |= canHijackBit
	}
	if _, ok := g.w.(io.ReaderFrom); ok {
		kind |= canReadFromBit
	}
	if _, ok := g.w.(http.Pusher); ok {
		kind |= canPushBit
	}
	if _, ok := g.w.(interface{ Unwrap() http.ResponseWriter }); ok {
		kind |= canUnwrapBit
	}
	switch kind {
	case canFlushBit:
		return writerF{writer{g}}
	case canHijackBit:
		return writerH{writer{g}}
	case canFlushBit | canHijackBit:
		return writerFH{writerF{writer{g}}}
	case canReadFromBit:
		return writerR{writer{g}}
	case canFlushBit | canReadFromBit:
		return writerFR{writerF{writer{g}}}
	case canHijackBit | canReadFromBit:
		return writerHR{writerH{writer{g}}}
	case canFlushBit | canHijackBit | canReadFromBit:
		return writerFHR{writerFH{writerF{writer{g}}}}
	case canPushBit:
		return writerP{writer{g}}
	case canFlushBit | canPushBit:
		return writerFP{writerF{writer{g}}}
	case canHijackBit | canPushBit:
		return writerHP{writerH{writer{g}}}
	case canFlushBit | canHijackBit | canPushBit:
		return writerFHP{writerFH{writerF{writer{g}}}}
	case canReadFromBit | canPushBit:
		return writerRP{writerR{writer{g}}}
	case canFlushBit | canReadFromBit | canPushBit:
		return writerFRP{writerFR{writerF{writer{g}}}}
	case canHijackBit | canReadFromBit | canPushBit:
		return writerHRP{writerHR{writerH{writer{g}}}}
	case canFlushBit | canHijackBit | canReadFromBit | canPushBit:
		return writerFHRP{writerFHR{writerFH{writerF{writer{g}}}}}
	case canUnwrapBit:
		return writerU{writer{g}}
	case canFlushBit | canUnwrapBit:
		return writerFU{writerF{writer{g}}}
	case canHijackBit | canUnwrapBit:
		return writerHU{writerH{writer{g}}}
	case canFlushBit | canHijackBit | canUnwrapBit:
		return writerFHU{writerFH{writerF{writer{g}}}}
	case canReadFromBit | canUnwrapBit:
		return writerRU{writerR{writer{g}}}
	case canFlushBit | canReadFromBit | canUnwrapBit:
		return writerFRU{writerFR{writerF{writer{g}}}}
	case canHijackBit | canReadFromBit | canUnwrapBit:
		return writerHRU{writerHR{writerH{writer{g}}}}
	case canFlushBit | canHijackBit | canReadFromBit | canUnwrapBit:
		return writerFHRU{writerFHR{writerFH{writerF{writer{g}}}}}
	case canPushBit | canUnwrapBit:
		return writerPU{writerP{writer{g}}}
	case canFlushBit | canPushBit | canUnwrapBit:
		return writerFPU{writerFP{writerF{writer{g}}}}
	case canHijackBit | canPushBit | canUnwrapBit:
		return writerHPU{writerHP{writerH{writer{g}}}}
	case canFlushBit | canHijackBit | canPushBit | canUnwrapBit:
		return writerFHPU{writerFHP{writerFH{writerF{writer{g}}}}}
	case canReadFromBit | canPushBit | canUnwrapBit:
		return writerRPU{writerRP{writerR{writer{g}}}}
	case canFlushBit | canReadFromBit | canPushBit | canUnwrapBit:
		return writerFRPU{writerFRP{writerFR{writerF{writer{g}}}}}
	case canHijackBit | canReadFromBit | canPushBit | canUnwrapBit:
		return writerHRPU{writerHRP{writerHR{writerH{writer{g}}}}}
	case canFlushBit | canHijackBit | canReadFromBit | canPushBit | canUnwrapBit:
		return writerFHRPU{writerFHRP{writerFHR{writerFH{writerF{writer{g}}}}}}
	default:
		return writer{g}
	}
}

// The kinds of writers. Each is named by the first letters of its optional
// methods, and adds one method to another kind.
type (
	writer struct{ *guarded }

	writerF     struct{ writer }
	writerH     struct{ writer }
	writerFH    struct{ writerF }
	writerR     struct{ writer }
	writerFR    struct{ writerF }
	writerHR    struct{ writerH }
	writerFHR   struct{ writerFH }
	writerP     struct{ writer }
	writerFP    struct{ writerF }
	writerHP    struct{ writerH }
	writerFHP   struct{ writerFH }
	writerRP    struct{ writerR }
	writerFRP   struct{ writerFR }
	writerHRP   struct{ writerHR }
	writerFHRP  struct{ writerFHR }
	writerU     struct{ writer }
	writerFU    struct{ writerF }
	writerHU    struct{ writerH }
	writerFHU   struct{ writerFH }
	writerRU    struct{ writerR }
	writerFRU   struct{ writerFR }
	writerHRU   struct{ writerHR }
	writerFHRU  struct{ writerFHR }
	writerPU    struct{ writerP }
	writerFPU   struct{ writerFP }
	writerHPU   struct{ writerHP }
	writerFHPU  struct{ writerFHP }
	writerRPU   struct{ writerRP }
	writerFRPU  struct{ writerFRP }
	writerHRPU  struct{ writerHRP }
	writerFHRPU struct{ writerFHRP }
)

func (w writerF) Flush() { w.FlushError() }

func (w writerH) Hijack() (net.Conn, *bufio.ReadWriter, error)  { return w.gate.hijack(w.w) }
func (w writerFH) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.gate.hijack(w.w) }

func (w writerR) ReadFrom(src io.Reader) (int64, error)   { return w.readFrom(src) }
func (w writerFR) ReadFrom(src io.Reader) (int64, error)  { return w.readFrom(src) }
func (w writerHR) ReadFrom(src io.Reader) (int64, error)  { return w.readFrom(src) }
func (w writerFHR) ReadFrom(src io.Reader) (int64, error) { return w.readFrom(src) }

func (w writerP) Push(target string, opts *http.PushOptions) error    { return w.push(target, opts) }
func (w writerFP) Push(target string, opts *http.PushOptions) error   { return w.push(target, opts) }
func (w writerHP) Push(target string, opts *http.PushOptions) error   { return w.push(target, opts) }
func (w writerFHP) Push(target string, opts *http.PushOptions) error  { return w.push(target, opts) }
func (w writerRP) Push(target string, opts *http.PushOptions) error   { return w.push(target, opts) }
func (w writerFRP) Push(target string, opts *http.PushOptions) error  { return w.push(target, opts) }
func (w writerHRP) Push(target string, opts *http.PushOptions) error  { return w.push(target, opts) }
func (w writerFHRP) Push(target string, opts *http.PushOptions) error { return w.push(target, opts) }

func (w writerU) Unwrap() http.ResponseWriter     { return w.unwrap() }
func (w writerFU) Unwrap() http.ResponseWriter    { return w.unwrap() }
func (w writerHU) Unwrap() http.ResponseWriter    { return w.unwrap() }
func (w writerFHU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerRU) Unwrap() http.ResponseWriter    { return w.unwrap() }
func (w writerFRU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerHRU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerFHRU) Unwrap() http.ResponseWriter  { return w.unwrap() }
func (w writerPU) Unwrap() http.ResponseWriter    { return w.unwrap() }
func (w writerFPU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerHPU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerFHPU) Unwrap() http.ResponseWriter  { return w.unwrap() }
func (w writerRPU) Unwrap() http.ResponseWriter   { return w.unwrap() }
func (w writerFRPU) Unwrap() http.ResponseWriter  { return w.unwrap() }
func (w writerHRPU) Unwrap() http.ResponseWriter  { return w.unwrap() }
func (w writerFHRPU) Unwrap() http.ResponseWriter { return w.unwrap() }
