package graceful

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/http2wire"
)

const (
	// http2AckWait is how long a client has to acknowledge the PING behind the
	// first GOAWAY before the final one goes out all the same.
	http2AckWait = 1500 * time.Millisecond

	// http2Linger is how long a client has to close the connection after the
	// final GOAWAY. A client that has not acknowledged the PING has had most of
	// that time already.
	http2Linger     = 2 * time.Second
	http2DeafLinger = http2Linger - http2AckWait

	// http2LastStream is how long after the first GOAWAY a client may open streams
	// that are waited for, unless the drain is timed. One that acknowledges it and
	// opens further ones without end would otherwise never be let go.
	http2LastStream = 5 * time.Second
)

// An http2Conn says farewell on an HTTP/2 connection, in the two steps of
// RFC 9113, section 6.8: a GOAWAY that only says "open no more streams", and, when
// the client has had the time to obey and no stream is open, a final one that
// names the last stream. Whoever serves the connection (net/http, or another
// implementation) is told of neither: the http2Conn puts them between two frames.
// All other bytes pass through unchanged.
//
//	following ─ leave ─▶ announced ─ acknowledged, and the grace is over ─▶ finishing
//	                                                                            │
//	                          closed ◀─ the client closes, or linger ─ shut ◀─ no stream is open
//
// Writing belongs to one goroutine at a time, the owner: the server's, or that of
// a farewell which found the connection quiet. No lock is held while the owner
// writes, so that a peer which does not read blocks the owner alone.
type http2Conn struct {
	c     *conn
	grace time.Duration // at least between the two GOAWAYs

	in http2wire.Cursor // owned by the reader

	// shut: our side is closed. Nothing more goes out, and nothing that comes in
	// reaches the server. Written with mu held.
	shut atomic.Bool

	mu sync.Mutex // guards what follows
	// Signalled when the owner lets go. At most one goroutine waits: a server
	// does not write twice at a time.
	quiet sync.Cond

	owned     bool // a goroutine is writing
	settings  bool // the server's SETTINGS, its first frame, are out
	announced bool // the first GOAWAY is asked for
	told      bool // a GOAWAY has begun to go out, ours or the server's
	acked     bool // the client knows that it may open no more streams
	counted   bool // it is among those that rules.openToStreams counts
	finishing bool // the final GOAWAY follows the last stream
	lingering bool // finishing without a stream: the timer cuts the connection

	since time.Time   // when the client was told, or is about to be
	bar   uint32      // streams above it are not waited for; 0: all are
	timer *time.Timer // to finishing, and then to the end of linger; nil until it is set

	out     http2wire.Cursor // moved by the owner, with mu held
	rest    []byte           // what is still to be written of our announcement
	streams http2wire.Streams
}

// followHTTP2 makes c an HTTP/2 connection. Its preface has been read if
// sawPreface is true. It is called on the goroutine that reads c.
func (c *conn) followHTTP2(sawPreface bool) *http2Conn {
	h := &http2Conn{c: c, grace: c.m.rules.grace}
	h.quiet.L = &h.mu
	if f := c.m.rules.openToStreams; f != nil {
		h.counted = true
		f(1)
	}
	if !sawPreface {
		h.in.Skip(len(http2wire.Preface))
	}
	c.h2.Store(h)
	c.m.changed(c, connIdle) // after it is stored: the manager asks it to leave
	return h
}

// leave asks the connection to say farewell. It does not block; a second call
// does nothing.
func (h *http2Conn) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.announced {
		return
	}
	h.announced = true
	h.since = time.Now()
	h.scheduleLocked()
	if h.owned || !h.announceableLocked() {
		return // the writer says it
	}
	h.owned = true
	go func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		_ = h.injectLocked() // the next Write meets the error as well
		h.disownLocked()
	}()
}

// received follows the frames in p, which was read, and returns how much of it
// the server may see: all, unless the final GOAWAY has said that what comes now
// is not served.
func (h *http2Conn) received(p []byte) (n int) {
	for n < len(p) {
		k, ended := h.in.Advance(p[n:])
		if ended && (http2wire.Matters(&h.in) || h.in.AnnouncementAck()) {
			h.mu.Lock()
			if h.shut.Load() {
				h.mu.Unlock()
				return n
			}
			if h.in.AnnouncementAck() {
				// The server did not send this PING, and ignores its answer.
				h.acked = true
				h.scheduleLocked()
			} else {
				h.streams.In(&h.in)
				h.settleLocked()
			}
			h.mu.Unlock()
		}
		n += k
	}
	if h.shut.Load() {
		return 0
	}
	return n
}

// write writes p for the server, and our announcement at the first boundary if
// it is due.
func (h *http2Conn) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.owned {
		h.quiet.Wait()
	}
	if h.shut.Load() {
		// What comes after the last stream's end is of no use any more: window
		// updates, acknowledgements. An error would make the server close with
		// data unread, and the reset could overtake the last response.
		return len(p), nil
	}
	h.owned = true
	if h.announced && !h.settings {
		h.since, h.finishing = time.Now(), false // the client is told now, and not before
		h.scheduleLocked()
	}
	for n < len(p) {
		if err = h.injectLocked(); err != nil {
			break
		}
		part := p[n:]
		if h.announced && !h.told {
			if k := h.out.ToBoundary(part); k > 0 {
				part = part[:k]
			} else { // the SETTINGS, which come first
				first := h.out
				k, _ := first.Advance(part)
				part = part[:k]
			}
		}
		h.mu.Unlock()
		k, werr := h.c.raw.Write(part)
		h.mu.Lock()
		h.wroteLocked(part[:k])
		n += k
		if err = werr; err != nil {
			break
		}
	}
	if err == nil {
		_ = h.injectLocked() // p is written; the next Write meets the error
	}
	h.disownLocked()
	if h.streams.Final() && !h.acked {
		h.acked = true // the server was first: there is nothing to wait for
		h.scheduleLocked()
	}
	return n, err
}

// wroteLocked moves the cursor through p, which has been written.
func (h *http2Conn) wroteLocked(p []byte) {
	for len(p) > 0 {
		k, ended := h.out.Advance(p)
		p = p[k:]
		if !ended {
			return
		}
		h.settings = true
		h.streams.Out(&h.out)
		// Another GOAWAY after the server's must not raise its last stream
		// (RFC 9113, section 6.8).
		h.told = h.told || h.streams.Final()
	}
}

// announceableLocked reports whether this is the time and the place for the
// announcement.
func (h *http2Conn) announceableLocked() bool {
	return h.announced && !h.told && h.settings && h.out.Boundary()
}

// injectLocked writes our announcement if it is due and this is the place. The
// caller is the owner. mu is released meanwhile.
func (h *http2Conn) injectLocked() error {
	if h.announceableLocked() {
		h.told = true
		h.rest = http2wire.Announcement
		h.c.m.goAways.Add(1)
	}
	if len(h.rest) == 0 {
		return nil
	}
	rest := h.rest
	h.mu.Unlock()
	n, err := h.c.raw.Write(rest)
	h.mu.Lock()
	h.rest = rest[n:] // a deadline may have cut it; it goes on from here
	return err
}

// disownLocked ends the ownership.
func (h *http2Conn) disownLocked() {
	h.owned = false
	h.quiet.Signal()
	h.settleLocked()
}

// scheduleLocked enters finishing when it is time, or sets the timer to then.
func (h *http2Conn) scheduleLocked() {
	if !h.announced || h.finishing {
		return
	}
	wait := h.grace
	if !h.acked {
		wait = max(wait, http2AckWait)
	}
	wait -= time.Since(h.since)
	switch {
	case wait <= 0:
		h.finishing = true
		h.toldLocked()
		h.settleLocked()
	default:
		h.setTimerLocked(wait)
	}
}

// toldLocked notes that no stream is to be expected any more.
func (h *http2Conn) toldLocked() {
	if h.counted {
		h.counted = false
		h.c.m.rules.openToStreams(-1)
	}
}

func (h *http2Conn) setTimerLocked(d time.Duration) {
	if h.timer == nil {
		h.timer = time.AfterFunc(d, h.timeout)
	} else {
		h.timer.Reset(d)
	}
}

// timeout is the timer's.
func (h *http2Conn) timeout() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.finishing {
		h.scheduleLocked()
	} else if h.lingering {
		h.c.cutSoon()
	}
}

// settleLocked says the final GOAWAY and closes our side if the time has come.
// It is called whenever something that it looks at has changed.
func (h *http2Conn) settleLocked() {
	if !h.finishing || h.shut.Load() {
		return
	}
	open := h.streams.Open()
	if open > 0 && h.waitsForLocked() {
		h.lingering = false
		return
	}
	if !h.lingering {
		h.lingering = true
		linger := http2Linger
		if !h.acked {
			linger = http2DeafLinger
		}
		h.setTimerLocked(linger)
	}
	if open > 0 || h.owned || len(h.rest) > 0 || !h.settings || !h.out.Boundary() || h.streams.Failed() {
		return // a writer is at work, or stuck: the timer cuts it
	}
	// From here on no stream reaches the server: the GOAWAY is true.
	h.shut.Store(true)
	h.owned = true
	final, last := h.streams.Final(), h.streams.Highest()
	go func() {
		if !final {
			_ = h.c.raw.SetWriteDeadline(time.Time{}) // the server's, which writes no more
			_, _ = h.c.raw.Write(http2wire.FinalGoAway(last))
		}
		h.mu.Lock()
		h.disownLocked()
		h.mu.Unlock()
		// The client answers by closing. The server reads to that end, and so
		// nothing is destroyed on the way.
		closeWrite(h.c.raw)
	}()
}

// waitsForLocked reports whether one of the open streams is waited for.
func (h *http2Conn) waitsForLocked() bool {
	if h.c.m.timed.Load() || time.Since(h.since) < http2LastStream {
		return true
	}
	if h.bar == 0 {
		h.bar = h.streams.Highest()
	}
	return h.streams.OpenUpTo(h.bar) > 0
}

// stop is called when the connection is closed.
func (h *http2Conn) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced, h.finishing = true, true
	h.shut.Store(true)
	h.toldLocked()
	if h.timer != nil {
		h.timer.Stop()
	}
}

// The keys of http.Server.TLSNextProto: the one of ALPN, and the one under which
// golang.org/x/net/http2, and net/http up to Go 1.26, take any net.Conn that
// speaks HTTP/2, the client's preface already read.
const (
	protoHTTP2            = "h2"
	protoUnencryptedHTTP2 = "unencrypted_http2"
)

// nextProto is what TLSNextProto's entries are.
type nextProto = func(*http.Server, *tls.Conn, http.Handler)

// wantsHTTP2 reports whether net/http would configure HTTP/2 for s: the
// conditions of its Serve, or of ServeTLS.
func wantsHTTP2(s *http.Server, serveTLS bool) bool {
	if s.Protocols != nil {
		if !s.Protocols.HTTP2() && !s.Protocols.UnencryptedHTTP2() {
			return false
		}
	} else if s.TLSNextProto != nil && s.TLSNextProto[protoHTTP2] == nil {
		return false // the historic way of switching it off
	}
	if serveTLS || s.TLSConfig == nil {
		return true
	}
	if s.Protocols != nil && s.Protocols.UnencryptedHTTP2() {
		return true
	}
	return slices.Contains(s.TLSConfig.NextProtos, protoHTTP2)
}

// isNetHTTPs reports whether net/http itself has put f into a TLSNextProto, as it
// does when a server has served before, or when golang.org/x/net/http2 from 0.55
// on has configured it with Go 1.27.
func isNetHTTPs(f nextProto) bool {
	return f != nil && strings.HasPrefix(runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name(), "net/http.")
}

// serveALPN serves c by the protocol that was agreed on by ALPN, if that is not
// net/http's to serve, and reports whether it is so. It returns when the
// connection is at its end.
func (s *Server) serveALPN(c *tlsConn) bool {
	proto := c.secure.ConnectionState().NegotiatedProtocol
	if isHTTP1(proto) {
		return false
	}
	hs := s.side.hs
	isHTTP2 := proto == protoHTTP2
	if isHTTP2 && s.side.http2 == http2Native && http2TakesAnyConn {
		return false
	}
	c.apart.Store(true)
	defer c.apart.Store(false)
	h := alpnHandler{c.requestContext(), c.secure, hs.Handler, !hs.DisableGeneralOptionsHandler}
	if isHTTP2 && s.followsHTTP2() {
		if serve := hs.TLSNextProto[protoUnencryptedHTTP2]; serve != nil && s.readPreface(c) {
			serve(hs, unencrypted(alpnConn{&c.conn, c.connBelow, c.secure}), h)
		}
		return true
	}
	serve := hs.TLSNextProto[proto]
	tc, ok := c.secure.(*tls.Conn)
	if serve == nil || !ok {
		return true // net/http closes the connection as well
	}
	if isHTTP2 {
		c.set(flagForeign)
	} else {
		c.setState(connActive) // to the end, unless it says otherwise: so net/http takes it
	}
	// It reports the states of tc, which is not known as c.
	base := copyServer(hs)
	base.ConnState = func(_ net.Conn, state http.ConnState) { s.moved(&c.conn, state) }
	serve(base, tc, h)
	return true
}

// http2PrefaceTimeout is net/http's limit for the preface, which is not exported.
const http2PrefaceTimeout = 10 * time.Second

// readPreface reads HTTP/2's preface and reports whether it has come. What takes
// any net.Conn wants it read.
func (s *Server) readPreface(c *tlsConn) bool {
	_ = c.SetReadDeadline(time.Now().Add(http2PrefaceTimeout))
	buf := make([]byte, len(http2wire.Preface))
	if _, err := io.ReadFull(&c.conn, buf); err != nil {
		return false // net/http is silent about it, too
	}
	if string(buf) != http2wire.Preface {
		logf := log.Printf
		if l := s.side.hs.ErrorLog; l != nil {
			logf = l.Printf
		}
		logf("http2: server: error reading preface from client %v: bogus greeting %q", c.RemoteAddr(), buf)
		return false
	}
	_ = c.SetReadDeadline(time.Time{})
	return true
}

// An alpnConn is a tlsConn for the protocol that is served from within its
// begin.
type alpnConn struct {
	*conn
	connBelow
	secure secureConn
}

func (c alpnConn) ConnectionState() tls.ConnectionState { return c.secure.ConnectionState() }

// CloseWrite closes the writing side.
func (c alpnConn) CloseWrite() error { return closeWrite(c.raw) }

// unencrypted passes nc to a function of TLSNextProto that takes a *tls.Conn:
// beneath one that is never used.
func unencrypted(nc net.Conn) *tls.Conn { return tls.Client(carrier{nc}, nil) }

type carrier struct{ net.Conn }

// UnencryptedNetConn is the method by which net/http and golang.org/x/net/http2
// know a carrier.
func (c carrier) UnencryptedNetConn() net.Conn { return c.Conn }
