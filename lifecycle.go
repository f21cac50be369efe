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

// A protocol is what a lifecycle doesn't know: what is spoken on its
// connections. Of its methods only beforeShutdown may block.
type protocol interface {
	// config returns what the lifecycle goes by. It is asked once.
	config() lifeConfig

	// beforeShutdown reports whether a shutdown may begin.
	beforeShutdown() bool

	// beginDelay is the first moment of the shutdown: the phase is entered
	// next. It is called with the lifecycle's mutex held.
	beginDelay()

	beginDrain() // the listeners have been told to stop
	beginKill()  // before any connection is closed

	// finishRequests comes in PhaseDraining, before any connection is told to
	// end. It refuses new requests, and returns a channel that is closed when
	// those in progress are answered or ctx ends; nil if the listeners are not
	// to be kept open for that.
	finishRequests(ctx context.Context) <-chan struct{}

	// finish cleans up, and says how HTTP/2 clients were told to leave. left
	// is how many hijacked connections were not waited for.
	finish(left int) string

	// requests lists those in progress on a connection with the given info.
	requests(info any) []string

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

	// shutting is true from the first moment of the shutdown on: the phase
	// as the path of a request wants to read it.
	shutting atomic.Bool

	draining chan struct{} // closed when shutting becomes true
	drained  chan struct{} // closed when the drain has begun
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
}

func (lc *lifecycle) init(p protocol) {
	lc.once.Do(func() {
		lc.p = p
		lc.draining = make(chan struct{})
		lc.drained = make(chan struct{})
		lc.killing = make(chan struct{})
		lc.stopped = make(chan struct{})
		lc.newTimeout = make(chan struct{}, 1)
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

var errNotServed = errors.New("graceful: stopped before it served")

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

// release takes note that l accepts no more.
func (lc *lifecycle) release(l *listener) {
	err := l.Close()
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
	m := lc.m
	lc.mu.Unlock()
	if lc.shutting.Load() {
		lc.p.logf("listener %s closed", l.Addr())
	}
	if last {
		// The drain has begun: run hears of that before it hears of this.
		<-lc.drained
		m.signal(m.sealed)
	}
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
