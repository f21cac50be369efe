package graceful

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/handoff"
	"github.com/seed-121bbccf/graceful/internal/sock"
)

// Listen is like net.Listen, for a socket that only one Server or Listener of
// this process will use. Such a socket can be closed without losing the clients
// that have just connected, as with Server.OwnsListener. The network must be
// "tcp", "tcp4", "tcp6" or "unix".
//
// The file of a unix socket is removed when the listener is closed, as with
// net.Listen, unless another socket has replaced the file since. An abstract
// socket, whose name begins with "@", has no file.
//
// If a socket that listens on addr was handed to this process, Listen returns that
// instead of opening one. Sockets are handed down by systemd (socket activation,
// sd_listen_fds(3)), and by a predecessor (Process). The first call in a process takes
// them over and removes LISTEN_FDS and its kin from the environment; if those make no
// sense, every call returns an error. A socket of systemd's is not this process's
// alone, and neither is one that was or will be handed on: which it is is decided when
// the shutdown begins.
func Listen(network, addr string) (net.Listener, error) {
	return listen(network, addr, false, 0)
}

// listen opens an ownListener. A negative keepAlive turns TCP keep-alive off, 0
// leaves it to package net.
func listen(network, addr string, reusePort bool, keepAlive time.Duration) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, fmt.Errorf("graceful: listen: %w", net.UnknownNetworkError(network))
	}
	handed, err := handedDown()
	if err != nil {
		return nil, fmt.Errorf("graceful: listen on %s: %w", addr, err)
	}
	if s, ok := handed.Take(network, addr); ok {
		return inherited(s, keepAlive), nil
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
	own := &ownListener{Listener: l, family: true}
	own.noteFile()
	own.register()
	return own, nil
}

// inherited returns an ownListener for a socket that was handed to this process.
func inherited(s handoff.Socket, keepAlive time.Duration) *ownListener {
	own := &ownListener{Listener: s.Listener, name: s.Name, family: s.Owned, inherited: true, keepAlive: keepAlive}
	own.noteFile()
	own.register()
	return own
}

// An ownListener is a socket that Listen has opened, or that was handed to this
// process.
type ownListener struct {
	net.Listener

	// Immutable.
	name      string        // the name with which it was handed down, or ""
	family    bool          // this process or a predecessor of it has opened it
	inherited bool          // it was handed down
	keepAlive time.Duration // for the connections of an inherited socket, as in listen

	// A unix socket's file, as it was when the socket was bound. Immutable.
	path string
	file os.FileInfo // nil for TCP and abstract sockets

	handedOn atomic.Bool // a successor has it as well
}

// noteFile records the file of a unix socket, for removeFile.
func (l *ownListener) noteFile() {
	ul, ok := l.Listener.(*net.UnixListener)
	if !ok {
		return
	}
	ul.SetUnlinkOnClose(false) // see removeFile
	l.path = ul.Addr().String()
	// An abstract socket has no file. A file of that name is unrelated.
	if !strings.HasPrefix(l.path, "@") {
		l.file, _ = os.Lstat(l.path)
	}
}

// register notes that the socket is open, for an upgrade.
func (l *ownListener) register() {
	listeningMu.Lock()
	defer listeningMu.Unlock()
	listening[l] = true
}

// alone reports whether this process is the only one that has the socket: a
// predecessor has it until it was told that this process is ready, and a successor
// has it once it is ready.
func (l *ownListener) alone() bool {
	if !l.family || l.handedOn.Load() {
		return false
	}
	if !l.inherited {
		return true
	}
	handed, _ := handedDown() // had no error, or l would not be
	return handed.Told()
}

// Accept accepts a connection. For an inherited socket it sets TCP keep-alive, which
// package net does for the others.
func (l *ownListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if tc, ok := nc.(*net.TCPConn); ok && l.inherited {
		switch {
		case l.keepAlive < 0:
			tc.SetKeepAlive(false)
		case l.keepAlive > 0:
			tc.SetKeepAlivePeriod(l.keepAlive)
		}
	}
	return nc, err
}

// Close closes the socket.
func (l *ownListener) Close() error {
	listeningMu.Lock()
	delete(listening, l)
	listeningMu.Unlock()
	l.removeFile()
	return l.Listener.Close()
}

// removeFile removes a unix socket's file, unless another process has the socket, or
// the file was replaced since.
func (l *ownListener) removeFile() {
	if l.file == nil || !l.alone() {
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

// ownOf returns the listener of Listen that l is or wraps, or nil.
func ownOf(l net.Listener) *ownListener {
	for l != nil {
		if own, ok := l.(*ownListener); ok {
			return own
		}
		l = unwrapListener(l)
	}
	return nil
}

// unwrapListener returns the listener that l wraps, or nil if l is not known to
// wrap one.
func unwrapListener(l net.Listener) net.Listener {
	switch l := l.(type) {
	case *tlsListener: // below a LimitListener
		return l.Listener
	case interface{ Unwrap() net.Listener }:
		return l.Unwrap()
	}
	return nil
}

// A listener accepts connections and wraps them for the manager. To stop
// without losing a client, it makes the kernel refuse new connections, accepts
// those in the accept queue, and closes the socket when the queue is empty.
//
//	serving ── stop ──▶ emptying ── the queue is empty ──▶ closed
//	   └─────────────── Close, a failing Accept ────────────▲
type listener struct {
	// Immutable once it serves.
	life *lifecycle
	m    *manager
	l    net.Listener // its Accept is called

	original net.Listener  // the caller's listener: l, or a wrapper of it
	declared bool          // OwnsListener is set
	reuse    bool          // another process may have bound the port with SO_REUSEPORT
	grace    time.Duration // how long TCP handshakes under way are waited for
	limit    *limiter      // nil without limit
	wrap     func(nc net.Conn) (net.Conn, *conn)

	// queued reports whether a connection is in the accept queue, and whether
	// the operating system tells. Tests replace it.
	queued func(net.Listener) (waits, known bool)

	handedOn atomic.Bool   // a successor has the socket as well
	shut     atomic.Int64  // since m.began: when the socket stopped admitting; 0: it has not
	again    atomic.Bool   // the queue of a shut socket was found empty once
	stopping chan struct{} // closed by stop
	stopAt   time.Duration // since m.began. Written before stopping is closed.
	closed   chan struct{} // closed by Close

	stopOnce, closeOnce sync.Once
	closeErr            error

	accepts atomic.Int32         // how many calls of Accept have not returned
	last    atomic.Pointer[conn] // the connection that Accept returned last; nil while it runs

	mu      sync.Mutex // guards backlog
	backlog []net.Conn // accepted by sweep, to be returned by Accept
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

// Accept returns the next connection, wrapped. When the listener is closed it
// returns an error that wraps net.ErrClosed. It does not return timeouts of the
// deadlines that this type sets, since net/http would retry after them. It may
// be called concurrently.
func (l *listener) Accept() (net.Conn, error) {
	l.accepts.Add(1)
	defer l.leave()
	l.last.Store(nil)
	held := l.limit == nil || l.slot() // a slot is held, or none is needed
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

// leave ends a call of Accept. The last call on a closed listener tells the
// lifecycle that no more connections come: by then every call has handed its
// connection to the manager.
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

// dropBacklog closes the connections in the backlog, which Accept will not
// return any more.
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

// dropLast closes the connection that Accept returned last, after a panic has
// kept the server from serving it.
func (l *listener) dropLast() {
	if c := l.last.Load(); c != nil {
		c.cutSoon()
		c.gone()
	}
}

// ended closes the listener and returns the error for Accept.
func (l *listener) ended() error {
	l.Close()
	err := &net.OpError{Op: "accept", Addr: l.Addr(), Err: net.ErrClosed}
	if err.Addr != nil { // a listener of the caller's own may have none
		err.Net = err.Addr.Network()
	}
	return err
}

// slot waits for a slot in the limit. While the queue is being emptied, it waits
// only as long as a client is in the queue and a connection is left that may
// give its slot back.
func (l *listener) slot() bool {
	if l.limit.acquire(l.stopping, l.closed) {
		return true
	}
	if l.hasBacklog() {
		return l.lateSlot()
	}
	for vacancies := 0; !isClosed(l.closed); {
		waits, known := l.queued(l.l)
		var alarm <-chan time.Time // nil: a client is in the queue and stays there
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
			// Another Accept may hold a slot whose connection the manager does
			// not know yet.
			time.Sleep(time.Millisecond)
		}
	}
	return false
}

// lateSlot waits for a slot in the limit for a connection that was accepted
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

// blind reports whether Accept has to accept a connection without a slot,
// because that is the only way to find out whether one is in the queue. Such a
// connection waits for its slot in lateSlot.
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

// coming returns how long to wait for connections whose TCP handshake was under
// way when the socket stopped admitting, and which are about to enter the accept
// queue. It returns 0 if there are none. For a socket that still admits it
// returns 0 as well: the sooner that is closed, the fewer clients are lost.
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
		// A SYN may have been admitted just before the socket was shut.
		return min(left, time.Millisecond)
	}
	return 0
}

// accepted makes the emptying of the queue look again at once, after a
// connection was accepted.
func (l *listener) accepted() {
	if isClosed(l.stopping) {
		l.again.Store(false)
		l.setDeadline(0)
	}
}

const (
	// emptyingLimit bounds the emptying of a queue that keeps filling up, because
	// another process may share the socket, which therefore is not shut.
	emptyingLimit = time.Second

	// Where the operating system does not tell whether the accept queue is empty,
	// it is taken to be empty when Accept has timed out probes times in a row,
	// each after probeWait. Once is not enough: if the goroutine is scheduled
	// late, package net finds the deadline passed before it asks the kernel.
	// sweepLimit bounds how long sweep takes, and sweepMost how many connections
	// it accepts.
	probeWait  = time.Millisecond
	probes     = 3
	sweepLimit = 100 * time.Millisecond
	sweepMost  = 1024
)

// more reports whether to accept again when the deadline that was set for
// emptying the queue has passed, and sets the next one.
func (l *listener) more() bool {
	waits, known := l.queued(l.l)
	switch {
	case !known:
		l.sweep()
		return true // Accept returns the backlog, or that the listener is closed
	case waits && l.shut.Load() == 0 && time.Since(l.m.began)-l.stopAt > emptyingLimit:
		return false
	case waits:
		// The connection is in the queue, so Accept returns it at once. Package net
		// checks the deadline first, so that has to be in the future.
		return l.setDeadline(time.Second)
	}
	wait := l.coming()
	return wait > 0 && l.setDeadline(wait)
}

// sweep empties the accept queue where the operating system does not tell
// whether it is empty, and closes the listener as soon as it is. It puts the
// connections into the backlog instead of having them served one by one: their
// clients would connect again meanwhile, and the queue would never be empty.
func (l *listener) sweep() {
	began := time.Since(l.m.began)
	for found, tried := 0, 0; tried < probes && found < sweepMost && time.Since(l.m.began)-began < sweepLimit; {
		if !l.setDeadline(probeWait) {
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
			tried = probes
		}
	}
	l.Close()
}

// setDeadline makes Accept time out after wait, at once if wait is 0. It reports
// whether the listener has deadlines.
func (l *listener) setDeadline(wait time.Duration) bool {
	t := aLongTimeAgo
	if wait > 0 {
		t = time.Now().Add(wait)
	}
	d := deadlineOf(l.l)
	return d != nil && d(t) == nil
}

// deadlineOf returns the SetDeadline method of l, or of the listener at the
// bottom of l. It returns nil if neither has one.
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

// weakness returns a warning for the log if l has no SetDeadline method, without
// which its accept queue cannot be emptied, and reports whether there is one.
func weakness(l net.Listener) (warning logEvent, weak bool) {
	if deadlineOf(l) != nil {
		return logEvent{}, false
	}
	const missing = "has no SetDeadline method: it is closed at once when draining begins, and the clients in its accept queue are lost"
	return event(slog.LevelWarn, "listener "+missing, slog.String("type", fmt.Sprintf("%T", l))).
		sentence("%T "+missing, l), true
}

// owned reports whether this process is the only one that has the socket, so that the
// kernel may be told to refuse new connections.
func (l *listener) owned() bool {
	own := ownOf(l.l)
	return !l.handedOn.Load() && (l.declared || own != nil && own.alone())
}

// stop makes the listener empty its accept queue and close itself, and does not
// wait for that. An owned socket admits no new connections from here on, and is
// closed when no TCP handshake is under way and its queue is empty. Another is
// closed when its queue is empty, and a listener without deadlines at once.
func (l *listener) stop() {
	l.stopOnce.Do(func() {
		if own, ok := l.l.(*ownListener); ok {
			own.removeFile()
		}
		bare := bareListener(l.l)
		if _, unix := bare.(*net.UnixListener); l.owned() && !unix {
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

// closeSoon closes the listener, without waiting for a Close that may block.
func (l *listener) closeSoon() { l.soon(func() { l.Close() }) }

// soon calls f, which calls methods of l.l. It waits for f if those methods are
// package net's, so that the port is free when it returns. The methods of other
// types run on a goroutine of their own, since they may block.
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
// emptied. After EMFILE, for example, clients may still be in the queue, and
// file descriptors become free as connections end.
func (l *listener) tryAgain(err error) bool {
	if isTimeout(err) {
		return l.more()
	}
	return l.waitOut(err)
}

// waitOut waits before the next Accept after a temporary error. It reports false
// if err is not temporary, or stop was called longer than receivingLimit ago.
func (l *listener) waitOut(err error) bool {
	var t interface{ Temporary() bool } // net/http's own test for a retry
	if !errors.As(err, &t) || !t.Temporary() || time.Since(l.m.began)-l.stopAt > receivingLimit {
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
