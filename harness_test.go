package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// eventually waits until look returns true, where no channel announces the event.
func eventually(t testing.TB, look func() (ok bool, seen any)) {
	t.Helper()
	graceful.Eventually(t, look)
}

// A virtListener is a network in memory, for testing/synctest: its goroutines block
// durably, each until another one in the bubble acts. It has no deadlines, so a
// drain closes it at its beginning.
type virtListener struct {
	mu       sync.Mutex // guards what follows
	change   sync.Cond
	queue    []net.Conn // the server's ends of those that wait to be accepted
	closed   bool
	fail     error        // what Accept returns, if not nil
	deadline virtDeadline // a virtSocket's
	conns    []*virtConn  // the server's ends of all that dial has made
	accepted int
}

// virtWeakness is what the log says of a virtListener.
const virtWeakness = "*graceful_test.virtListener has no SetDeadline method: it is closed at once when draining begins, and the clients in its accept queue are lost"

func newVirtListener() *virtListener {
	l := new(virtListener)
	l.change.L = &l.mu
	return l
}

// dial returns the client's end of a new connection, which is buffered.
func (l *virtListener) dial() *virtConn {
	client, server := virtPair()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, server)
	l.add(server)
	return client
}

// dialPipe returns the client's end of a net.Pipe: nothing is buffered between
// client and server, so one that does not read blocks the other at once.
func (l *virtListener) dialPipe() net.Conn {
	client, server := net.Pipe()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(server)
	return client
}

// connectPipe is dialPipe that waits until the connection has been accepted.
func (l *virtListener) connectPipe() (net.Conn, error) {
	client, server := net.Pipe()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.add(server); slices.Contains(l.queue, net.Conn(server)); l.change.Wait() {
		if l.closed {
			return nil, net.ErrClosed
		}
	}
	return client, nil
}

// add is called with mu held.
func (l *virtListener) add(server net.Conn) {
	l.queue = append(l.queue, server)
	l.change.Broadcast()
}

// waiting returns how many have not been accepted.
func (l *virtListener) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// taken returns how many have been accepted.
func (l *virtListener) taken() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

func (l *virtListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, net.ErrClosed
		case l.fail != nil:
			return nil, l.fail
		case l.deadline.passed: // before a connection that is there, as package net has it
			return nil, os.ErrDeadlineExceeded
		case len(l.queue) > 0:
			c := l.queue[0]
			l.queue = l.queue[1:]
			l.accepted++
			l.change.Broadcast()
			return c, nil
		}
		l.change.Wait()
	}
}

// Close returns net.ErrClosed from the second time on.
func (l *virtListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	l.deadline.stop()
	l.change.Broadcast()
	return nil
}

// reopen makes Accept work again.
func (l *virtListener) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = false
}

// failWith has Accept return err until it is called with nil.
func (l *virtListener) failWith(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
	l.change.Broadcast()
}

func (l *virtListener) Addr() net.Addr { return virtAddr("server") }

// A virtSocket is a virtListener with a deadline, as a socket has one.
type virtSocket struct{ *virtListener }

func newVirtSocket() virtSocket { return virtSocket{newVirtListener()} }

func (l virtSocket) SetDeadline(t time.Time) error {
	l.deadline.set(&l.change, t)
	return nil
}

// newListener returns a Listener that catches no signals, as in a synctest bubble
// it must not.
func newListener(l net.Listener) *graceful.Listener {
	gl := graceful.NewListener(l)
	gl.NoSignalHandling = true
	return gl
}

// newQueued returns a Listener, and the one below it.
func newQueued() (virtSocket, *graceful.Listener) {
	below := newVirtSocket()
	return below, newListener(below)
}

// queueTried is how long a queue that can't be looked into, as a virtSocket's, is
// tried once more.
const queueTried = 3 * time.Millisecond

// A hookedListener calls functions, those that are not nil, in the place of its
// methods.
type hookedListener struct {
	net.Listener
	accept func() (net.Conn, error)
	over   func(net.Conn) net.Conn // laid over what is accepted
	close  func() error
	addr   func() net.Addr
}

func (l *hookedListener) Accept() (net.Conn, error) {
	accept := l.Listener.Accept
	if l.accept != nil {
		accept = l.accept
	}
	nc, err := accept()
	if err == nil && l.over != nil {
		nc = l.over(nc)
	}
	return nc, err
}

func (l *hookedListener) Close() error {
	if l.close != nil {
		return l.close()
	}
	return l.Listener.Close()
}

func (l *hookedListener) Addr() net.Addr {
	if l.addr != nil {
		return l.addr()
	}
	return l.Listener.Addr()
}

// failingListener returns a listener that accepts so many from l, and calls fail
// from then on.
func failingListener(l net.Listener, accepts int, fail func() error) net.Listener {
	return &hookedListener{Listener: l, accept: func() (net.Conn, error) {
		if accepts--; accepts < 0 {
			return nil, fail()
		}
		return l.Accept()
	}}
}

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
	c.in.readBy.set(&c.in.change, t)
	c.out.writeBy.set(&c.out.change, t)
	return nil
}

func (c *virtConn) SetReadDeadline(t time.Time) error {
	c.in.readBy.set(&c.in.change, t)
	return nil
}

func (c *virtConn) SetWriteDeadline(t time.Time) error {
	c.out.writeBy.set(&c.out.change, t)
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

// A virtDeadline is one of a pipe's or a listener's, guarded by its mu.
type virtDeadline struct {
	passed bool
	timer  *time.Timer
}

func (d *virtDeadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// set is for the owner of change.
func (d *virtDeadline) set(change *sync.Cond, t time.Time) {
	change.L.Lock()
	defer change.L.Unlock()
	d.stop()
	d.passed = !t.IsZero() && !t.After(time.Now())
	if !t.IsZero() && !d.passed {
		var mine *time.Timer
		mine = time.AfterFunc(time.Until(t), func() {
			change.L.Lock()
			defer change.L.Unlock()
			if d.timer == mine { // not replaced since
				d.passed = true
				change.Broadcast()
			}
		})
		d.timer = mine
	} else {
		d.timer = nil
	}
	change.Broadcast()
}

// What the tests of Listener share: a server and a client of a protocol of
// lines, in which every line has one for an answer, over connections in
// memory or real ones.

// A lineServer is the bare accept loop with a Listener in it. It knows
//
//	wait D   answer after so long
//	else     answer at once
//
// and ends a connection when Read says so.
type lineServer struct {
	greeting string
	over     func(net.Conn) net.Conn // laid over what is accepted, if not nil
	handle   func(c net.Conn, line string) (reply string, handled bool)
	left     chan struct{} // takes a value when a connection has been closed, if not nil

	began time.Time
	done  chan struct{} // closed when serve returns
	err   error         // what Accept returned
	ended time.Duration // and when
	conns sync.WaitGroup

	mu    sync.Mutex // guards errs
	errs  []error    // what Read returned, but for io.EOF
	lines int        // carried out
}

func (s *lineServer) start(l net.Listener) *lineServer {
	s.began, s.done = time.Now(), make(chan struct{})
	go func() {
		defer close(s.done)
		for {
			c, err := l.Accept()
			if err != nil {
				s.err, s.ended = err, time.Since(s.began)
				return
			}
			if s.over != nil {
				c = s.over(c)
			}
			s.conns.Go(func() { s.serve(c) })
		}
	}()
	return s
}

func (s *lineServer) serve(c net.Conn) {
	defer func() {
		c.Close()
		if s.left != nil {
			s.left <- struct{}{}
		}
	}()
	if s.greeting != "" {
		io.WriteString(c, s.greeting)
	}
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if err != io.EOF {
				s.mu.Lock()
				s.errs = append(s.errs, err)
				s.mu.Unlock()
			}
			return
		}
		line = strings.TrimSpace(line)
		var reply string
		handled := false
		if s.handle != nil {
			reply, handled = s.handle(c, line)
		}
		if d, ok := strings.CutPrefix(line, "wait "); ok && !handled {
			wait, err := time.ParseDuration(d)
			if err != nil {
				panic(err)
			}
			time.Sleep(wait)
		}
		if !handled {
			reply = "ok " + line
		}
		s.mu.Lock()
		s.lines++
		s.mu.Unlock()
		if reply == "" {
			continue
		}
		if _, err := io.WriteString(c, reply+"\n"); err != nil {
			return
		}
	}
}

// wait waits for the server's end and for its connections.
func (s *lineServer) wait() {
	<-s.done
	s.conns.Wait()
}

// A lineClient speaks to a lineServer.
type lineClient struct {
	net.Conn
	r     *bufio.Reader
	began time.Time
}

func newLineClient(c net.Conn) *lineClient {
	return &lineClient{c, bufio.NewReader(c), time.Now()}
}

func (c *lineClient) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Error(err)
	}
}

func (c *lineClient) hear(t *testing.T, want string) {
	t.Helper()
	if got, err := c.r.ReadString('\n'); got != want+"\n" {
		t.Errorf("heard %q, %v, want %q", got, err, want)
	}
}

func (c *lineClient) ask(t *testing.T, line string) {
	t.Helper()
	c.say(t, line+"\n")
	c.hear(t, "ok "+line)
}

// end expects the end of the connection and returns when it came.
func (c *lineClient) end(t *testing.T) time.Duration {
	t.Helper()
	if got, err := c.r.ReadString('\n'); err != io.EOF || got != "" {
		t.Errorf("heard %q, %v, want the end", got, err)
	}
	c.Close()
	return time.Since(c.began)
}

// shutListener shuts l down and returns how long that took.
func shutListener(t *testing.T, l *graceful.Listener) time.Duration {
	t.Helper()
	began := time.Now()
	if err := l.Shutdown(context.Background()); err != nil {
		t.Errorf("%v\n%v", err, l.Report())
	}
	return time.Since(began)
}

// beginShut has l shut down in the background. The channel brings how long that
// took.
func beginShut(t *testing.T, l *graceful.Listener) <-chan time.Duration {
	t.Helper()
	stopped := make(chan time.Duration, 1)
	go func() { stopped <- shutListener(t, l) }()
	return stopped
}

func wantTime(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got != want {
		t.Errorf("%s: after %v, want %v", what, got, want)
	}
}

// openStates says what the open connections are doing.
func openStates(l *graceful.Listener) string {
	s := l.Stats()
	return fmt.Sprintf("%d new, %d active, %d idle", s.New, s.Active, s.Idle)
}
