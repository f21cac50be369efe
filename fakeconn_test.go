package graceful

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A fakeConn is a connection whose peer is the test. What has come is read even
// after the deadline.
type fakeConn struct {
	closed func() // called once, by the first Close

	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	unread   int
	eof      bool
	over     bool
	blocking bool // writes
	deadline time.Time
	alarm    *time.Timer
}

func newFakeConn(closed func()) *fakeConn {
	f := &fakeConn{closed: closed}
	f.changed.L = &f.mu
	return f
}

// peerSends lets n bytes come, and returns n.
func (f *fakeConn) peerSends(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unread += n
	f.changed.Broadcast()
	return n
}

func (f *fakeConn) peerCloses() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.eof = true
	f.changed.Broadcast()
}

// blockWrites makes writes block until letWritesEnd, or the end.
func (f *fakeConn) blockWrites() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocking = true
}

func (f *fakeConn) letWritesEnd() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocking = false
	f.changed.Broadcast()
}

func (f *fakeConn) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.over:
			return 0, net.ErrClosed
		case f.unread > 0:
			n := min(len(p), f.unread)
			f.unread -= n
			return n, nil
		case f.eof:
			return 0, io.EOF
		case !f.deadline.IsZero() && !f.deadline.After(time.Now()):
			return 0, os.ErrDeadlineExceeded
		}
		f.changed.Wait()
	}
}

func (f *fakeConn) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.blocking && !f.over {
		f.changed.Wait()
	}
	if f.over {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

func (f *fakeConn) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return net.ErrClosed
	}
	f.over = true
	f.closed()
	f.changed.Broadcast()
	return nil
}

func (f *fakeConn) SetReadDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = t
	if f.alarm != nil {
		f.alarm.Stop()
	}
	if !t.IsZero() {
		f.alarm = time.AfterFunc(time.Until(t), func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.changed.Broadcast()
		})
	}
	f.changed.Broadcast()
	return nil
}

func (f *fakeConn) SetDeadline(t time.Time) error    { return f.SetReadDeadline(t) }
func (f *fakeConn) SetWriteDeadline(time.Time) error { return nil }
func (f *fakeConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (f *fakeConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
