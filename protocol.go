package graceful

import (
	"cmp"
	"context"
	"log"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A Listener gives a server of any protocol the shutdown that Server gives to
// HTTP. The server needs nothing but Accept. Make a Listener with NewListener,
// and let the server accept from it:
//
//	l := graceful.NewListener(ln)
//	l.Timeout = 10 * time.Second
//	go server.Serve(l)
//	...
//	err := l.Shutdown(ctx)
//
// The state of a connection is derived from its Reads and Writes. It is idle
// while a Read waits and no byte has been read since the last Write began;
// otherwise it is in use. For protocols where that is wrong, call Busy. io.Copy
// to a connection goes through user space, unless it copies from a file, so that
// a proxy's connection is idle while the proxy waits for data.
//
// During the drain, a connection is closed when it has been idle for IdleGrace.
// After Patience it is closed as soon as it is idle, between two commands. Its
// pending Read returns io.EOF, as if the peer had closed the connection. So a
// server that reads, handles and writes in turn ends its connections as usual.
//
// For protocols that answer out of order (gRPC, multiplexed RPC) that is wrong:
// after a quick answer the connection looks idle although a slow call is in
// progress. If the server has a graceful stop of its own, use Group.AddFuncs with
// StopThenKill or ShutdownThenClose. Otherwise set Multiplexed, or call Busy for
// each call.
//
// Accept returns no error before the shutdown is over, unless Close was called,
// because many servers close all their connections when Accept fails.
//
// The fields must not be changed once Accept, Close or Shutdown has been called.
// The methods may be called concurrently.
type Listener struct {
	// Timeout is how long the shutdown waits for connections in use once
	// draining has begun, before it closes them. 0 waits without limit, even
	// for a peer that never completes the command that it has begun to send.
	Timeout time.Duration

	// ShutdownDelay is how long connections are accepted and served as before
	// after the shutdown has begun. 0 means that draining begins at once.
	ShutdownDelay time.Duration

	// IdleGrace is how long a connection must have been quiet before it is
	// closed during the drain: its quiet period. 0 means 500 ms. A negative
	// value means that idle connections are closed at once.
	IdleGrace time.Duration

	// Patience is how long after the begin of draining IdleGrace applies. From
	// then on a connection is closed as soon as it is idle, because the clients
	// of a protocol without a goodbye message may never pause for IdleGrace.
	// 0 means four times IdleGrace, or 2 s if that is negative. A negative value
	// means no limit.
	Patience time.Duration

	// Multiplexed says that the protocol answers out of order, so that a
	// connection may look idle while a call is in progress. IdleGrace then does
	// not end a connection on which the server has answered: the connection stays
	// open until the peer or the server closes it, until Patience is over, or
	// until Timeout. So Patience should be as long as the slowest call.
	Multiplexed bool

	// ListenLimit is how many connections may be open at once; 0 means no limit.
	// Accept waits while the limit is reached.
	ListenLimit int

	// OnDrain is called, if not nil, with every connection that is open when
	// draining begins, and with those accepted later. A protocol that has a
	// goodbye message can send it here (SMTP's 421, MQTT's DISCONNECT, a push of
	// RESP). OnDrain is called once for each connection, on a goroutine of its
	// own, as soon as the connection is idle: during a command, the client would
	// take the message for the answer. A command that crosses the message on the
	// wire is still handled and answered.
	//
	// The connection is in use until OnDrain returns, and its quiet period
	// begins then. What OnDrain writes does not count as an answer. If the server
	// runs TLS over the accepted connection, OnDrain gets the connection below
	// TLS.
	OnDrain func(net.Conn)

	// OwnsListener says that no other process shares the listener's socket. See
	// Server.OwnsListener.
	OwnsListener bool

	// NoSignalHandling keeps the Listener from catching signals. If it is false, they
	// are caught from the first Accept until the shutdown is over: the first signal
	// begins the shutdown, and a second one kills it, as with a Server. It has to be
	// set inside a testing/synctest bubble.
	NoSignalHandling bool

	// Signals are those that are caught. See Server.Signals.
	Signals []os.Signal

	// Process, if not nil, connects the Listener to its service manager (systemd), and
	// to the successor that replaces it in place.
	Process *Process

	// OnReport is called, if not nil, with the final Report. See Server.OnReport.
	OnReport func(Report)

	// Slog is where the shutdown is logged. See Server.Slog.
	Slog *slog.Logger

	// LogFunc is used if Slog is nil.
	LogFunc func(format string, args ...any)

	// Logger is used if Slog and LogFunc are nil. If all three are nil, nothing is
	// logged.
	Logger *log.Logger

	l    net.Listener
	life lifecycle

	once sync.Once // prepare
	err  error     // of prepare
	tl   *listener // wraps l; nil if the shutdown began before prepare

	calls     atomic.Uint64 // how often Accept was called
	accepting atomic.Int32  // how many calls of Accept have not returned
	closed    chan struct{} // closed by Close
	closeOnce sync.Once
}

// NewListener returns a Listener that accepts from l. It panics if l is nil.
//
// As with Server.Serve, connections that are just being established can only be
// kept if l comes from Listen or OwnsListener is set. l may be a TLS listener
// (tls.NewListener), or the server may run TLS over what it accepts; in that
// case a connection counts as in use until the first answer after its handshake.
func NewListener(l net.Listener) *Listener {
	if l == nil {
		panic("graceful: NewListener with a nil listener")
	}
	return &Listener{l: l, closed: make(chan struct{})}
}

// Addr returns the address of the listener that was given to NewListener.
func (l *Listener) Addr() net.Addr { return l.l.Addr() }

// Accept waits for the next connection. If a field has an invalid value, every
// call returns an error that names the field. During the drain Accept returns
// the connections that were in the accept queue; then it blocks until the
// shutdown is over and returns an error that wraps net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	l.calls.Add(1)
	l.accepting.Add(1)
	defer l.accepting.Add(-1)
	if err := l.prepare(); err != nil {
		return nil, err
	}
	if l.tl == nil {
		<-l.life.stopped
		return nil, l.errClosed()
	}
	nc, err := l.tl.Accept()
	if err == nil {
		return nc, nil
	}
	if !isClosed(l.tl.stopping) && !isClosed(l.tl.closed) {
		return nil, err // the caller decides whether it tries again
	}
	l.life.release(l.tl)
	select {
	case <-l.closed:
	case <-l.life.stopped:
	}
	return nil, l.errClosed()
}

// Close stops accepting, as a net.Listener's Close does: a blocked Accept
// returns at once. Close begins a shutdown without ShutdownDelay and does not
// wait for it, because servers call Close and then wait for their connections
// themselves. To close the connections as well, call Shutdown with a context
// that has ended. Further calls return nil.
func (l *Listener) Close() error {
	l.init()
	var err error
	l.closeOnce.Do(func() {
		close(l.closed)
		if l.prepare() != nil || l.tl == nil {
			err = l.l.Close()
			l.life.begin("Close", nil)
			return
		}
		err = l.tl.Close()
		l.life.skipDelay()
		l.life.begin("Close", nil)
		l.life.release(l.tl)
	})
	return err
}

// Shutdown begins the shutdown and returns when it is over. If ctx ends first,
// Shutdown closes the connections that are left and returns ctx's error. If
// connections in use were closed because of Timeout or a second signal, the
// error wraps ErrKilled and the report lists them. Further calls wait for the
// same shutdown.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.init()
	if l.prepare() != nil {
		l.l.Close() // nothing was accepted, and nothing will be
	}
	l.life.begin("Shutdown", nil)
	return l.life.wait(ctx)
}

// StopChan returns a channel that is closed when the shutdown is over. It returns
// the same channel every time.
func (l *Listener) StopChan() <-chan struct{} {
	l.init()
	return l.life.stopped
}

// Draining returns a channel that is closed when draining begins, which is after
// ShutdownDelay. It returns the same channel every time.
func (l *Listener) Draining() <-chan struct{} {
	l.init()
	return l.life.draining
}

// ShutdownBegun returns a channel that is closed at the first moment of the
// shutdown, before ShutdownDelay. It returns the same channel every time.
func (l *Listener) ShutdownBegun() <-chan struct{} {
	l.init()
	return l.life.begun
}

// Phase returns the phase of the shutdown, PhaseServing before it.
func (l *Listener) Phase() Phase { return l.life.Phase() }

// Stats counts the open connections. Its cost is proportional to their number.
func (l *Listener) Stats() Stats {
	l.init()
	return l.life.stats()
}

// Report returns the report of the shutdown: zero before it, up to now while it
// runs, and final once it is over.
func (l *Listener) Report() Report {
	l.init()
	return l.life.currentReport()
}

// Busy makes the connection c count as in use until done is called, whatever is
// read and written. It is for protocols in which the goroutine that reads hands
// commands to other goroutines, and for those in which the server sends
// unsolicited messages. Busy may be called several times for one connection,
// which then is in use until every done was called. Further calls of the same
// done have no effect.
//
// c is a connection that a Listener accepted, or a wrapper around it that has a
// NetConn method, as *tls.Conn has. For other connections Busy does nothing.
func Busy(c net.Conn) (done func()) {
	t := trackedConn(c)
	if t == nil || t.ioState == nil {
		return func() {}
	}
	return t.ioState.hold(t)
}

func (l *Listener) init() { l.life.init((*anyProtocol)(l)) }

func (l *Listener) errClosed() error {
	return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

// prepare checks the fields and wraps the listener, once. tl stays nil if the
// shutdown has begun already.
func (l *Listener) prepare() error {
	l.init()
	l.once.Do(func() {
		if l.err = l.check(); l.err != nil {
			return
		}
		if l.err = l.life.claim(l.Process); l.err != nil {
			return
		}
		m, err := l.life.open()
		if err != nil {
			l.l.Close()
			return
		}
		below := l.l
		var limit *limiter
		if l.ListenLimit > 0 {
			limit = newLimiter(l.ListenLimit)
		} else if ll, ok := below.(*limitListener); ok {
			below, limit = ll.Listener, ll.limit
		}
		tl := newListener(&l.life, m, below, limit)
		tl.original = l.l
		tl.declared = l.OwnsListener
		tl.reuse = true // SO_REUSEPORT may be set on l; harmless if it is not
		tl.grace = graceOf(l.IdleGrace)
		tl.wrap = func(nc net.Conn) (net.Conn, *conn) {
			t := new(ioState)
			wrapped, c := track(m, nc, limit, t)
			if l.OnDrain != nil {
				t.draining = func() bool { return l.life.Phase() >= PhaseDraining }
				t.farewell = func() { l.OnDrain(farewellConn{wrapped, c}) }
			}
			return wrapped, c
		}
		if l.life.admit(tl) != nil {
			l.l.Close()
			return
		}
		l.tl = tl
		if warning, weak := weakness(below); weak {
			l.life.p.log(warning)
		}
		l.life.catch(signalsOf(l.Signals, l.NoSignalHandling))
		l.life.connect(l.Process, func(context.Context) bool { return true })
	})
	return l.err
}

func (l *Listener) check() error {
	return cmp.Or(
		notNegative("Listener.Timeout", l.Timeout),
		notNegative("Listener.ShutdownDelay", l.ShutdownDelay),
		notNegative("Listener.ListenLimit", l.ListenLimit),
		catchable("Listener.Signals", l.Signals),
		l.Process.check(signalsOf(l.Signals, l.NoSignalHandling)),
	)
}

var _ net.Listener = (*Listener)(nil)

// anyProtocol is a Listener as its lifecycle sees it.
type anyProtocol Listener

func (p *anyProtocol) config() lifeConfig {
	cfg := lifeConfig{
		delay:   p.ShutdownDelay,
		timeout: p.Timeout,
		rules:   drainRules{grace: graceOf(p.IdleGrace), patience: p.Patience, multiplexed: p.Multiplexed},
	}
	switch {
	case p.Patience == 0:
		cfg.rules.patience = 4 * cmp.Or(cfg.rules.grace, defaultIdleGrace)
	case p.Patience < 0:
		cfg.rules.patience = 0
	}
	return cfg
}

func (p *anyProtocol) log(e logEvent) { logSink{p.Slog, p.LogFunc, p.Logger}.log(e) }

func (p *anyProtocol) reported(r Report) { callReportHook(p.OnReport, r) }

func (p *anyProtocol) beforeShutdown() bool               { return true }
func (p *anyProtocol) interrupted(bool)                   {}
func (p *anyProtocol) beginDelay()                        {}
func (p *anyProtocol) runHooks()                          {}
func (p *anyProtocol) beginKill()                         {}
func (p *anyProtocol) finish(*manager, int) HTTP2Farewell { return HTTP2None }
func (p *anyProtocol) requests(*conn) []requestLine       { return nil }
func (p *anyProtocol) streams() int                       { return 0 }

// finishRequests calls OnDrain for the connections that are idle, before the
// manager closes those whose quiet period is over. A connection that is not in
// the manager's list yet has not been read; its first Read sees the phase.
func (p *anyProtocol) finishRequests(context.Context) <-chan struct{} {
	if p.OnDrain == nil {
		return nil
	}
	for _, c := range p.life.openConns() {
		c.ioState.sayFarewell(c)
	}
	return nil
}

func (p *anyProtocol) beginDrain() {
	if l := (*Listener)(p); l.tl != nil {
		go l.watchAccept()
	}
}

// watchAccept closes the listener when the server does not call Accept any
// more, so that such a server does not keep the shutdown from ending. A server
// that handles one connection at a time calls Accept again when that connection
// has ended.
func (l *Listener) watchAccept() {
	tick := time.NewTicker(max(graceOf(l.IdleGrace)/2, 10*time.Millisecond))
	defer tick.Stop()
	seen, idle := l.calls.Load(), false
	closed := l.tl.closed
	for {
		select {
		case <-tick.C:
		case <-closed:
			// The last Accept to return releases the listener. If none is under
			// way, it is released here.
			if !l.tl.hasBacklog() {
				l.life.release(l.tl)
				return
			}
			closed = nil
		case <-l.life.stopped:
			return
		}
		// Two ticks in a row: after the first, the server may be between a
		// connection that has just ended and its next Accept.
		calls, was := l.calls.Load(), idle
		idle = calls == seen && l.accepting.Load() == 0 && l.life.stats().Open() == 0
		if idle && was {
			l.life.release(l.tl)
			return
		}
		seen = calls
	}
}

// A farewellConn is what OnDrain gets. Its Write bypasses the ioState, since the
// message is not an answer.
type farewellConn struct {
	net.Conn
	c *conn
}

func (f farewellConn) Write(p []byte) (int, error) { return f.c.raw.Write(p) }

// NetConn lets Busy find the connection.
func (f farewellConn) NetConn() net.Conn { return f.Conn }

// An ioState derives a connection's state from its Reads and Writes, for
// protocols that this package does not parse. The connection is idle while a
// Read waits and no byte has been read since the last Write began, and in use
// otherwise or while Busy says so.
//
// farewell, if not nil, is called once, on a goroutine of its own, as soon as
// the connection is idle and draining reports true. The connection is in use
// until farewell returns.
type ioState struct {
	farewell func()      // immutable
	draining func() bool // immutable; nil without farewell

	mu            sync.Mutex // guards what follows, and the order of calls of setState
	reading       bool       // a Read is waiting, or the last one returned no bytes
	unanswered    bool       // bytes were read since the last Write began
	writing       int        // Writes under way
	busy          int        // calls of Busy not yet done, and farewell under way
	farewellBegun bool       // farewell was called
}

func (t *ioState) enterRead(c *conn) {
	t.mu.Lock()
	t.reading = true
	t.updateLocked(c)
	t.mu.Unlock()
}

func (t *ioState) received(c *conn) {
	t.mu.Lock()
	t.reading, t.unanswered = false, true
	t.updateLocked(c)
	t.mu.Unlock()
}

func (t *ioState) beginWrite(c *conn) {
	t.mu.Lock()
	t.unanswered = false
	t.writing++
	t.updateLocked(c)
	t.mu.Unlock()
}

func (t *ioState) endWrite(c *conn) {
	t.mu.Lock()
	t.writing--
	t.updateLocked(c)
	t.mu.Unlock()
}

// hold keeps the connection in use until done is called; further calls of done
// have no effect.
func (t *ioState) hold(c *conn) (done func()) {
	t.mu.Lock()
	t.busy++
	t.updateLocked(c)
	t.mu.Unlock()
	var once sync.Once
	return func() { once.Do(func() { t.release(c) }) }
}

func (t *ioState) release(c *conn) {
	t.mu.Lock()
	t.busy--
	t.updateLocked(c)
	t.mu.Unlock()
}

// sayFarewell calls farewell if the connection is idle. Otherwise a later
// updateLocked does.
func (t *ioState) sayFarewell(c *conn) {
	t.mu.Lock()
	t.updateLocked(c)
	t.mu.Unlock()
}

// updateLocked sets the connection's state from t's fields. setState sends to
// the manager with mu held; the manager takes no lock, so this cannot deadlock.
func (t *ioState) updateLocked(c *conn) {
	is := c.load().state()
	inUse := t.unanswered || t.writing > 0 || t.busy > 0
	if !inUse && t.reading && t.farewell != nil && !t.farewellBegun && is != connClosed && t.draining() &&
		!sock.Pending(c.raw) { // bytes there are a command that is about to be read
		t.farewellBegun, inUse = true, true
		t.busy++
		go func() {
			defer t.release(c)
			t.farewell()
		}()
	}
	switch {
	case is == connClosed:
	case inUse:
		if is != connActive {
			c.setState(connActive)
		}
	case t.reading:
		if is == connActive {
			c.setState(connIdle)
		}
	}
}
