package graceful

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// Listen is net.Listen for a socket that is going to be given to a Server or a
// Listener, and to nobody else: a socket that this process opened and shares
// with no other can be shut without losing the clients that have just
// connected (see Server.OwnsListener). The network must be "tcp", "tcp4",
// "tcp6" or "unix".
//
// The file of a unix socket is removed when the listener is closed, as
// net.Listen's is, unless another socket has taken its place since. An abstract
// socket, whose name begins with "@", has none.
func Listen(network, addr string) (net.Listener, error) {
	return listen(network, addr, false, 0)
}

// listen opens a listener of our own. A negative keepAlive turns TCP
// keep-alive off, 0 leaves it to package net.
func listen(network, addr string, reusePort bool, keepAlive time.Duration) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, fmt.Errorf("graceful: listen: %w", net.UnknownNetworkError(network))
	}
	lc := net.ListenConfig{KeepAlive: keepAlive}
	if reusePort && network != "unix" {
		if err := sock.SetReusePort(&lc); err != nil {
			return nil, fmt.Errorf("graceful: listen on %s: %w", addr, err)
		}
	}
	l, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	own := &ownListener{Listener: l}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false) // see removeFile
		own.path = ul.Addr().String()
		// An abstract socket has no file: a file of that name is another's.
		if !strings.HasPrefix(own.path, "@") {
			own.file, _ = os.Lstat(own.path)
		}
	}
	return own, nil
}

// An ownListener is a socket that this process opened and shares with nobody.
type ownListener struct {
	net.Listener

	// A unix socket's file, as it was when the socket was bound.
	path string
	file os.FileInfo // nil for others
}

// Close closes the socket.
func (l *ownListener) Close() error {
	l.removeFile()
	return l.Listener.Close()
}

// removeFile removes a unix socket's file, if it is still this socket's.
func (l *ownListener) removeFile() {
	if l.file == nil {
		return
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		os.Remove(l.path)
	}
}

// bareListener returns the listener at the bottom of l: below those of this
// package, and below wrappers that have an Unwrap method.
func bareListener(l net.Listener) net.Listener {
	for {
		if own, ok := l.(*ownListener); ok {
			l = own.Listener
			continue
		}
		below := unwrapListener(l)
		if below == nil {
			return l
		}
		l = below
	}
}

// isOwn reports whether the socket of l is known to be ours alone.
func isOwn(l net.Listener) bool {
	for l != nil {
		if _, own := l.(*ownListener); own {
			return true
		}
		l = unwrapListener(l)
	}
	return false
}

// unwrapListener returns the listener that l wraps, and nil if it is not known.
func unwrapListener(l net.Listener) net.Listener {
	switch l := l.(type) {
	case *tlsListener: // below a LimitListener
		return l.Listener
	case interface{ Unwrap() net.Listener }:
		return l.Unwrap()
	}
	return nil
}

// A listener accepts connections, wraps them for the manager, and ceases to
// accept without losing a client: it stops admitting, empties the accept queue,
// and closes then.
//
//	serving ── stop ──▶ emptying ── the queue is empty ──▶ closed
//	   └─────────────── Close, a failing Accept ────────────▲
type listener struct {
	// Immutable once it serves.
	life *lifecycle
	m    *manager
	l    net.Listener // what Accept is called on

	original net.Listener  // what the caller handed in: l, or what it was taken from
	owned    bool          // the socket may be told to admit nobody
	reuse    bool          // a successor may have bound the same port
	grace    time.Duration // how long handshakes under way are waited for
	limit    *limiter      // nil without limit
	wrap     func(nc net.Conn) (net.Conn, *conn)

	// queued reports whether a connection waits to be accepted, and whether
	// that can be known. Tests replace it.
	queued func(net.Listener) (waits, known bool)

	shut     atomic.Int64 // since when the socket admits nobody, since m.began; 0: it does
	again    atomic.Bool  // the queue of a shut socket was found empty once
	stopping chan struct{}
	stopAt   time.Duration // since m.began. Written before stopping is closed.
	closed   chan struct{}

	stopOnce, closeOnce sync.Once
	closeErr            error

	accepts atomic.Int32         // calls of Accept that are under way
	last    atomic.Pointer[conn] // what Accept returned last; nil while it runs

	mu      sync.Mutex // guards backlog
	backlog []net.Conn // what sweep has accepted
}

func newListener(life *lifecycle, m *manager, l net.Listener, limit *limiter) *listener {
	return &listener{
		life: life, m: m, l: l, limit: limit,
		queued: func(l net.Listener) (waits, known bool) {
			return sock.AcceptQueued(bareListener(l))
		},
		stopping: make(chan struct{}),
		closed:   make(chan struct{}),
	}
}

// Addr returns the address that the listener is bound to.
func (l *listener) Addr() net.Addr { return l.l.Addr() }

// Accept returns the next connection, wrapped. At the end of accepting it
// returns an error that wraps net.ErrClosed; timeouts of its own making stay
// inside, for net/http would try again. It may be called concurrently.
func (l *listener) Accept() (net.Conn, error) {
	l.accepts.Add(1)
	defer l.leave()
	l.last.Store(nil)
	held := l.limit == nil || l.slot() // a slot, if one is needed
	if !held && !l.blind() {
		return nil, l.ended()
	}
	for {
		nc, err := l.next()
		if err == nil {
			if !held && !l.lateSlot() {
				nc.Close()
				return nil, l.ended()
			}
			l.accepted()
			wrapped, c := l.wrap(nc)
			if !l.m.added(c) {
				c.cutSoon()
				return nil, l.ended()
			}
			l.last.Store(c)
			return wrapped, nil
		}
		if isClosed(l.stopping) && l.tryAgain(err) {
			continue
		}
		if l.limit != nil && held {
			l.limit.release()
		}
		if isClosed(l.stopping) || isClosed(l.closed) {
			return nil, l.ended()
		}
		return nil, err
	}
}

// leave is the end of an Accept. The last one of a closed listener tells the
// lifecycle that no connection comes any more: every Accept that had one has
// handed it to the manager by then.
func (l *listener) leave() {
	if l.accepts.Add(-1) == 0 && isClosed(l.closed) && !l.hasBacklog() {
		l.life.release(l)
	}
}

// next returns the next connection of the backlog, or of the listener.
func (l *listener) next() (net.Conn, error) {
	l.mu.Lock()
	if len(l.backlog) > 0 {
		nc := l.backlog[0]
		l.backlog = l.backlog[1:]
		l.mu.Unlock()
		return nc, nil
	}
	l.mu.Unlock()
	return l.l.Accept()
}

func (l *listener) hasBacklog() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.backlog) > 0
}

// dropBacklog closes what sweep has accepted and Accept will not return any more.
func (l *listener) dropBacklog() {
	l.mu.Lock()
	dropped := l.backlog
	l.backlog = nil
	l.mu.Unlock()
	if len(dropped) > 0 {
		go func() { // a Close may block
			for _, nc := range dropped {
				nc.Close()
			}
		}()
	}
}

// dropLast closes the connection that Accept returned last, which nobody took.
func (l *listener) dropLast() {
	if c := l.last.Load(); c != nil {
		c.cutSoon()
		c.gone()
	}
}

// ended closes the listener and returns what Accept says then.
func (l *listener) ended() error {
	l.Close()
	err := &net.OpError{Op: "accept", Addr: l.Addr(), Err: net.ErrClosed}
	if err.Addr != nil { // a listener of the caller's own may have none
		err.Net = err.Addr.Network()
	}
	return err
}

// slot waits for a place in the limit. While the queue is being emptied it
// does so only as long as a client is waiting for that place, and a connection is
// left that may give one back.
func (l *listener) slot() bool {
	if l.limit.acquire(l.stopping, l.closed) {
		return true
	}
	if l.hasBacklog() {
		return l.lateSlot()
	}
	for vacancies := 0; !isClosed(l.closed); {
		waits, known := l.queued(l.l)
		var alarm <-chan time.Time // nil: the client stays in the queue
		if !waits || !known {
			wait := l.coming()
			if wait == 0 {
				return l.limit.tryAcquire()
			}
			t := time.NewTimer(wait)
			defer t.Stop()
			alarm = t.C
		}
		select {
		case l.limit.slots <- struct{}{}:
			return true
		case <-l.closed:
		case <-alarm:
		case <-l.m.vacant:
			if l.limit.tryAcquire() {
				return true
			}
			if vacancies++; vacancies == 3 {
				return false // hijacked connections hold the slots
			}
			time.Sleep(time.Millisecond) // for an Accept that has not told the manager yet
		}
	}
	return false
}

// lateSlot waits for a place in the limit for a connection that was accepted
// without one.
func (l *listener) lateSlot() bool {
	for vacancies := 0; ; {
		select {
		case l.limit.slots <- struct{}{}:
			return true
		case <-l.m.done:
			return false
		case <-l.m.vacant:
			if l.limit.tryAcquire() {
				return true
			}
			if vacancies++; vacancies == 3 {
				return false
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// blind reports whether, without a slot, the only way to know whether a client
// waits in the queue is to accept. It then waits here, instead of in the queue,
// for a slot.
func (l *listener) blind() bool {
	if l.hasBacklog() {
		return true
	}
	if isClosed(l.closed) {
		return false
	}
	_, known := l.queued(l.l)
	return !known
}

// coming returns how long to wait for connections that are about to come into
// the queue of a socket that admits nobody new: those whose handshake was under
// way. It returns 0 if there is nothing to wait for, as for a socket that goes
// on admitting: the sooner that is closed, the fewer are lost.
func (l *listener) coming() time.Duration {
	shut := time.Duration(l.shut.Load())
	if shut == 0 {
		return 0
	}
	left := max(0, shut+l.grace-time.Since(l.m.began))
	switch {
	case left > 0 && sock.Handshaking(bareListener(l.l)):
		l.again.Store(false)
		return min(left, 5*time.Millisecond)
	case !l.again.Swap(true):
		// A SYN may have been let in at the very moment of shutting.
		return min(left, time.Millisecond)
	}
	return 0
}

// accepted notes that a connection was accepted.
func (l *listener) accepted() {
	if isClosed(l.stopping) {
		l.again.Store(false)
		l.setDeadline(0)
	}
}

const (
	// emptyingLimit bounds the emptying of a queue that goes on filling, because
	// the socket may be another process's as well and can't be shut.
	emptyingLimit = time.Second

	// A queue that can't be looked into is empty when Accept has waited in vain for
	// look, looks times: a goroutine that is not scheduled in time finds the
	// deadline passed before it has looked. sweepLimit bounds how long, and
	// sweepMost how often, connections are found meanwhile.
	look       = time.Millisecond
	looks      = 3
	sweepLimit = 100 * time.Millisecond
	sweepMost  = 1024
)

// more decides, when the deadline of emptying has passed, whether there is
// more to come, and sets the next deadline.
func (l *listener) more() bool {
	waits, known := l.queued(l.l)
	switch {
	case !known:
		l.sweep()
		return true // the backlog, or the closed listener
	case waits && l.shut.Load() == 0 && time.Since(l.m.began)-l.stopAt > emptyingLimit:
		return false
	case waits:
		// It is there already. The deadline only has to be in the future,
		// for package net looks at it first.
		return l.setDeadline(time.Second)
	}
	wait := l.coming()
	return wait > 0 && l.setDeadline(wait)
}

// sweep empties a queue that can't be looked into, and closes the listener at the
// first moment at which it is empty. What it finds goes into the backlog: were
// it served in between, its clients would connect again meanwhile.
func (l *listener) sweep() {
	began := time.Since(l.m.began)
	for found, tried := 0, 0; tried < looks && found < sweepMost && time.Since(l.m.began)-began < sweepLimit; {
		if !l.setDeadline(look) {
			break
		}
		nc, err := l.l.Accept()
		switch {
		case err == nil:
			found, tried = found+1, 0
			l.mu.Lock()
			l.backlog = append(l.backlog, nc)
			l.mu.Unlock()
		case isTimeout(err):
			tried++
		case !l.waitOut(err):
			tried = looks
		}
	}
	l.Close()
}

// setDeadline makes Accept return after wait, and reports whether it can.
func (l *listener) setDeadline(wait time.Duration) bool {
	t := aLongTimeAgo
	if wait > 0 {
		t = time.Now().Add(wait)
	}
	d := deadlineOf(l.l)
	return d != nil && d(t) == nil
}

// deadlineOf returns the SetDeadline method of l, or of what it wraps; nil if
// there is none.
func deadlineOf(l net.Listener) func(time.Time) error {
	type deadliner interface{ SetDeadline(time.Time) error }
	if d, ok := l.(deadliner); ok {
		return d.SetDeadline
	}
	if d, ok := bareListener(l).(deadliner); ok {
		return d.SetDeadline
	}
	return nil
}

// weakness says what of the promise a listener can't keep, and is empty if it
// keeps all: its queue can only be emptied with a deadline for Accept.
func weakness(l net.Listener) string {
	if deadlineOf(l) != nil {
		return ""
	}
	return fmt.Sprintf("%T has no SetDeadline method: it is closed at once when draining begins, and the clients in its accept queue are lost", l)
}

// stop begins to end accepting, and doesn't wait for it: a socket that is
// ours alone admits no client from here on and is closed when no handshake is
// under way and its queue is empty, any other once its queue is empty, and one
// without deadlines at once.
func (l *listener) stop() {
	l.stopOnce.Do(func() {
		if own, ok := l.l.(*ownListener); ok {
			own.removeFile()
		}
		bare := bareListener(l.l)
		if _, unix := bare.(*net.UnixListener); l.owned && !unix {
			if sock.StopAdmitting(bare, l.reuse) {
				l.shut.Store(max(1, int64(time.Since(l.m.began))))
			}
		}
		l.stopAt = time.Since(l.m.began)
		close(l.stopping)
		l.soon(func() {
			if !l.setDeadline(0) {
				l.Close()
			}
		})
	})
}

// closeSoon closes the listener.
func (l *listener) closeSoon() { l.soon(func() { l.Close() }) }

// soon calls f, which calls methods of the listener below, and waits for it if
// those are package net's: the port is free then, say. A method that a caller wrote
// may wait for its Accept, and that for anything.
func (l *listener) soon(f func()) {
	switch l.l.(type) {
	case *ownListener, *net.TCPListener, *net.UnixListener:
		f()
	default:
		go f()
	}
}

// Close closes the listener. Further calls return what the first returned.
func (l *listener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		l.closeErr = l.l.Close()
	})
	return l.closeErr
}

// tryAgain reports whether to accept again after err, while the queue is being
// emptied. Without a file descriptor, say, clients may be in it all the same:
// descriptors come back as connections end.
func (l *listener) tryAgain(err error) bool {
	if isTimeout(err) {
		return l.more()
	}
	return l.waitOut(err)
}

// waitOut waits before the next Accept after a temporary error. It reports false
// if err is not temporary, or has been so for long.
func (l *listener) waitOut(err error) bool {
	var t interface{ Temporary() bool } // as net/http asks, which tries again too
	if !errors.As(err, &t) || !t.Temporary() || time.Since(l.m.began)-l.stopAt > halfRequest {
		return false
	}
	timer := time.NewTimer(retryAccept)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.closed:
		return false
	}
}

// retryAccept is net/http's first delay after a temporary error.
const retryAccept = 5 * time.Millisecond

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
