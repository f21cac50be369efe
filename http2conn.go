package graceful

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// http2Linger is how long an HTTP/2 connection without an open stream may
// outstay the final GOAWAY. net/http closes such a connection after 1 s, unless
// a peer that does not read keeps it from writing.
const http2Linger = 2 * time.Second

// http2Conn is the connection that net/http's HTTP/2 server is given in place
// of the real one. It follows the frames of both directions, puts the first
// GOAWAY between two of them when it is told to, and hangs up gently once the
// final one is out and no stream is left. Of everything else it is a passage.
//
// Writing belongs to one goroutine at a time, the owner: net/http's, or that of
// an announcement which found the connection quiet. No lock is held while the
// owner writes, so that a peer which does not read blocks nobody but the owner.
type http2Conn struct {
	net.Conn // what net/http accepted: a *tls.Conn, or without TLS any other

	// Each is called once, without a lock: before the first Write, and when
	// the client knows that it may open no more streams.
	onBegin, onAck func()

	in frameCursor // owned by the reader

	mu sync.Mutex // guards the fields below, but see out
	// Signalled when the owner lets go. There can only be one who waits:
	// net/http does not write twice at a time.
	quiet *sync.Cond

	owned     bool // somebody is writing
	announced bool // the first GOAWAY has been asked for
	told      bool // a GOAWAY has been begun, ours or net/http's: no other from us
	acked     bool // onAck has been called
	finishing bool // the final GOAWAY has been asked for
	shut      bool // our side is closed: nothing more goes out
	begun     bool // the first Write has been seen
	settled   bool // the server's SETTINGS are out

	out     frameCursor // moved by the owner, with mu held
	rest    []byte      // what is still to be written of our announcement
	streams openStreams
	linger  *time.Timer // runs while finishing without a stream; nil until then
}

func newHTTP2Conn(nc net.Conn) *http2Conn {
	c := &http2Conn{Conn: nc, onBegin: func() {}, onAck: func() {}}
	c.quiet = sync.NewCond(&c.mu)
	return c
}

// NetConn returns the connection that net/http accepted.
func (c *http2Conn) NetConn() net.Conn { return c.Conn }

func (c *http2Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		k, ended := c.in.advance(rest)
		rest = rest[k:]
		if !ended {
			break
		}
		switch c.in.kind() {
		case frameHeaders, frameRSTStream:
		case framePing:
			// net/http has not sent this one, and ignores the answer.
			if c.in.flags()&flagAck != 0 && string(c.in.payload()) == pingData {
				c.ack()
			}
			continue
		case frameData:
			if c.in.flags()&flagEndStream == 0 {
				continue
			}
		default:
			continue
		}
		c.mu.Lock()
		c.streams.in(&c.in)
		c.settle()
		c.mu.Unlock()
	}
	return n, err
}

// Write writes p, and our announcement at the first boundary if it is due.
func (c *http2Conn) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	for c.owned {
		c.quiet.Wait()
	}
	if c.shut {
		// Only what no one needs comes after the last stream's end: window
		// updates, acknowledgements. An error would make net/http close with
		// data unread, and the reset might overtake the last response.
		c.mu.Unlock()
		return len(p), nil
	}
	c.owned = true
	if !c.begun {
		c.begun = true
		c.mu.Unlock()
		c.onBegin()
		c.mu.Lock()
	}
	for n < len(p) {
		if err = c.inject(); err != nil {
			break
		}
		part := p[n:]
		if c.announced && !c.told {
			if k := c.out.toBoundary(part); k > 0 {
				part = part[:k]
			} else {
				// At a boundary, and yet not injected: the SETTINGS
				// come first, and they are one frame.
				first := c.out
				k, _ = first.advance(part)
				part = part[:k]
			}
		}
		c.mu.Unlock()
		k, werr := c.Conn.Write(part)
		c.mu.Lock()
		c.wrote(part[:k])
		n += k
		if err = werr; err != nil {
			break
		}
	}
	if err == nil {
		// What goes wrong here the next Write will meet again: p is written.
		_ = c.inject()
	}
	c.release()
	final := c.streams.final
	c.mu.Unlock()
	if final {
		c.ack() // net/http was first: there is nothing to wait for
	}
	return n, err
}

// ack calls onAck.
func (c *http2Conn) ack() {
	c.mu.Lock()
	first := !c.acked
	c.acked = true
	c.mu.Unlock()
	if first {
		c.onAck()
	}
}

// wrote moves the cursor through p, which has been written.
func (c *http2Conn) wrote(p []byte) {
	for len(p) > 0 {
		k, ended := c.out.advance(p)
		p = p[k:]
		if !ended {
			return
		}
		c.settled = true
		c.streams.out(&c.out)
		// Another GOAWAY after net/http's must not raise its last stream
		// (RFC 9113, section 6.8).
		c.told = c.told || c.streams.final
	}
}

// inject writes our announcement if it is due and this is the place. The caller is
// the owner and holds mu, which is released meanwhile.
func (c *http2Conn) inject() error {
	if c.announced && !c.told && c.settled && c.out.boundary() {
		c.told = true
		c.rest = announcement
	}
	if len(c.rest) == 0 {
		return nil
	}
	rest := c.rest
	c.mu.Unlock()
	n, err := c.Conn.Write(rest)
	c.mu.Lock()
	c.rest = rest[n:] // a deadline may have cut it; it goes on from here
	return err
}

// release ends the ownership.
func (c *http2Conn) release() {
	c.owned = false
	c.quiet.Signal()
	c.settle()
}

// announce asks for the first GOAWAY. It does not block: where somebody is
// writing, or has stopped within a frame, that writer sends it.
func (c *http2Conn) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.announced {
		return
	}
	c.announced = true
	if c.owned || c.told || !c.settled || !c.out.boundary() {
		return
	}
	c.owned = true
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.inject() // the reader or the next Write will meet it too
		c.release()
	}()
}

// finish says that net/http has been asked for the final GOAWAY.
func (c *http2Conn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = true
	c.settle()
}

// settle looks whether the connection is at its end. It is called whenever
// something that it looks at has changed, with mu held.
func (c *http2Conn) settle() {
	if !c.finishing || c.shut {
		return
	}
	if len(c.streams.open) > 0 {
		if c.linger != nil {
			c.linger.Stop()
			c.linger = nil
		}
		return
	}
	if c.linger == nil {
		c.linger = time.AfterFunc(http2Linger, c.abandon)
	}
	if c.streams.final && !c.streams.failed && !c.owned && len(c.rest) == 0 && c.out.boundary() {
		c.shut = true
		go c.closeWrite()
	}
}

// closeWrite tells the client that nothing more comes. It answers by closing,
// net/http reads to that end, and so nothing is destroyed on the way; if it
// does not, net/http closes 1 s after its GOAWAY.
func (c *http2Conn) closeWrite() {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
}

// abandon closes a connection that has no streams and should be gone.
func (c *http2Conn) abandon() {
	c.mu.Lock()
	idle := c.finishing && len(c.streams.open) == 0
	c.linger = nil
	c.mu.Unlock()
	if idle {
		c.kill()
	}
}

// kill closes the connection without a word: a *tls.Conn would first try for
// up to 5 s to write an alert.
func (c *http2Conn) kill() {
	if tc, ok := c.Conn.(*tls.Conn); ok {
		_ = tc.NetConn().Close()
		return
	}
	_ = c.Conn.Close()
}

// stop is called when net/http has left the connection.
func (c *http2Conn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = false
	if c.linger != nil {
		c.linger.Stop()
	}
}

// streamCount returns how many streams are open: begun by the client, and not
// yet answered and ended with the answer written.
func (c *http2Conn) streamCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams.open)
}
