package graceful_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A memListener is a network in memory, for testing/synctest: whoever waits in
// it waits for somebody in the same bubble. It has no deadlines, so that a
// drain closes it at its first moment.
type memListener struct {
	mu     sync.Mutex // guards what follows
	change sync.Cond
	queue  []*memConn
	closed bool
	conns  []*memConn // the server's ends of all there have been
}

func newMemListener() *memListener {
	l := new(memListener)
	l.change.L = &l.mu
	return l
}

// dial returns the client's end of a new connection.
func (l *memListener) dial() *memConn {
	client, server := memPair()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, server)
	l.conns = append(l.conns, server)
	l.change.Broadcast()
	return client
}

// waiting returns how many have not been accepted.
func (l *memListener) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

func (l *memListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 || l.closed {
		if l.closed {
			return nil, net.ErrClosed
		}
		l.change.Wait()
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *memListener) Close() error {
	l.setClosed(true)
	return nil
}

// reopen makes Accept work again.
func (l *memListener) reopen() { l.setClosed(false) }

func (l *memListener) setClosed(closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = closed
	l.change.Broadcast()
}

func (l *memListener) Addr() net.Addr { return memAddr("server") }

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// A memConn is one end of a buffered connection.
type memConn struct {
	in, out *memPipe
	addr    memAddr
}

func memPair() (client, server *memConn) {
	up, down := newMemPipe(), newMemPipe()
	return &memConn{down, up, "client"}, &memConn{up, down, "server"}
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *memConn) Close() error {
	c.out.closeWrite()
	c.in.closeRead()
	return nil
}

func (c *memConn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

func (c *memConn) LocalAddr() net.Addr { return c.addr }

func (c *memConn) RemoteAddr() net.Addr {
	if c.addr == "client" {
		return memAddr("server")
	}
	return memAddr("client")
}

func (c *memConn) SetDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	c.out.writeBy.set(c.out, t)
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.writeBy.set(c.out, t)
	return nil
}

// A memPipe is one direction of a connection.
type memPipe struct {
	mu               sync.Mutex // guards what follows
	change           sync.Cond
	buf              bytes.Buffer
	wclosed, rclosed bool
	full             bool // a write waits for the peer to read, for ever
	readBy, writeBy  memDeadline
}

func newMemPipe() *memPipe {
	p := new(memPipe)
	p.change.L = &p.mu
	return p
}

func (p *memPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.rclosed:
			return 0, net.ErrClosed
		case p.readBy.passed: // before bytes that are there, as package net has it
			return 0, os.ErrDeadlineExceeded
		case p.buf.Len() > 0:
			return p.buf.Read(b)
		case p.wclosed:
			return 0, io.EOF
		}
		p.change.Wait()
	}
}

func (p *memPipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.wclosed:
			return 0, net.ErrClosed
		case p.rclosed:
			return 0, io.ErrClosedPipe
		case p.writeBy.passed:
			return 0, os.ErrDeadlineExceeded
		case !p.full:
			p.change.Broadcast()
			return p.buf.Write(b)
		}
		p.change.Wait()
	}
}

func (p *memPipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wclosed = true
	p.writeBy.stop()
	p.change.Broadcast()
}

func (p *memPipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rclosed = true
	p.readBy.stop()
	p.change.Broadcast()
}

// A memDeadline is one of a pipe's, guarded by its mu.
type memDeadline struct {
	passed bool
	timer  *time.Timer
}

func (d *memDeadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d *memDeadline) set(p *memPipe, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.stop()
	d.passed = !t.IsZero() && !t.After(time.Now())
	if !t.IsZero() && !d.passed {
		var mine *time.Timer
		mine = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if d.timer == mine { // not replaced since
				d.passed = true
				p.change.Broadcast()
			}
		})
		d.timer = mine
	} else {
		d.timer = nil
	}
	p.change.Broadcast()
}
