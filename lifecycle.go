package graceful

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrKilled says that the time for the shutdown was over before every request
// was answered. It is the cause (context.Cause) of the contexts of the requests
// that were in progress then, and Shutdown's error wraps it.
var ErrKilled = errors.New("graceful: killed: the time for the shutdown is over")

// errServed is returned by the methods that serve, once a server that has served
// is stopped or stopping. It wraps http.ErrServerClosed.
var errServed = fmt.Errorf("graceful: the server has been stopped and can't serve again: %w", http.ErrServerClosed)

// errNotServed says that the server was stopped before it served.
var errNotServed = errors.New("graceful: stopped before it served")

// A protocol is the part of a server that depends on the protocol of its
// connections: HTTP (httpProtocol), or any other (anyProtocol). Of its methods
// only beforeShutdown may block.
type protocol interface {
	// config returns the lifecycle's configuration. It is called once.
	config() lifeConfig

	// beforeShutdown reports whether a shutdown may begin.
	beforeShutdown() bool

	// interrupted is called with true before beforeShutdown, or before a
	// shutdown that begins without calling beforeShutdown. It is called with false
	// when beforeShutdown has refused. The lifecycle's mutex is held.
	interrupted(bool)

	// beginDelay is called when the shutdown begins, just before PhaseDelaying
	// is entered. The lifecycle's mutex is held.
	beginDelay()

	beginDrain() // called when the listeners have been told to stop
	runHooks()   // called when the listeners are closed, hooksLatest into the drain at the latest
	beginKill()  // called before any connection is closed

	// finishRequests is called in PhaseDraining, before any connection is told
	// to end. If the listeners are to stay open until the requests in progress
	// are answered, it refuses new requests and returns a channel that is closed
	// when that is done or ctx ends. Otherwise it returns nil.
	finishRequests(ctx context.Context) <-chan struct{}

	// finish cleans up and returns Report.HTTP2. left is how many hijacked
	// connections were not waited for.
	finish(m *manager, left int) HTTP2Farewell

	// requests returns the requests in progress on a connection.
	requests(*conn) []requestLine

	// streams returns how many requests are in progress on HTTP/2 connections.
	streams() int

	log(logEvent)

	// reported calls OnReport, and waits for it for hookTimeout at most.
	reported(Report)
}

type lifeConfig struct {
	delay   time.Duration // of PhaseDelaying
	timeout time.Duration // of PhaseDraining; 0 for none
	rules   drainRules
}

// A lifecycle takes a set of listeners and their connections through the
// phases of a shutdown. Its zero value, with init called, is serving.
type lifecycle struct {
	p protocol

	phase      atomic.Int32
	handedOver atomic.Bool // the shutdown is an upgrade's

	begun    chan struct{} // closed when the shutdown begins
	draining chan struct{} // closed when PhaseDraining is entered
	drained  chan struct{} // closed when the manager has begun to drain
	sealed   chan struct{} // closed when the last listener is closed during the drain
	killing  chan struct{} // closed by kill
	stopped  chan struct{} // closed when the shutdown is over

	// newTimeout tells drain that timeout was changed. It holds one value at
	// most.
	newTimeout chan struct{}

	once sync.Once // init

	mu          sync.Mutex    // guards what follows
	cfg         lifeConfig    // from p.config; zero before the first listener
	m           *manager      // nil before the first listener
	listeners   []*listener   // those that still accept
	bound       []net.Addr    // the addresses of all listeners, closed ones included
	served      bool          // a listener was admitted
	asking      chan struct{} // closed when beforeShutdown has returned; nil unless it runs
	timeout     time.Duration
	killed      string // why kill was called; "" before
	stopSignals func() // stops catching signals; nil if none are caught
	joined      bool   // a Group catches the signals and decides on the delay

	// hold keeps the delay from ending until it is closed; nil if the delay ends
	// by itself. No values are sent.
	hold     chan struct{}
	link     *processLink // nil without a Process
	report   Report
	phaseAt  time.Time // when the phase began
	closeErr error     // the first error of closing a listener
	failure  error     // the error of Accept that began the shutdown

	log shutdownLog
}

func (lc *lifecycle) init(p protocol) {
	lc.once.Do(func() {
		lc.p = p
		lc.begun = make(chan struct{})
		lc.draining = make(chan struct{})
		lc.drained = make(chan struct{})
		lc.sealed = make(chan struct{})
		lc.killing = make(chan struct{})
		lc.stopped = make(chan struct{})
		lc.newTimeout = make(chan struct{}, 1)
		lc.log.write = p.log
	})
}

func (lc *lifecycle) Phase() Phase { return Phase(lc.phase.Load()) }

// open returns the manager for a new listener, and starts it if it is the first.
// Once a shutdown has begun, it returns errServed, or errNotServed if the server
// had no listener.
func (lc *lifecycle) open() (*manager, error) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if err := lc.refusalLocked(); err != nil {
		return nil, err
	}
	if lc.m == nil {
		lc.cfg = lc.p.config()
		if lc.timeout == 0 {
			lc.timeout = lc.cfg.timeout
		}
		lc.m = newManager(lc.cfg.rules)
		go lc.m.run()
	}
	return lc.m, nil
}

// refusal returns the error with which open would refuse a listener now, or nil.
func (lc *lifecycle) refusal() error {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return lc.refusalLocked()
}

func (lc *lifecycle) refusalLocked() error {
	switch {
	case lc.Phase() == PhaseServing:
		return nil
	case lc.served:
		return errServed
	}
	return errNotServed
}

// admit adds a listener. It returns open's errors too, because the shutdown may
// have begun after open.
func (lc *lifecycle) admit(l *listener) error {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if err := lc.refusalLocked(); err != nil {
		return err
	}
	lc.served = true
	lc.listeners = append(lc.listeners, l)
	lc.bound = append(lc.bound, l.Addr())
	return nil
}

// release closes l and removes it when no Accept of it is under way. If l is the
// last listener of a drain, release tells the manager, for which it may wait
// until the manager has begun to drain.
func (lc *lifecycle) release(l *listener) {
	err := l.Close()
	if l.accepts.Load() > 0 {
		return // the last Accept to return calls release
	}
	lc.mu.Lock()
	i := slices.Index(lc.listeners, l)
	if i < 0 {
		lc.mu.Unlock()
		return // released already
	}
	lc.listeners = slices.Delete(lc.listeners, i, i+1)
	last := len(lc.listeners) == 0 && lc.Phase() >= PhaseDraining
	if err != nil && lc.closeErr == nil && !errors.Is(err, net.ErrClosed) {
		lc.closeErr = err
	}
	stopping := lc.Phase() != PhaseServing
	lc.mu.Unlock()
	l.dropBacklog()
	if stopping {
		lc.log.add(event(slog.LevelInfo, "listener closed", slog.String("listener", addrString(l.Addr()))).
			sentence("listener %s closed", l.Addr()))
	}
	if last {
		lc.seal()
	}
}

// seal waits until the manager drains, and tells it that no more connections
// come.
func (lc *lifecycle) seal() {
	<-lc.drained
	close(lc.sealed)
	m := lc.manager()
	m.signal(m.sealed)
}

// catch makes the signals begin and kill the shutdown, until the shutdown is over. It
// does nothing if there are none.
func (lc *lifecycle) catch(sigs []os.Signal) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if len(sigs) == 0 || lc.stopSignals != nil || lc.joined || lc.Phase() != PhaseServing {
		return
	}
	lc.stopSignals = catchSignals(sigs,
		func(sig os.Signal) bool { return lc.tryBegin(sig.String(), nil) },
		func(sig os.Signal) { lc.kill("second signal: " + sig.String()) })
}

// tryBegin begins the shutdown unless p.beforeShutdown refuses. It reports
// whether a shutdown is under way. A timeout that is not nil replaces the
// configured one.
//
// There is one call of beforeShutdown at a time. Concurrent calls of tryBegin
// wait for it and share its result.
func (lc *lifecycle) tryBegin(reason string, timeout *time.Duration) bool {
	lc.mu.Lock()
	if asking := lc.asking; asking != nil && lc.Phase() == PhaseServing {
		lc.mu.Unlock()
		select {
		case <-asking:
		case <-lc.begun: // by begin
		}
		lc.mu.Lock()
		defer lc.mu.Unlock()
		if lc.Phase() == PhaseServing {
			return false
		}
		lc.setTimeoutLocked(timeout)
		return true
	}
	if lc.Phase() != PhaseServing {
		defer lc.mu.Unlock()
		lc.setTimeoutLocked(timeout)
		return true
	}
	asking := make(chan struct{})
	lc.asking = asking
	lc.p.interrupted(true)
	lc.mu.Unlock()
	// Deferred, so that tryBegin can be called again if beforeShutdown panics and
	// the program recovers.
	defer func() {
		lc.mu.Lock()
		if lc.asking = nil; lc.Phase() == PhaseServing {
			lc.p.interrupted(false)
		}
		lc.mu.Unlock()
		close(asking)
	}()
	if lc.p.beforeShutdown() {
		lc.begin(reason, timeout)
	} else {
		lc.log.add(event(slog.LevelInfo, "shutdown refused", slog.String("reason", reason)).
			sentence("shutdown (%s) refused by BeforeShutdown", reason))
	}
	return lc.Phase() != PhaseServing
}

// begin begins the shutdown, if none has begun, and ends the delay of beginHeld.
// A timeout that is not nil replaces the configured one.
func (lc *lifecycle) begin(reason string, timeout *time.Duration) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	lc.setTimeoutLocked(timeout)
	if lc.hold != nil {
		close(lc.hold)
		lc.hold = nil
	}
	lc.beginLocked(reason)
}

// join leaves the signals and the delay to a Group. It panics if the lifecycle
// belongs to a Group, has served or was stopped.
func (lc *lifecycle) join() {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	switch {
	case lc.joined:
		panic("graceful: Group.Add of a server that belongs to a Group already")
	case lc.served || lc.Phase() != PhaseServing:
		panic("graceful: Group.Add of a server that serves already, or was stopped")
	}
	lc.joined = true
}

// beginHeld begins the shutdown with a delay that lasts until begin or kill is
// called.
func (lc *lifecycle) beginHeld(reason string) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.Phase() == PhaseServing {
		lc.hold = make(chan struct{})
		lc.beginLocked(reason)
	}
}

// beginLocked enters PhaseDelaying and starts shutDown, if no shutdown has begun.
func (lc *lifecycle) beginLocked(reason string) {
	if lc.Phase() != PhaseServing {
		return
	}
	lc.p.interrupted(true)
	lc.p.beginDelay() // before the phase, so that a reader of the phase finds it done
	if lc.m != nil {
		lc.m.shutting.Store(true)
	}
	lc.enterLocked(PhaseDelaying)
	lc.report.Reason = reason
	lc.report.Began = lc.phaseAt
	close(lc.begun)
	go lc.shutDown(reason)
}

// setTimeoutLocked replaces the timeout, unless t is nil. During a shutdown the
// timeout can only be shortened.
//
// The shortest is kept, because drain may read the field after several calls.
// drain counts a timeout from when it reads it, so reading the same one again
// cannot make it end earlier.
func (lc *lifecycle) setTimeoutLocked(t *time.Duration) {
	if t == nil {
		return
	}
	if lc.Phase() != PhaseServing && (*t == 0 || lc.timeout != 0 && *t >= lc.timeout) {
		return
	}
	lc.timeout = *t
	select {
	case lc.newTimeout <- struct{}{}:
	default:
	}
}

// kill ends the shutdown now for the reason why, and begins it first if none has
// begun. Of several calls the first counts.
func (lc *lifecycle) kill(why string) {
	lc.begin(why, nil)
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.killed == "" && lc.Phase() < PhaseKilling {
		lc.killed = why
		close(lc.killing)
	}
}

// wait waits until the shutdown is over. It returns an error that wraps ErrKilled
// if connections were killed, or the first error of closing a listener. If ctx
// ends first, wait kills and returns ctx's error.
func (lc *lifecycle) wait(ctx context.Context) error {
	select {
	case <-lc.stopped:
	case <-ctx.Done():
		if isClosed(lc.stopped) { // select picks at random if both are ready
			break
		}
		lc.kill("the context of Shutdown: " + firstLine(context.Cause(ctx)))
		<-lc.stopped
		return ctx.Err()
	}
	return lc.outcome()
}

// outcome returns an error that wraps ErrKilled if connections were killed, or the
// first error of closing a listener. It must be called once the shutdown is over.
func (lc *lifecycle) outcome() error {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if n := len(lc.report.Killed); n > 0 {
		return fmt.Errorf("%w: connections closed unfinished: %d", ErrKilled, n)
	}
	return lc.closeErr
}

// fail begins the shutdown because accepting on addr has failed with err.
func (lc *lifecycle) fail(addr net.Addr, err error) {
	lc.mu.Lock()
	if lc.failure == nil {
		lc.failure = err
	}
	lc.mu.Unlock()
	lc.begin(fmt.Sprintf("accepting on %s failed: %s", addr, firstLine(err)), nil)
}

// moments returns the channels of Draining and ShutdownBegun.
func (lc *lifecycle) moments() moments { return moments{lc.begun, lc.draining} }

// shutDown runs the shutdown: the delay, the drain, and the report.
func (lc *lifecycle) shutDown(reason string) {
	lc.mu.Lock()
	delay, hold := lc.cfg.delay, lc.hold
	if lc.joined {
		delay = 0
	}
	level := slog.LevelInfo
	if lc.failure != nil {
		level = slog.LevelError
	}
	lc.mu.Unlock()
	lc.log.add(event(level, "shutdown begun", slog.String("reason", reason)).
		sentence("shutdown initiated: %s", reason))
	if hold != nil {
		select {
		case <-hold:
		case <-lc.killing:
		}
	}
	if delay > 0 {
		lc.log.add(event(slog.LevelInfo, "delaying", phaseAttr(PhaseDelaying), slog.Duration("delay", delay)).
			sentence("still serving for %s, so that load balancers notice", round(delay)))
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-lc.killing:
			t.Stop()
		}
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseDraining)
	close(lc.draining)
	m := lc.m
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()
	if m != nil {
		lc.drain(m, listeners)
	} else {
		lc.p.beginDrain()
		lc.p.runHooks() // net/http's Shutdown calls them without a listener, too
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseStopped)
	stopSignals := lc.stopSignals
	left := lc.report.HijackedLeft
	lc.mu.Unlock()
	if stopSignals != nil {
		stopSignals()
	}
	if m != nil {
		farewell := lc.p.finish(m, left)
		lc.mu.Lock()
		lc.report.HTTP2 = farewell
		lc.mu.Unlock()
	}
	report := lc.currentReport()
	lc.log.add(event(slog.LevelInfo, "shutdown over", report.LogValue().Group()...).sentence("%s", report))
	lc.p.reported(report)
	lc.mu.Lock()
	link := lc.link
	lc.mu.Unlock()
	link.settle()
	lc.log.close()
	close(lc.stopped)
}

// hooksLatest is how long after draining began runHooks is called at the latest,
// even if a listener is still open.
const hooksLatest = time.Second

// drain runs the drain, and returns when no connection is left in m. On the
// timeout or a kill it closes the connections that are left.
func (lc *lifecycle) drain(m *manager, listeners []*listener) {
	start := statsOf(m.countFrom(), PhaseDraining, lc.p.streams())
	lc.mu.Lock()
	lc.report.Start = start
	lc.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answering := lc.p.finishRequests(ctx)
	hooks := sync.OnceFunc(lc.p.runHooks)
	defer hooks()
	if answering == nil {
		lc.endAccepting(m, listeners)
	} else {
		hooks()
	}
	lc.p.beginDrain()

	timeout := drainTimer{began: time.Now()}
	defer timeout.stop()
	timeout.shorten(lc.currentTimeout())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sealed := lc.sealed
	// A listener may wait for a slot in the limit that only a hook frees.
	late := time.NewTimer(hooksLatest)
	defer late.Stop()
	for {
		select {
		case <-late.C:
			hooks()
		case <-answering:
			answering = nil
			lc.endAccepting(m, listeners)
		case <-sealed:
			sealed = nil
			hooks()
		case <-m.done:
			lc.note(m.last)
			return
		case <-lc.newTimeout:
			timeout.shorten(lc.currentTimeout())
		case <-timeout.c:
			lc.kill(fmt.Sprintf("timeout, %s after draining began", round(time.Since(timeout.began))))
		case <-lc.killing:
			if answering != nil {
				lc.endAccepting(m, listeners)
			}
			lc.killLeft(m)
			return
		case now := <-tick.C:
			if c, ok := m.count(); ok {
				s := statsOf(c, PhaseDraining, lc.p.streams())
				attrs := s.LogValue().Group()
				if left, bounded := timeout.left(now); bounded {
					attrs = append(attrs, slog.Duration("left", left))
				}
				lc.log.add(event(slog.LevelInfo, "draining", attrs...).sentence("%s; %s", s, timeout.leftText(now)))
				lc.note(c)
			}
		}
	}
}

// endAccepting makes the manager begin to drain and tells the listeners to stop.
func (lc *lifecycle) endAccepting(m *manager, listeners []*listener) {
	lc.mu.Lock()
	m.timed.Store(lc.timeout > 0)
	lc.mu.Unlock()
	m.signal(m.begin)
	for _, l := range listeners {
		l.stop()
	}
	close(lc.drained)
	if len(listeners) == 0 {
		lc.seal()
	}
}

// currentTimeout returns the drain's current timeout, 0 for none, and takes the
// value out of newTimeout.
func (lc *lifecycle) currentTimeout() time.Duration {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	select {
	case <-lc.newTimeout:
	default:
	}
	return lc.timeout
}

// note puts the manager's counts into the report.
func (lc *lifecycle) note(c census) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	r := &lc.report
	r.AcceptedLate, r.Finished, r.IdleClosed, r.IncompleteClosed, r.HijackedLeft = c.late, c.finished, c.ended, c.gaveUp, c.left
}

// killLeft closes the connections that are left and reports them. Methods of
// callers' types may block, so they are called only after every connection was
// cut.
func (lc *lifecycle) killLeft(m *manager) {
	lc.enter(PhaseKilling)
	lc.mu.Lock()
	why := lc.killed
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()

	left := m.abandon()
	lc.note(m.last)
	// The connections' states are read before beginKill ends the contexts, because
	// a TLS handshake returns as soon as its context ends.
	killed := make([]KilledConn, 0, len(left))
	requests := make([][]requestLine, 0, len(left))
	cut := left[:0]
	for _, c := range left {
		w := c.load()
		if w.state() == connClosed {
			continue
		}
		// The time is read after the state, which changes meanwhile, so that no age is
		// negative.
		k := KilledConn{State: w.state().String(), Age: time.Since(m.began) - w.since()}
		lines := lc.p.requests(c)
		for _, r := range lines {
			k.Requests = append(k.Requests, r.String())
		}
		killed = append(killed, k)
		requests = append(requests, lines)
		cut = append(cut, c)
	}
	lc.p.beginKill()
	for _, l := range listeners {
		l.closeSoon()
	}
	for _, c := range cut {
		c.cutSoon()
	}

	nameConns(cut, killed)
	lc.mu.Lock()
	if len(killed) > 0 {
		lc.report.KillReason = why
	}
	lc.report.Killed = killed
	lc.mu.Unlock()
	for i, k := range killed {
		lc.log.add(killEvent(k, requests[i]))
	}
}

// killEvent returns the logEvent of a killed connection.
func killEvent(k KilledConn, requests []requestLine) logEvent {
	attrs := k.connAttrs()
	if len(requests) == 1 {
		attrs = append(attrs, slog.String("method", requests[0].method), slog.String("path", requests[0].path()))
	} else if len(requests) > 1 { // HTTP/2
		lines := make([]string, len(requests))
		for i, r := range requests {
			lines[i] = r.method + " " + r.path()
		}
		attrs = append(attrs, slog.Any("requests", lines))
	}
	return event(slog.LevelWarn, "connection killed", attrs...).sentence("killing %s", k)
}

// nameConns fills in the remote addresses of conns. The RemoteAddr of a caller's
// type may block, for example because it reads the PROXY protocol's header first.
// If it takes more than 100 ms, the address stays "unknown".
func nameConns(conns []*conn, killed []KilledConn) {
	const most = 100 * time.Millisecond
	type name struct {
		i    int
		addr string
	}
	names := make(chan name, len(conns))
	asked := 0
	for i, c := range conns {
		killed[i].RemoteAddr = "unknown"
		if c.nonBlocking() {
			killed[i].RemoteAddr = addrString(c.raw.RemoteAddr())
			continue
		}
		asked++
		go func() { names <- name{i, addrString(c.raw.RemoteAddr())} }()
	}
	if asked == 0 {
		return
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	for range asked {
		select {
		case n := <-names:
			killed[n.i].RemoteAddr = n.addr
		case <-timer.C:
			return
		}
	}
}

// addrString returns a's text, or "unknown" if a is nil: a caller's connection
// may have no address.
func addrString(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	return a.String()
}

// enterLocked enters the phase p and records how long the one before took.
func (lc *lifecycle) enterLocked(p Phase) {
	now := time.Now()
	took := now.Sub(lc.phaseAt)
	switch lc.Phase() {
	case PhaseDelaying:
		lc.report.Delay = took
	case PhaseDraining:
		lc.report.Drain = took
	case PhaseKilling:
		lc.report.Kill = took
	}
	lc.phaseAt = now
	lc.report.Phase = p
	lc.phase.Store(int32(p))
}

func (lc *lifecycle) enter(p Phase) {
	lc.mu.Lock()
	lc.enterLocked(p)
	lc.mu.Unlock()
}

// stats counts the connections that are open now.
func (lc *lifecycle) stats() Stats {
	m := lc.manager()
	s := Stats{Phase: lc.Phase()}
	if m != nil {
		if c, ok := m.count(); ok {
			s = statsOf(c, s.Phase, lc.p.streams())
		}
	}
	return s
}

func (lc *lifecycle) currentReport() Report {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	r := lc.report
	r.Killed = slices.Clone(r.Killed)
	switch lc.Phase() {
	case PhaseDelaying:
		r.Delay = time.Since(lc.phaseAt)
	case PhaseDraining:
		r.Drain = time.Since(lc.phaseAt)
	case PhaseKilling:
		r.Kill = time.Since(lc.phaseAt)
	}
	return r
}

// openConns returns the connections that are open.
func (lc *lifecycle) openConns() []*conn {
	m := lc.manager()
	if m == nil {
		return nil
	}
	return m.conns()
}

// manager returns the manager, nil before the first listener.
func (lc *lifecycle) manager() *manager {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return lc.m
}

// skipDelay sets the delay of a shutdown that has not begun to 0.
func (lc *lifecycle) skipDelay() {
	lc.mu.Lock()
	lc.cfg.delay = 0
	lc.mu.Unlock()
}

func (lc *lifecycle) allAddrs() []net.Addr {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return slices.Clone(lc.bound)
}

// A drainTimer fires when the drain's timeout has passed. The zero value never
// does.
type drainTimer struct {
	began time.Time
	end   time.Time // zero: never
	t     *time.Timer
	c     <-chan time.Time // nil: never
}

// shorten makes the timer fire after d, if that is earlier than before. It does
// nothing if d is 0.
func (t *drainTimer) shorten(d time.Duration) {
	end := time.Now().Add(d)
	if d <= 0 || !t.end.IsZero() && !end.Before(t.end) {
		return
	}
	t.end = end
	if t.t == nil {
		t.t = time.NewTimer(d)
		t.c = t.t.C
		return
	}
	t.t.Reset(d)
}

// left returns how long it is until the timer fires, 0 if it has fired. bounded is
// false if it never does.
func (t *drainTimer) left(now time.Time) (left time.Duration, bounded bool) {
	if t.end.IsZero() {
		return 0, false
	}
	return max(0, t.end.Sub(now)), true
}

func (t *drainTimer) leftText(now time.Time) string {
	if left, bounded := t.left(now); bounded {
		return round(left).String() + " left"
	}
	return "no timeout"
}

func (t *drainTimer) stop() {
	if t.t != nil {
		t.t.Stop()
	}
}

// isClosed reports whether c, on which nothing is ever sent, is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
