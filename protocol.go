package graceful

import (
	"cmp"
	"context"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-121bbccf/graceful/internal/sock"
)

// A Listener gives a server of any protocol, which only has to know Accept,
// the shutdown that Server gives to HTTP. Make one with NewListener, and let
// the server accept from it:
//
//	l := graceful.NewListener(ln)
//	l.Timeout = 10 * time.Second
//	go server.Serve(l)
//	...
//	err := l.Shutdown(ctx)
//
// It needs no help from the protocol. A connection is idle while it waits in
// Read and no byte has been read from it since the last Write began; otherwise
// it is in use. A protocol for which that is wrong says so with Busy.
// So that a proxy's connections can be idle too, io.Copy to one goes through
// user space, unless what it copies is a file.
//
// From the drain on, connections that have been idle for the quiet window are
// closed; after Patience each is at its first idle moment, between two
// commands. To whoever reads a connection that is closed, it looks as if the
// peer had closed it: Read returns io.EOF. So a server that reads, handles and
// writes in turn ends its connections as it always does.
//
// Accept does not return an error before the shutdown is over, unless Close
// was called: many a server takes it as the moment to close everything.
//
// The fields must not be changed once Accept has been called.
type Listener struct {
	// Timeout is how long the shutdown waits for connections in use once
	// draining has begun, before it closes them. 0 waits without end, also
	// for a peer that never completes what it has begun to say.
	Timeout time.Duration

	// ShutdownDelay is how long connections are accepted and served as before
	// after the shutdown has begun. 0 means not at all.
	ShutdownDelay time.Duration

	// IdleGrace is how long a connection must have been quiet before it is
	// closed during the drain. 0 means 500 ms, negative none.
	IdleGrace time.Duration

	// Patience is how long after the drain's begin the quiet windows last:
	// clients of a protocol without a farewell never fall quiet. 0 means four
	// quiet windows, negative without end.
	Patience time.Duration

	// Limit is how many connections may be open at once; 0 means no limit.
	Limit int

	// OnDrain is called, if not nil, with every connection that is open when
	// draining begins, and with those accepted later, so that a protocol that
	// has a farewell can say it (SMTP's 421, MQTT's DISCONNECT, a push of
	// RESP). It is called once for each, on a goroutine of its own, when the
	// connection is idle: at once, or else at its first idle moment, for in
	// the middle of a command the farewell would be taken for the answer. A
	// command that crosses it on the wire is carried out and answered.
	//
	// The connection is in use until OnDrain returns, and its quiet window
	// counts from then on. What OnDrain writes to it does not count as an
	// answer. It gets the connection below a TLS that the server lays over it.
	OnDrain func(net.Conn)

	// OwnsListener is as in Server.
	OwnsListener bool

	// HandleSignals makes SIGINT and SIGTERM begin the shutdown, and a second
	// one end it, as they do with a Server.
	HandleSignals bool

	// Logger is where the shutdown is reported; nil means nowhere.
	Logger *log.Logger

	// LogFunc takes Logger's place if it is not nil.
	LogFunc func(format string, args ...any)

	l    net.Listener
	life lifecycle

	once sync.Once // prepare
	err  error
	tl   *listener

	calls     atomic.Uint64 // of Accept, so far
	accepting atomic.Int32  // those of them that are under way
	closed    chan struct{} // closed by Close
	closeOnce sync.Once
}

// NewListener returns a Listener that accepts from l. It panics if l is nil.
//
// What is said of Server.Serve's listener goes for l: to lose nobody who has
// just connected, let it be one of Listen's, or set OwnsListener. TLS may be
// below it (tls.NewListener) or above it; above, a connection counts as in use
// until the first answer after its handshake.
func NewListener(l net.Listener) *Listener {
	if l == nil {
		panic("graceful: NewListener with a nil listener")
	}
	return &Listener{l: l, closed: make(chan struct{})}
}

// Addr returns the address of the listener below.
func (l *Listener) Addr() net.Addr { return l.l.Addr() }

// Accept waits for the next connection. A field that makes no sense is an
// error of the first call and of all others. During the drain it goes on
// returning connections that had connected before; then it blocks until the
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
// returns at once. Connections that had been accepted are drained, without
// ShutdownDelay, and nobody waits for it: servers call Close and then wait for
// their connections in their own way. To close those as well, call Shutdown
// with a context that has ended. Further calls return nil.
func (l *Listener) Close() error {
	l.init()
	var err error
	l.closeOnce.Do(func() {
		close(l.closed)
		if l.prepare() != nil || l.tl == nil {
			err = l.l.Close()
			l.life.order("Close", nil)
			return
		}
		err = l.tl.Close()
		l.life.skipDelay()
		l.life.order("Close", nil)
		l.life.release(l.tl)
	})
	return err
}

// Shutdown drains the connections and returns when that is over. If ctx ends
// first, it closes what is left and returns ctx's error. If Timeout or a second
// signal ended it, the error wraps ErrKilled and the report names what was
// closed. Further calls wait for the same shutdown.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.init()
	if l.prepare() != nil {
		l.l.Close() // nothing was accepted, and nothing will be
	}
	l.life.order("Shutdown", nil)
	return l.life.wait(ctx)
}

// Done returns a channel that is closed when the shutdown is over.
func (l *Listener) Done() <-chan struct{} {
	l.init()
	return l.life.stopped
}

// Draining returns a channel that is closed at the first moment of the
// shutdown.
func (l *Listener) Draining() <-chan struct{} {
	l.init()
	return l.life.draining
}

// Phase returns where the listener stands.
func (l *Listener) Phase() Phase { return l.life.Phase() }

// Stats counts the open connections. It takes time in proportion to them.
func (l *Listener) Stats() Stats {
	l.init()
	return l.life.stats()
}

// Report says what the shutdown has done so far; after the end of it, what it
// did.
func (l *Listener) Report() Report {
	l.init()
	return l.life.currentReport()
}

// Busy keeps the connection c in use until done is called, whatever is read
// and written: for protocols whose reader hands its commands to others, and
// for those in which the server speaks unasked. It may be called several times
// for one connection; done may be called more than once, which changes
// nothing.
//
// c is a connection that a Listener accepted, or one over it that has a NetConn
// method, as *tls.Conn has. For any other Busy does nothing.
func Busy(c net.Conn) (done func()) {
	t := trackedConn(c)
	if t == nil || t.turns == nil {
		return func() {}
	}
	return t.turns.hold(t)
}

func (l *Listener) init() { l.life.init((*anyProtocol)(l)) }

func (l *Listener) errClosed() error {
	return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

// prepare checks the fields and lays tracking over the listener. tl stays nil
// if the shutdown was quicker.
func (l *Listener) prepare() error {
	l.init()
	l.once.Do(func() {
		if l.err = l.check(); l.err != nil {
			return
		}
		m, err := l.life.open()
		if err != nil {
			l.l.Close()
			return
		}
		below := l.l
		var limit *limiter
		if l.Limit > 0 {
			limit = newLimiter(l.Limit)
		} else if ll, ok := below.(*limitListener); ok {
			below, limit = ll.Listener, ll.limit
		}
		tl := newListener(&l.life, m, below, limit)
		tl.original = l.l
		tl.owned = isOwn(below) || l.OwnsListener
		tl.reuse = true // the listener's own business; harmless if it isn't
		tl.grace = graceOf(l.IdleGrace)
		tl.wrap = func(nc net.Conn) (net.Conn, *conn) {
			t := new(turns)
			wrapped, c := track(m, nc, limit, t)
			if l.OnDrain != nil {
				t.parting = func() bool { return l.life.Phase() >= PhaseDraining }
				t.farewell = func() { l.OnDrain(farewellConn{wrapped, c}) }
			}
			return wrapped, c
		}
		if l.life.admit(tl) != nil {
			l.l.Close()
			return
		}
		l.tl = tl
		if w := weakness(below); w != "" {
			l.life.p.logf("%s", w)
		}
		if l.HandleSignals {
			l.life.catch()
		}
	})
	return l.err
}

func (l *Listener) check() error {
	return cmp.Or(
		notNegative("Listener.Timeout", l.Timeout),
		notNegative("Listener.ShutdownDelay", l.ShutdownDelay),
		notNegative("Listener.Limit", l.Limit),
	)
}

var _ net.Listener = (*Listener)(nil)

// anyProtocol is a Listener as its lifecycle sees it.
type anyProtocol Listener

func (p *anyProtocol) config() lifeConfig {
	cfg := lifeConfig{
		delay:   p.ShutdownDelay,
		timeout: p.Timeout,
		rules:   drainRules{grace: graceOf(p.IdleGrace), patience: p.Patience},
	}
	switch {
	case p.Patience == 0:
		cfg.rules.patience = 4 * cfg.rules.grace
	case p.Patience < 0:
		cfg.rules.patience = 0
	}
	return cfg
}

func (p *anyProtocol) logf(format string, args ...any) {
	logTo(p.LogFunc, p.Logger, format, args...)
}

func (p *anyProtocol) beforeShutdown() bool         { return true }
func (p *anyProtocol) interrupted(bool)             {}
func (p *anyProtocol) beginDelay()                  {}
func (p *anyProtocol) runHooks()                    {}
func (p *anyProtocol) beginKill()                   {}
func (p *anyProtocol) finish(*manager, int) string  { return "" }
func (p *anyProtocol) requests(*conn) []requestLine { return nil }
func (p *anyProtocol) streams() int                 { return 0 }

// finishRequests says farewell to the connections that are idle, before the
// manager ends those that have been so for long. Those that are not in its
// list yet have not been read, and will find the phase when they are.
func (p *anyProtocol) finishRequests(context.Context) <-chan struct{} {
	if p.OnDrain == nil {
		return nil
	}
	for _, c := range p.life.openConns() {
		c.turns.part(c)
	}
	return nil
}

func (p *anyProtocol) beginDrain() {
	if l := (*Listener)(p); l.tl != nil {
		go l.watchAccept()
	}
}

// watchAccept closes the listener when nobody accepts from it any more. A
// server that does one thing at a time comes back to Accept when it has done
// with a connection; one that does not come back must not keep the shutdown
// from ending.
func (l *Listener) watchAccept() {
	tick := time.NewTicker(max(graceOf(l.IdleGrace)/2, 10*time.Millisecond))
	defer tick.Stop()
	seen, idle := l.calls.Load(), false
	closed := l.tl.closed
	for {
		select {
		case <-tick.C:
		case <-closed:
			// The last Accept says that it is the last; where none is under way
			// nothing does.
			if !l.tl.hasBacklog() {
				l.life.release(l.tl)
				return
			}
			closed = nil
		case <-l.life.stopped:
			return
		}
		// Once is not enough: it may be on its way from a connection that
		// has just ended to Accept.
		calls, was := l.calls.Load(), idle
		idle = calls == seen && l.accepting.Load() == 0 && l.life.stats().Open() == 0
		if idle && was {
			l.life.release(l.tl)
			return
		}
		seen = calls
	}
}

// A farewellConn is what OnDrain gets: it writes past the turns, since what it
// writes is no answer.
type farewellConn struct {
	net.Conn
	c *conn
}

func (f farewellConn) Write(p []byte) (int, error) { return f.c.raw.Write(p) }

// NetConn lets Busy find the connection.
func (f farewellConn) NetConn() net.Conn { return f.Conn }

// turns derives a connection's state from its Reads and Writes alone, for
// protocols that nobody here speaks: it is idle while it waits in Read and no
// byte has been read since the last Write began, and in use otherwise. A
// protocol for which that is wrong says so with Busy.
//
// farewell, if not nil, is called at the first idle moment at which parting
// reports true, once, on a goroutine of its own. Until it returns the
// connection is in use.
type turns struct {
	farewell func()      // immutable
	parting  func() bool // immutable; nil without farewell

	mu      sync.Mutex // guards what follows, and the order of states
	reading bool       // a Read is waiting, or the last one brought nothing
	asked   bool       // bytes were read since the last Write began
	writing int        // Writes under way
	busy    int        // calls of Busy not yet done
	said    bool       // farewell was called
}

func (t *turns) enterRead(c *conn) {
	t.mu.Lock()
	t.reading = true
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) received(c *conn) {
	t.mu.Lock()
	t.reading, t.asked = false, true
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) beginWrite(c *conn) {
	t.mu.Lock()
	t.asked = false
	t.writing++
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) endWrite(c *conn) {
	t.mu.Lock()
	t.writing--
	t.settleLocked(c)
	t.mu.Unlock()
}

// hold keeps the connection in use until the function that it returns is
// called, once or more often.
func (t *turns) hold(c *conn) (done func()) {
	t.mu.Lock()
	t.busy++
	t.settleLocked(c)
	t.mu.Unlock()
	var once sync.Once
	return func() { once.Do(func() { t.letGo(c) }) }
}

func (t *turns) letGo(c *conn) {
	t.mu.Lock()
	t.busy--
	t.settleLocked(c)
	t.mu.Unlock()
}

// part says farewell if the connection is idle. Otherwise it says it itself
// when it comes to be.
func (t *turns) part(c *conn) {
	t.mu.Lock()
	t.settleLocked(c)
	t.mu.Unlock()
}

// settleLocked moves the connection to where it belongs now. The manager may
// be told with mu held: it takes no lock.
func (t *turns) settleLocked(c *conn) {
	is := c.load().state()
	inUse := t.asked || t.writing > 0 || t.busy > 0
	if !inUse && t.reading && t.farewell != nil && !t.said && is != connClosed && t.parting() &&
		!sock.Pending(c.raw) { // bytes there are a command that is about to be read
		t.said, inUse = true, true
		t.busy++
		go func() {
			defer t.letGo(c)
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
