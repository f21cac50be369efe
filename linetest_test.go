package graceful_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// What the tests of Listener share: a server and a client of a protocol of
// lines, in which every line has one for an answer, over connections in
// memory or real ones.

// queueTried is how long a queue that can't be looked into, as this one, is
// tried once more.
const queueTried = 3 * time.Millisecond

// A queueListener is a net.Listener in memory with an accept queue and a
// deadline, as a socket has them. Its connections are net.Pipes.
type queueListener struct {
	queue chan net.Conn
	done  chan struct{}

	mu       sync.Mutex // guards what follows
	deadline time.Time
	changed  chan struct{} // closed, and replaced, when deadline changes
	fail     error         // what Accept returns, if not nil
	closed   bool
}

func newQueueListener() *queueListener {
	return &queueListener{
		queue: make(chan net.Conn, 100), done: make(chan struct{}), changed: make(chan struct{}),
	}
}

func (l *queueListener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		deadline, changed, fail := l.deadline, l.changed, l.fail
		l.mu.Unlock()
		var over <-chan time.Time
		if fail != nil {
			return nil, fail
		}
		if !deadline.IsZero() {
			if !deadline.After(time.Now()) {
				return nil, os.ErrDeadlineExceeded
			}
			over = time.After(time.Until(deadline))
		}
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.done:
			return nil, net.ErrClosed
		case <-changed:
		case <-over:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

func (l *queueListener) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *queueListener) SetDeadline(t time.Time) error {
	l.set(func() { l.deadline = t })
	return nil
}

func (l *queueListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	close(l.done)
	return nil
}

func (l *queueListener) Addr() net.Addr { return &net.UnixAddr{Name: "queue", Net: "pipe"} }

// newQueued returns a Listener, and the one below it.
func newQueued() (*queueListener, *graceful.Listener) {
	ql := newQueueListener()
	return ql, graceful.NewListener(ql)
}

// dial returns a connection that waits to be accepted.
func (l *queueListener) dial() net.Conn {
	client, server := net.Pipe()
	l.queue <- server
	return client
}

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
