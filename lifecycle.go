package graceful

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrKilled is the cause (context.Cause) of the contexts of requests that were
// in progress when the shutdown's time was over, and what Shutdown's error
// wraps then.
var ErrKilled = errors.New("graceful: killed: the time for the shutdown is over")

// errServed is what a second life is refused with.
var errServed = fmt.Errorf("graceful: the server has been stopped and can't serve again: %w", http.ErrServerClosed)

// errNotServed says that a stop came before anything was served.
var errNotServed = errors.New("graceful: stopped before it served")

// A protocol is what a lifecycle doesn't know: what is spoken on its
// connections. Of its methods only beforeShutdown may block.
type protocol interface {
	// config returns what the lifecycle goes by. It is asked once.
	config() lifeConfig

	// beforeShutdown reports whether a shutdown may begin.
	beforeShutdown() bool

	// interrupted is called with true before beforeShutdown, or before a
	// shutdown that does not ask, and with false when beforeShutdown has
	// refused. It is called with the lifecycle's mutex held.
	interrupted(bool)

	// beginDelay is the first moment of the shutdown: the phase is entered
	// next. It is called with the lifecycle's mutex held.
	beginDelay()

	beginDrain() // the listeners have been told to stop
	runHooks()   // the listeners are closed, or stay open for longer than hooksLatest
	beginKill()  // before any connection is closed

	// finishRequests comes in PhaseDraining, before any connection is told to
	// end. It refuses new requests, and returns a channel that is closed when
	// those in progress are answered or ctx ends; nil if the listeners are not
	// to be kept open for that.
	finishRequests(ctx context.Context) <-chan struct{}

	// finish cleans up, and says how HTTP/2 clients were told to leave. left
	// is how many hijacked connections were not waited for.
	finish(m *manager, left int) string

	// requests lists those in progress on a connection.
	requests(*conn) []requestLine

	// streams is how many requests are in progress on connections that
	// carry several.
	streams() int

	logf(format string, args ...any)
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

	phase atomic.Int32

	draining chan struct{} // closed at the first moment of the shutdown
	drained  chan struct{} // closed when the manager drains
	sealed   chan struct{} // closed when the last listener is, while draining
	killing  chan struct{} // closed by kill
	stopped  chan struct{} // closed at the end

	// newTimeout says that timeout was changed; holds one value at the most.
	newTimeout chan struct{}

	once sync.Once // init

	mu        sync.Mutex // guards what follows
	cfg       lifeConfig // what p.config said; zero before the first listener
	m         *manager   // nil before the first listener
	listeners []*listener
	bound     []net.Addr    // of all listeners there have been
	served    bool          // there has been a listener
	asking    chan struct{} // closed when beforeShutdown has returned; nil unless it runs
	timeout   time.Duration
	killed    string // why
	letGo     func() // stops catching signals; nil if none are caught
	joined    bool   // a Group has the signals and calls the delay

	// hold keeps the delay from ending; nil if nothing does. No values sent.
	hold     chan struct{}
	report   Report
	phaseAt  time.Time // when the phase began
	closeErr error     // the first error of closing a listener

	log shutdownLog
}

func (lc *lifecycle) init(p protocol) {
	lc.once.Do(func() {
		lc.p = p
		lc.draining = make(chan struct{})
		lc.drained = make(chan struct{})
		lc.sealed = make(chan struct{})
		lc.killing = make(chan struct{})
		lc.stopped = make(chan struct{})
		lc.newTimeout = make(chan struct{}, 1)
		lc.log.write = p.logf
	})
}

func (lc *lifecycle) Phase() Phase { return Phase(lc.phase.Load()) }

// open returns the manager to accept for. It reports an error that says why
// there is nothing to accept any more; errNotServed if a stop came before
// anything was served.
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

// refusal reports why there is nothing to accept any more, as open does.
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

// admit takes a listener in. It refuses as open does, for a shutdown may have
// begun since.
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

// release takes note that l accepts no more. It waits for the drain, if that is
// about to begin and l is the last listener.
func (lc *lifecycle) release(l *listener) {
	err := l.Close()
	if l.accepts.Load() > 0 {
		return // the last of them comes here
	}
	lc.mu.Lock()
	i := slices.Index(lc.listeners, l)
	if i < 0 {
		lc.mu.Unlock()
		return // a second time
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
		lc.log.printf("listener %s closed", l.Addr())
	}
	if last {
		lc.seal()
	}
}

// seal tells the manager, once it drains, that no connection comes any more.
func (lc *lifecycle) seal() {
	<-lc.drained
	close(lc.sealed)
	m := lc.manager()
	m.signal(m.sealed)
}

// catch catches signals until the end.
func (lc *lifecycle) catch() {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.letGo != nil || lc.joined || lc.Phase() != PhaseServing {
		return
	}
	lc.letGo = catchSignals(
		func(sig os.Signal) bool { return lc.ask(sig.String(), nil) },
		func(sig os.Signal) { lc.kill("second signal: " + sig.String()) })
}

// ask begins the shutdown unless the protocol has something against it. It
// reports whether one is under way. A timeout that is not nil takes the place
// of the configured one.
//
// The protocol is asked once at a time: who asks meanwhile waits for the same
// answer.
func (lc *lifecycle) ask(reason string, timeout *time.Duration) bool {
	lc.mu.Lock()
	if asking := lc.asking; asking != nil && lc.Phase() == PhaseServing {
		lc.mu.Unlock()
		select {
		case <-asking:
		case <-lc.draining: // by one that does not ask
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
	// A panic in the callback is the program's end or somebody's recover; the
	// latter finds a server that can be asked again.
	defer func() {
		lc.mu.Lock()
		if lc.asking = nil; lc.Phase() == PhaseServing {
			lc.p.interrupted(false)
		}
		lc.mu.Unlock()
		close(asking)
	}()
	if lc.p.beforeShutdown() {
		lc.order(reason, timeout)
	} else {
		lc.p.logf("shutdown refused by BeforeShutdown: %s", reason)
	}
	return lc.Phase() != PhaseServing
}

// order begins the shutdown, if none has begun.
func (lc *lifecycle) order(reason string, timeout *time.Duration) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	lc.setTimeoutLocked(timeout)
	if lc.hold != nil {
		close(lc.hold)
		lc.hold = nil
	}
	lc.beginLocked(reason)
}

// join gives the signals and the delay to a Group. It panics if it is too late
// for that.
func (lc *lifecycle) join() {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	switch {
	case lc.joined:
		panic("graceful: Group.Add of what belongs to a Group already")
	case lc.served || lc.Phase() != PhaseServing:
		panic("graceful: Group.Add of what serves already, or has been stopped")
	}
	lc.joined = true
}

// beginHeld begins the shutdown with a delay that lasts until somebody else
// orders the shutdown.
func (lc *lifecycle) beginHeld(reason string) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.Phase() == PhaseServing {
		lc.hold = make(chan struct{})
		lc.beginLocked(reason)
	}
}

// beginLocked begins the shutdown, if none has begun.
func (lc *lifecycle) beginLocked(reason string) {
	if lc.Phase() != PhaseServing {
		return
	}
	lc.p.interrupted(true)
	lc.p.beginDelay() // who sees the phase finds everything in it
	if lc.m != nil {
		lc.m.shutting.Store(true)
	}
	lc.enterLocked(PhaseDelaying)
	lc.report.Reason = reason
	lc.report.Began = lc.phaseAt
	close(lc.draining)
	go lc.shutDown(reason)
}

// setTimeoutLocked replaces the timeout: the configured one before the
// shutdown. One that is under way can be told to hurry, not to take longer.
//
// The shortest is kept, for the drain may come to know of several at once. It
// does no harm later, when it is asked for by another: counted from then it
// would end after it already has.
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

// kill ends the shutdown now, and begins it if need be.
func (lc *lifecycle) kill(why string) {
	lc.order(why, nil)
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.killed == "" && lc.Phase() < PhaseKilling {
		lc.killed = why
		close(lc.killing)
	}
}

// wait waits for the end and returns nil, or until ctx ends: then it kills,
// and returns ctx's error.
func (lc *lifecycle) wait(ctx context.Context) error {
	select {
	case <-lc.stopped:
	case <-ctx.Done():
		if isClosed(lc.stopped) { // select picks at random
			break
		}
		lc.kill(fmt.Sprintf("the context of Shutdown: %v", context.Cause(ctx)))
		<-lc.stopped
		return ctx.Err()
	}
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if n := len(lc.report.Killed); n > 0 {
		return fmt.Errorf("%w: %d connections were closed unfinished", ErrKilled, n)
	}
	return lc.closeErr
}

// shutDown is the shutdown, from its first moment to its last.
func (lc *lifecycle) shutDown(reason string) {
	lc.log.printf("shutdown initiated: %s", reason)

	lc.mu.Lock()
	delay, hold := lc.cfg.delay, lc.hold
	if lc.joined {
		delay = 0
	}
	lc.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-lc.killing:
		}
	}
	if delay > 0 {
		lc.log.printf("still serving for %s, so that load balancers notice", round(delay))
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-lc.killing:
			t.Stop()
		}
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseDraining)
	m := lc.m
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()
	if m != nil {
		lc.drain(m, listeners)
	} else {
		lc.p.beginDrain()
		lc.p.runHooks() // net/http calls the functions that wait for it, too
	}

	lc.mu.Lock()
	lc.enterLocked(PhaseStopped)
	letGo := lc.letGo
	left := lc.report.Left
	lc.mu.Unlock()
	if letGo != nil {
		letGo()
	}
	if m != nil {
		farewell := lc.p.finish(m, left)
		lc.mu.Lock()
		lc.report.HTTP2 = farewell
		lc.mu.Unlock()
	}
	lc.log.printf("%s", lc.currentReport())
	lc.log.close()
	close(lc.stopped)
}

// hooksLatest is how long after draining began the functions that wait for the
// listeners' end are called at the latest.
const hooksLatest = time.Second

// drain waits until m has nothing left, and kills what is left when the time
// is over.
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
	// A listener may wait for a slot in the limit that a hook is to set free.
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
			// A drain that is under way can be told to hurry, not to
			// take longer.
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
				lc.log.printf("%s; %s", statsOf(c, PhaseDraining, lc.p.streams()), timeout.left(now))
				lc.note(c)
			}
		}
	}
}

// endAccepting makes the manager drain and the listeners stop. What was there
// before is counted before the drain changes it.
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

// currentTimeout returns what the drain's timeout is by now; 0 for none.
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
	r.Late, r.Finished, r.Idle, r.GaveUp, r.Left = c.late, c.finished, c.ended, c.gaveUp, c.left
}

// killLeft closes what is left. No method of a caller's type is called before the
// connections are cut: what is asked of those comes after.
func (lc *lifecycle) killLeft(m *manager) {
	lc.enter(PhaseKilling)
	lc.mu.Lock()
	why := lc.killed
	listeners := slices.Clone(lc.listeners)
	lc.mu.Unlock()

	left := m.abandon()
	lc.note(m.last)
	// What the connections are doing is looked at before their requests' contexts
	// end: a handshake gives up at once when its context does.
	now := time.Since(m.began)
	killed := make([]KilledConn, 0, len(left))
	cut := left[:0]
	for _, c := range left {
		w := c.load()
		if w.state() == connClosed {
			continue
		}
		k := KilledConn{State: w.state().String(), Age: now - w.since()}
		for _, r := range lc.p.requests(c) {
			k.Requests = append(k.Requests, r.String())
		}
		killed = append(killed, k)
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
	for _, k := range killed {
		lc.log.printf("killing %s", k)
	}
}

// nameConns fills in the remote addresses of conns. A RemoteAddr that is not
// package net's may block: it reads the header of the PROXY protocol first, say.
// Those that do not answer in time stay without a name.
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
		if c.ours() {
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

// addrString is for addresses of connections that somebody else wrote, which
// may have none.
func addrString(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	return a.String()
}

// enterLocked goes to the next phase, and says how long the last one was.
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

// stats returns a live count.
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

// skipDelay makes a shutdown that has not begun begin without a delay.
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

// A drainTimer goes off when the drain has taken too long.
type drainTimer struct {
	began time.Time
	end   time.Time // zero: never
	t     *time.Timer
	c     <-chan time.Time // nil: never
}

// shorten makes the timer go off in d, if that is earlier; d 0 is never.
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

func (t *drainTimer) left(now time.Time) string {
	if t.end.IsZero() {
		return "no timeout"
	}
	return round(max(0, t.end.Sub(now))).String() + " left"
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
