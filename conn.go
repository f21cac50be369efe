package graceful

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/seed-121bbccf/graceful/internal/sendfile"
)

// A conn is one tracked connection. What wraps it (tcpConn, unixConn,
// anyConn) embeds it above the connection that the listener produced, so that
// its methods win and all others are the connection's own.
//
// Whoever reads and writes the connection moves its state with atomic
// operations alone; only from the drain on the manager is told.
type conn struct {
	// Immutable after newConn.
	m       *manager
	raw     net.Conn // as the listener produced it
	release func()   // gives the slot in the limit back; nil without limit
	turns   *turns   // states from Read and Write alone; nil for HTTP

	word  atomic.Uint64 // a connWord
	flags atomic.Uint32

	// takenBack counts how often end was taken back: whoever waits in Read
	// then finds the deadline over, and no reason for it.
	takenBack atomic.Uint32

	tls atomic.Pointer[tls.Conn] // laid over it, or what it is beside of

	// mu orders telling a connection to end, which sets a read deadline,
	// against finding out that it must go on, which takes the deadline back.
	mu sync.Mutex

	// info is what the protocol above keeps about the connection. It is
	// written before the first request and read for the report.
	info atomic.Value

	// Owned by the reader.
	beyond beyond // of HTTP/1 without TLS
	ahead  byte   // read last into a buffer of one byte

	// Owned by manager.run.
	seen   connState // when it was looked at last
	gaveUp bool      // it was closed because it did not go on with a request
}

func (c *conn) load() connWord { return connWord(c.word.Load()) }

func (c *conn) has(flag uint32) bool { return c.flags.Load()&flag != 0 }

// Read reads from the connection, and is where it learns that it is to end.
func (c *conn) Read(p []byte) (int, error) {
	if c.turns != nil {
		c.turns.enterRead(c)
	}
	if c.has(flagGiveBack) && len(p) > 0 {
		c.flags.And(^uint32(flagGiveBack))
		p[0] = c.ahead
		return 1, nil
	}
	for {
		before := c.takenBack.Load()
		n, err := c.raw.Read(p)
		if n > 0 {
			if len(p) == 1 {
				c.ahead = p[0]
			}
			c.received(p[:n], len(p))
			return n, err
		}
		ending := c.load().state() == connEnding
		switch takenBack := c.takenBack.Load() != before; {
		case !ending && !takenBack, err == nil, !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		case !ending:
			continue // it was the manager's, which was taken back
		}
		// The deadline is the manager's. It looked for bytes before it
		// set it; look again, since some may have come in between.
		if pending(c.raw) <= 0 {
			return 0, io.EOF
		}
		c.goOn(connReceiving)
	}
}

// received notes that p was read into a buffer of the given size.
func (c *conn) received(p []byte, size int) {
	if c.turns != nil {
		c.turns.received(c)
		return
	}
	if size > 1 && !c.has(flagTLS|flagStreams) {
		switch c.load().state() {
		case connHijacked: // may be read by several
		case connActive:
			c.beyond.n += int64(len(p))
		default:
			c.beyond.head(p)
		}
	}
	for {
		w := c.load()
		switch w.state() {
		case connNew, connIdle:
			if c.has(flagStreams) {
				return
			}
			if !c.word.CompareAndSwap(uint64(w), c.m.stamp(connReceiving)) {
				continue // told to end at this very moment
			}
			c.m.changed(c, connReceiving)
		case connEnding:
			c.goOn(connReceiving)
		case connActive:
			if c.has(flagStreams | flagAhead) {
				return
			}
			// While a handler runs net/http reads ahead, one byte at a
			// time, to see whether the client goes away. Below TLS that
			// is a record like any other, and all there is to go by is
			// that the answer has begun.
			if size == 1 && len(p) == 1 || c.flags.Load()&(flagTLS|flagWrote) == flagTLS|flagWrote {
				c.flags.Or(flagAhead)
			}
		}
		return
	}
}

// wrote notes that something is about to be written.
func (c *conn) wrote() {
	f := c.flags.Load()
	if f&(flagTLS|flagSpoken) == flagTLS {
		// Part of the handshake, and the peer's turn again.
		if w := c.load(); w.state() == connReceiving &&
			c.word.CompareAndSwap(uint64(w), c.m.stamp(connNew)) {
			c.m.changed(c, connNew)
		}
	}
	if f&flagWrote == 0 {
		c.flags.Or(flagWrote)
	}
	if f&(flagAhead|flagTLS) == flagAhead|flagTLS {
		c.flags.And(^uint32(flagAhead)) // it was part of the request's body
	}
}

// Write writes to the connection.
func (c *conn) Write(p []byte) (int, error) {
	if c.turns != nil {
		c.turns.beginWrite(c)
		defer c.turns.endWrite(c)
	} else {
		c.wrote()
	}
	return c.raw.Write(p)
}

// readFrom is io.ReaderFrom for the wrappers whose connection has it.
func (c *conn) readFrom(rf io.ReaderFrom, r io.Reader) (int64, error) {
	if c.turns != nil {
		if !sendfile.IsFile(r) {
			// While it waits for r, as in a proxy, nothing is written.
			return io.Copy(writerOnly{c}, r)
		}
		c.turns.beginWrite(c)
		defer c.turns.endWrite(c)
	} else {
		c.wrote()
	}
	return rf.ReadFrom(r)
}

// setState moves the connection to a state that the protocol above reports:
// active, idle, hijacked or closed.
func (c *conn) setState(to connState) {
	switch to {
	case connActive:
		const ofLast = flagWrote | flagAhead | flagGuess | flagFarewell
		f := c.flags.Load()
		if f&ofLast != 0 {
			c.flags.And(^uint32(ofLast))
		}
		if f&flagSpoken == 0 {
			c.flags.Or(flagSpoken)
		}
	case connIdle:
		if f := c.flags.Load(); f&flagAhead != 0 && f&flagStreams == 0 {
			to = connReceiving
			if f&flagTLS != 0 {
				c.flags.Or(flagGuess)
			}
		}
	}
	for {
		w := c.load()
		if w.state() == connEnding && to != connClosed {
			c.goOn(to)
			return
		}
		var next uint64
		if to == connActive && w.state() == connReceiving {
			next = w.as(to)
		} else {
			next = c.m.stamp(to)
		}
		if c.word.CompareAndSwap(uint64(w), next) {
			break
		}
	}
	c.m.changed(c, to)
}

// sayFarewell notes that the peer is told that the answer in progress is the
// last. That it may be the last connection that had to be told, the manager
// hears at once: when it saw the connection become active, it had not been.
func (c *conn) sayFarewell() {
	c.flags.Or(flagFarewell)
	c.m.changed(c, connActive)
}

// NetConn returns the connection that the listener produced.
func (c *conn) NetConn() net.Conn { return c.raw }

func (c *conn) tracked() *conn { return c }
