package graceful_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A virtListener is a network in memory, for testing/synctest: whoever waits in
// it waits for somebody in the same bubble. It has no deadlines, so that a
// drain closes it at its first moment.
type virtListener struct {
	mu     sync.Mutex // guards what follows
	change sync.Cond
	queue  []*virtConn
	closed bool
	conns  []*virtConn // the server's ends of all there have been
}

// virtWeakness is what the log says of a virtListener.
const virtWeakness = "*graceful_test.virtListener has no SetDeadline method: it is closed at once when draining begins, and the clients in its accept queue are lost"

func newVirtListener() *virtListener {
	l := new(virtListener)
	l.change.L = &l.mu
	return l
}

// dial returns the client's end of a new connection.
func (l *virtListener) dial() *virtConn {
	client, server := virtPair()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, server)
	l.conns = append(l.conns, server)
	l.change.Broadcast()
	return client
}

// waiting returns how many have not been accepted.
func (l *virtListener) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

func (l *virtListener) Accept() (net.Conn, error) {
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

func (l *virtListener) Close() error {
	l.setClosed(true)
	return nil
}

// reopen makes Accept work again.
func (l *virtListener) reopen() { l.setClosed(false) }

func (l *virtListener) setClosed(closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = closed
	l.change.Broadcast()
}

func (l *virtListener) Addr() net.Addr { return virtAddr("server") }

type virtAddr string

func (virtAddr) Network() string  { return "virtual" }
func (a virtAddr) String() string { return string(a) }

// A virtConn is one end of a buffered connection.
type virtConn struct {
	in, out *virtPipe
	addr    virtAddr
}

func virtPair() (client, server *virtConn) {
	up, down := newVirtPipe(), newVirtPipe()
	return &virtConn{down, up, "client"}, &virtConn{up, down, "server"}
}

func (c *virtConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *virtConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *virtConn) Close() error {
	c.out.closeWrite()
	c.in.closeRead()
	return nil
}

func (c *virtConn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

func (c *virtConn) LocalAddr() net.Addr { return c.addr }

func (c *virtConn) RemoteAddr() net.Addr {
	if c.addr == "client" {
		return virtAddr("server")
	}
	return virtAddr("client")
}

func (c *virtConn) SetDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	c.out.writeBy.set(c.out, t)
	return nil
}

func (c *virtConn) SetReadDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	return nil
}

func (c *virtConn) SetWriteDeadline(t time.Time) error {
	c.out.writeBy.set(c.out, t)
	return nil
}

// A virtPipe is one direction of a connection.
type virtPipe struct {
	mu               sync.Mutex // guards what follows
	change           sync.Cond
	buf              bytes.Buffer
	wclosed, rclosed bool
	full             bool // a write waits for the peer to read, for ever
	readBy, writeBy  virtDeadline
}

func newVirtPipe() *virtPipe {
	p := new(virtPipe)
	p.change.L = &p.mu
	return p
}

func (p *virtPipe) read(b []byte) (int, error) {
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

func (p *virtPipe) write(b []byte) (int, error) {
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

func (p *virtPipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wclosed = true
	p.writeBy.stop()
	p.change.Broadcast()
}

func (p *virtPipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rclosed = true
	p.readBy.stop()
	p.change.Broadcast()
}

// A virtDeadline is one of a pipe's, guarded by its mu.
type virtDeadline struct {
	passed bool
	timer  *time.Timer
}

func (d *virtDeadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d *virtDeadline) set(p *virtPipe, t time.Time) {
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
