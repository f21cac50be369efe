package graceful

import "bytes"

// beyond counts what is read from a connection of HTTP/1 behind the header of
// a request. What is not the request's body then, net/http has in a buffer of
// its own: the peer sends requests behind one another.
//
// It belongs to the goroutine that serves the connection.
type beyond struct {
	n      int64 // since the header ended
	body   int64 // of them the request's, once served is set; -1 is unknown
	headed bool  // the header has ended
	blank  bool  // what was read ends in a LF, or that and a CR
	served bool  // the request is in its handler: the next header is another's
	lost   bool  // an earlier request was not exact
}

// serve takes note of the length of the body of the request that was read. It
// reports whether exact will be false whatever comes: of this request, because
// it does not say, or of all that follow on one that was not exact.
func (b *beyond) serve(length int64) bool {
	b.body, b.served = length, true
	return b.lost || length < 0
}

// exact reports whether nothing was read behind the request that is being
// served, or behind those before it.
func (b *beyond) exact() bool { return b.served && !b.lost && b.n == b.body }

// head takes in what was read while no request was being served.
func (b *beyond) head(p []byte) {
	if b.served {
		*b = beyond{lost: !b.exact()}
	}
	for !b.headed {
		if b.blank {
			switch {
			case len(p) > 0 && p[0] == '\n':
				b.headed, p = true, p[1:]
				continue
			case len(p) > 1 && p[0] == '\r' && p[1] == '\n':
				b.headed, p = true, p[2:]
				continue
			case len(p) == 0 || len(p) == 1 && p[0] == '\r':
				return
			}
		}
		i := bytes.IndexByte(p, '\n')
		if b.blank = i >= 0; i < 0 {
			return
		}
		p = p[i+1:]
	}
	b.n += int64(len(p))
}
