package graceful

import (
	"bytes"
	"crypto/tls"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"
)

// http2PrefaceTimeout is how long a client has for its preface; net/http's own
// limit, which it does not export.
const http2PrefaceTimeout = 10 * time.Second

// http2Patience is how long a client is given to acknowledge a PING: on a busy
// machine, or far away, but alive.
const http2Patience = 2 * time.Second

// http2Disabled is why the layer has no place in a program without HTTP/2.
const http2Disabled = "HTTP/2 is off by GODEBUG http2server=0, or the build"

// http2Config is what an http2Layer needs to know of its server.
type http2Config struct {
	// serveTLS says that the listener's connections are TLS by the server's
	// own doing (ServeTLS and its kin); as in net/http this decides whether
	// HTTP/2 is configured at all.
	serveTLS bool

	// grace is the least time that a connection is given between the two
	// GOAWAYs, and patience the most that it is waited for if its client
	// does not acknowledge the first.
	grace, patience time.Duration

	// connState is called for StateActive and StateIdle, with the connection
	// that net/http accepted. It runs on HTTP/2's serve loop and must not
	// block. Nil for none.
	connState func(net.Conn, http.ConnState)

	// onOpen is called when nc has turned out to be HTTP/2: after the
	// client's preface, before anything is served. Until then nc is like any
	// other new connection, and whoever owns it may end it. onClose is
	// called when it has been served. Either may be nil.
	onOpen  func(nc net.Conn, c *http2Conn)
	onClose func(nc net.Conn)
}

// http2Layer stands between an http.Server and net/http's HTTP/2, and lets its
// connections drain in the two steps of RFC 9113, section 6.8: a GOAWAY that
// only says "open no more streams", and when that has had its time to arrive
// the final one, which names the last stream. net/http knows only the final
// one, and for it only http.Server.Shutdown. So HTTP/2 is configured on a
// server that has nothing else, the holder: shutting that down leaves HTTP/1
// alone.
//
// Nor is the time between the two left to a guess: see announcement.
//
// The zero of it, a nil *http2Layer, has no connections and does nothing; the
// server is then as net/http makes it.
type http2Layer struct {
	cfg  http2Config
	user *http.Server // what handlers find under http.ServerContextKey
	base *http.Server // the configuration that HTTP/2 reads; see install

	mu        sync.Mutex // guards the fields below, and every holder's
	holder    *http2Holder
	conns     map[*http2Conn]*http2Holder
	announced bool
	finished  bool
}

// newHTTP2 prepares the layer for a server with user's configuration, which
// it only reads. When the layer has no place it is nil, and plain says why:
// HTTP/2 is switched off, user has an HTTP/2 implementation of its own, or this
// Go's net/http is not what the layer was built for. The error is the one that
// net/http would have returned from Serve.
func newHTTP2(user *http.Server, cfg http2Config) (l *http2Layer, plain string, err error) {
	if _, ok := user.TLSNextProto[protoHTTP2]; ok {
		return nil, "TLSNextProto has an HTTP/2 of its own", nil
	}
	if !wantsHTTP2(user, cfg.serveTLS) {
		return nil, "HTTP/2 is off", nil
	}
	srv, err := configureHTTP2(user)
	if err != nil {
		return nil, "", err
	}
	if srv.TLSNextProto[protoHTTP2] == nil {
		return nil, http2Disabled, nil
	}
	if reason := http2Assumed(srv.TLSNextProto[protoUnencryptedHTTP2]); reason != "" {
		return nil, reason, nil
	}
	l = &http2Layer{cfg: cfg, user: user, conns: make(map[*http2Conn]*http2Holder)}
	l.holder = newHTTP2Holder(l, srv)
	return l, "", nil
}

// install makes hs, which has not begun to serve, give its HTTP/2 connections
// to the layer. hs has user's configuration; its TLSNextProto is replaced, not
// changed. It is called once.
func (l *http2Layer) install(hs *http.Server) {
	if l == nil {
		return
	}
	// HTTP/2 asks its server for limits, for the log and for ConnState, and
	// whether keep-alives are on. It is not asked of hs: when hs is shut down
	// for the sake of HTTP/1, net/http's HTTP/2 would take that for a reason
	// to send the final GOAWAY.
	l.base = &http.Server{
		Handler:        hs.Handler,
		TLSConfig:      hs.TLSConfig,
		ReadTimeout:    hs.ReadTimeout,
		WriteTimeout:   hs.WriteTimeout,
		IdleTimeout:    hs.IdleTimeout,
		MaxHeaderBytes: hs.MaxHeaderBytes,
		ErrorLog:       hs.ErrorLog,
		HTTP2:          hs.HTTP2,
	}
	if f := l.cfg.connState; f != nil {
		l.base.ConnState = func(nc net.Conn, s http.ConnState) {
			if c, ok := nc.(interface{ NetConn() net.Conn }); ok {
				nc = c.NetConn()
			}
			f(nc, s)
		}
	}
	protos := maps.Clone(hs.TLSNextProto)
	if protos == nil {
		protos = make(map[string]nextProto)
	}
	protos[protoHTTP2] = l.serveTLS
	protos[protoUnencryptedHTTP2] = l.serveUnencrypted
	hs.TLSNextProto = protos
}

// setKeepAlivesEnabled is http.Server's: without keep-alives a connection ends
// with its last stream.
func (l *http2Layer) setKeepAlivesEnabled(v bool) {
	if l != nil {
		l.base.SetKeepAlivesEnabled(v)
	}
}

// serveTLS serves a connection that has agreed on "h2" with ALPN. The entry
// that takes any net.Conn wants the preface read.
func (l *http2Layer) serveTLS(_ *http.Server, tc *tls.Conn, h http.Handler) {
	_ = tc.SetReadDeadline(time.Now().Add(http2PrefaceTimeout))
	buf := make([]byte, len(clientPreface))
	if _, err := io.ReadFull(tc, buf); err != nil {
		return // net/http closes, and is as silent about it
	}
	if !bytes.Equal(buf, []byte(clientPreface)) {
		l.logf("http2: server: error reading preface from client %v: bogus greeting %q", tc.RemoteAddr(), buf)
		return
	}
	_ = tc.SetReadDeadline(time.Time{})
	c := newHTTP2Conn(tc)
	l.run(tc, c, tlsHTTP2Conn{c}, h)
}

// serveUnencrypted serves a connection without TLS. net/http has read the
// preface and not a byte more.
func (l *http2Layer) serveUnencrypted(_ *http.Server, carrier *tls.Conn, h http.Handler) {
	u, ok := carrier.NetConn().(interface{ UnencryptedNetConn() net.Conn })
	if !ok {
		l.logf("graceful: net/http handed over a %T in place of a connection without TLS", carrier.NetConn())
		return
	}
	nc := u.UnencryptedNetConn()
	c := newHTTP2Conn(nc)
	l.run(nc, c, c, h)
}

// run serves c, which is followed for nc, until it is closed.
func (l *http2Layer) run(nc net.Conn, c *http2Conn, followed net.Conn, h http.Handler) {
	serve := l.add(c)
	defer func() {
		l.remove(c)
		if l.cfg.onClose != nil {
			l.cfg.onClose(nc)
		}
	}()
	if l.cfg.onOpen != nil {
		l.cfg.onOpen(nc, c)
	}
	serve(l.base, unencryptedCarrier(followed), http2Handler{h, l.user})
}

// add takes c in and returns what serves it.
func (l *http2Layer) add(c *http2Conn) nextProto {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holder
	if l.finished {
		// net/http's Shutdown forgets those who come after it
		// (golang/go#81153). They are few: each has a holder of its own, and
		// between its two GOAWAYs the time that the others had.
		if srv, err := configureHTTP2(l.user); err == nil {
			h = newHTTP2Holder(l, srv)
		}
	}
	l.conns[c] = h
	h.conns[c] = false
	c.onBegin = h.began
	c.onAck = func() { h.acked(c) }
	if l.announced {
		h.await(c)
		c.announce()
	}
	return h.serve
}

func (l *http2Layer) remove(c *http2Conn) {
	c.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c].remove(c)
	delete(l.conns, c)
}

// announce sends the first GOAWAY on every connection, and on those to come as
// soon as their SETTINGS are out. It does not block; a second call does nothing.
func (l *http2Layer) announce() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.announced {
		return
	}
	l.announced = true
	l.holder.newest = time.Now()
	for c, h := range l.conns {
		h.await(c)
		c.announce()
	}
}

// finish sends the final GOAWAY as soon as every client has acknowledged the
// first, and none has had less than the grace or been silent for longer than
// the patience. From then on a connection without
// streams is closed when the client has been told. It does not block; it
// implies announce.
func (l *http2Layer) finish() {
	if l == nil {
		return
	}
	l.announce()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	l.holder.schedule()
}

// counts returns how many connections there are, and how many streams are open
// on them.
func (l *http2Layer) counts() (conns, streams int) {
	if l == nil {
		return 0, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		streams += c.streamCount()
	}
	return len(l.conns), streams
}

func (l *http2Layer) logf(format string, args ...any) {
	if l.base.ErrorLog != nil {
		l.base.ErrorLog.Printf(format, args...)
		return
	}
	log.Printf(format, args...)
}
