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
	// http2AckWait is how long a client has to acknowledge the PING after the
	// first GOAWAY. Then the final GOAWAY is sent without the acknowledgement.
	http2AckWait = 1500 * time.Millisecond

	// http2Linger is how long a client has to close the connection after the
	// final GOAWAY. For a client that has not acknowledged the PING it is shorter by
	// http2AckWait.
	http2Linger        = 2 * time.Second
	http2UnackedLinger = http2Linger - http2AckWait

	// http2LastStream is how long after the first GOAWAY a client may open streams
	// that the drain waits for, unless the drain is timed. Otherwise a client that
	// keeps opening streams would prolong the drain without limit.
	http2LastStream = 5 * time.Second
)

// An http2Conn shuts an HTTP/2 connection down in the two steps of RFC 9113,
// section 6.8: a GOAWAY that asks the client to open no more streams (the
// announcement), and, when the client has acknowledged that and no stream is open,
// a final GOAWAY that names the last stream. The http2Conn writes them between two
// frames of the server's; the server (net/http, or another implementation) is not
// involved. All other bytes pass through unchanged.
//
//	following ─ leave ─▶ announced ─ acknowledged, and the grace is over ─▶ finishing
//	                                                                            │
//	                          closed ◀─ the client closes, or linger ─ shut ◀─ no stream is open
//
// One goroutine writes at a time, the owner: that of the server's Write, or one
// that writes a GOAWAY while the server does not write. No lock is held during the
// write, so that a client that does not read blocks only the owner.
type http2Conn struct {
	c     *conn
	grace time.Duration // the least time between the two GOAWAYs

	in http2wire.Cursor // owned by the reader

	// shut: the final GOAWAY is being or was written. The server's writes are
	// dropped, and what the client sends does not reach the server. Written with mu
	// held.
	shut atomic.Bool

	mu sync.Mutex // guards what follows
	// released is signalled when there is no owner any more. At most one goroutine
	// waits, since a server makes one Write at a time.
	released sync.Cond

	owned      bool // a goroutine is writing
	settings   bool // the server's SETTINGS, its first frame, were written
	announced  bool // leave was called
	goAwaySent bool // a GOAWAY was begun to be written, by the http2Conn or by the server
	acked      bool // the client has acknowledged the announcement, or got the server's GOAWAY
	counted    bool // rules.openToStreams counts the connection
	finishing  bool // the final GOAWAY is sent when no stream is open
	lingering  bool // finishing, and no stream is waited for: the timer cuts the connection

	since      time.Time   // when the announcement was due
	lastWaited uint32      // streams above it are not waited for; 0: all are waited for
	timer      *time.Timer // until finishing, and then until the end of linger; nil until it is set

	out     http2wire.Cursor // moved by the owner with mu held
	unsent  []byte           // the part of the announcement that is still to be written
	streams http2wire.Streams
}

// followHTTP2 makes c an HTTP/2 connection. Its preface has been read if
// sawPreface is true. It is called on the goroutine that reads c.
func (c *conn) followHTTP2(sawPreface bool) *http2Conn {
	h := &http2Conn{c: c, grace: c.m.rules.grace}
	h.released.L = &h.mu
	if f := c.m.rules.openToStreams; f != nil {
		h.counted = true
		f(1)
	}
	if !sawPreface {
		h.in.Skip(len(http2wire.Preface))
	}
	c.h2.Store(h)
	c.m.changed(c, connIdle) // after h2 was stored, so that the manager calls leave
	return h
}

// leave begins the shutdown of the connection. It does not block; a second call has
// no effect.
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
		return // the next Write writes the announcement
	}
	h.owned = true
	go func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		_ = h.injectLocked() // the next Write returns the error as well
		h.releaseLocked()
	}()
}

// received follows the frames in p, which was read. It returns how many bytes of p
// the server gets: all, or those before shut.
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
				h.advanceLocked()
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

// write writes p for the server, and the announcement at the first frame boundary
// if it is due.
func (h *http2Conn) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.owned {
		h.released.Wait()
	}
	if h.shut.Load() {
		// After the last stream's end the server writes only window updates and
		// acknowledgements. An error would make it close the connection with data
		// unread, and the reset could overtake the last response.
		return len(p), nil
	}
	h.owned = true
	if h.announced && !h.settings {
		h.since, h.finishing = time.Now(), false // the announcement can be written only now
		h.scheduleLocked()
	}
	for n < len(p) {
		if err = h.injectLocked(); err != nil {
			break
		}
		part := p[n:]
		if h.announced && !h.goAwaySent {
			if k := h.out.ToBoundary(part); k > 0 {
				part = part[:k]
			} else { // the announcement has to follow the SETTINGS
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
		_ = h.injectLocked() // p was written; the next Write returns the error
	}
	h.releaseLocked()
	if h.streams.Final() && !h.acked {
		h.acked = true // the server has sent a final GOAWAY itself
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
		h.goAwaySent = h.goAwaySent || h.streams.Final()
	}
}

// announceableLocked reports whether the announcement is due and can be written
// here.
func (h *http2Conn) announceableLocked() bool {
	return h.announced && !h.goAwaySent && h.settings && h.out.Boundary()
}

// injectLocked writes the announcement, or the rest of it, if it is due and can be
// written here. The caller is the owner. mu is released during the write.
func (h *http2Conn) injectLocked() error {
	if h.announceableLocked() {
		h.goAwaySent = true
		h.unsent = http2wire.Announcement
		h.c.m.goAways.Add(1)
	}
	if len(h.unsent) == 0 {
		return nil
	}
	rest := h.unsent
	h.mu.Unlock()
	n, err := h.c.raw.Write(rest)
	h.mu.Lock()
	h.unsent = rest[n:] // a write deadline may have interrupted it
	return err
}

// releaseLocked ends the caller's ownership.
func (h *http2Conn) releaseLocked() {
	h.owned = false
	h.released.Signal()
	h.advanceLocked()
}

// scheduleLocked enters finishing if that is due, or sets the timer.
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
		h.closedToStreamsLocked()
		h.advanceLocked()
	default:
		h.setTimerLocked(wait)
	}
}

// closedToStreamsLocked reports to rules.openToStreams, once, that the connection
// gets no more streams.
func (h *http2Conn) closedToStreamsLocked() {
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

// timeout is called by the timer.
func (h *http2Conn) timeout() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.finishing {
		h.scheduleLocked()
	} else if h.lingering {
		h.c.cutSoon()
	}
}

// advanceLocked, while finishing, writes the final GOAWAY and half-closes the
// connection as soon as no stream is open. It is called whenever a field that it
// reads has changed.
func (h *http2Conn) advanceLocked() {
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
			linger = http2UnackedLinger
		}
		h.setTimerLocked(linger)
	}
	if open > 0 || h.owned || len(h.unsent) > 0 || !h.settings || !h.out.Boundary() || h.streams.Failed() {
		return // another call follows when the owner is done, or the timer cuts the connection
	}
	// From here on no further stream reaches the server, as the GOAWAY says.
	h.shut.Store(true)
	h.owned = true
	final, last := h.streams.Final(), h.streams.Highest()
	go func() {
		if !final {
			_ = h.c.raw.SetWriteDeadline(time.Time{}) // removes a deadline that the server has set
			_, _ = h.c.raw.Write(http2wire.FinalGoAway(last))
		}
		h.mu.Lock()
		h.releaseLocked()
		h.mu.Unlock()
		// The client closes its side in response. The server reads until then, so that
		// no reset destroys what the client has not read.
		closeWrite(h.c.raw)
	}()
}

// waitsForLocked reports whether the drain waits for one of the open streams.
func (h *http2Conn) waitsForLocked() bool {
	if h.c.m.timed.Load() || time.Since(h.since) < http2LastStream {
		return true
	}
	if h.lastWaited == 0 {
		h.lastWaited = h.streams.Highest()
	}
	return h.streams.OpenUpTo(h.lastWaited) > 0
}

// stop is called when the connection is closed.
func (h *http2Conn) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced, h.finishing = true, true
	h.shut.Store(true)
	h.closedToStreamsLocked()
	if h.timer != nil {
		h.timer.Stop()
	}
}

// Keys of http.Server.TLSNextProto: the protocol name of ALPN, and the key under
// which golang.org/x/net/http2, and net/http up to Go 1.26, have a function that
// serves any net.Conn from which the client's preface was read.
const (
	protoHTTP2            = "h2"
	protoUnencryptedHTTP2 = "unencrypted_http2"
)

// nextProto is the type of the entries of TLSNextProto.
type nextProto = func(*http.Server, *tls.Conn, http.Handler)

// wantsHTTP2 reports whether net/http configures HTTP/2 for s in Serve, or in
// ServeTLS if serveTLS is true.
func wantsHTTP2(s *http.Server, serveTLS bool) bool {
	if s.Protocols != nil {
		if !s.Protocols.HTTP2() && !s.Protocols.UnencryptedHTTP2() {
			return false
		}
	} else if s.TLSNextProto != nil && s.TLSNextProto[protoHTTP2] == nil {
		return false // the way to disable HTTP/2 before there was Protocols
	}
	if serveTLS || s.TLSConfig == nil {
		return true
	}
	if s.Protocols != nil && s.Protocols.UnencryptedHTTP2() {
		return true
	}
	return slices.Contains(s.TLSConfig.NextProtos, protoHTTP2)
}

// isNetHTTPs reports whether f is a function of net/http. net/http puts it into
// TLSNextProto when a server serves, and with Go 1.27 when golang.org/x/net/http2,
// from 0.55 on, configures the server.
func isNetHTTPs(f nextProto) bool {
	return f != nil && strings.HasPrefix(runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name(), "net/http.")
}

// serveALPN serves c if ALPN has negotiated a protocol that net/http would not serve
// on c, and returns true when the connection has ended. Otherwise it returns false.
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
		return true // the connection is closed, as by net/http
	}
	if isHTTP2 {
		c.set(flagForeign)
	} else {
		c.setState(connActive) // until the protocol reports another state, as in net/http
	}
	// serve reports the states of tc, which connOf cannot map to c.
	base := copyServer(hs)
	base.ConnState = func(_ net.Conn, state http.ConnState) { s.stateChanged(&c.conn, state) }
	serve(base, tc, h)
	return true
}

// http2PrefaceTimeout is net/http's unexported timeout for the preface.
const http2PrefaceTimeout = 10 * time.Second

// readPreface reads HTTP/2's preface and reports whether it has come. The functions
// under protoUnencryptedHTTP2 require that.
func (s *Server) readPreface(c *tlsConn) bool {
	_ = c.SetReadDeadline(time.Now().Add(http2PrefaceTimeout))
	buf := make([]byte, len(http2wire.Preface))
	if _, err := io.ReadFull(&c.conn, buf); err != nil {
		return false // net/http does not log this either
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

// An alpnConn is a tlsConn for the protocol that is served from within
// tlsConn.begin. Its methods do not call begin.
type alpnConn struct {
	*conn
	connBelow
	secure secureConn
}

func (c alpnConn) ConnectionState() tls.ConnectionState { return c.secure.ConnectionState() }

// CloseWrite closes the writing side.
func (c alpnConn) CloseWrite() error { return closeWrite(c.raw) }

// unencrypted returns a *tls.Conn that carries nc to a function of TLSNextProto,
// which takes a *tls.Conn. TLS is not used.
func unencrypted(nc net.Conn) *tls.Conn { return tls.Client(carrier{nc}, nil) }

type carrier struct{ net.Conn }

// UnencryptedNetConn returns the carried connection. net/http and
// golang.org/x/net/http2 call it.
func (c carrier) UnencryptedNetConn() net.Conn { return c.Conn }
