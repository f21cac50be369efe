package graceful

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/seed-121bbccf/graceful/internal/handoff"
	"github.com/seed-121bbccf/graceful/internal/sdnotify"
)

// A Process says how a Server, Listener or Group deals with what surrounds its
// process: the service manager that has started it, and the successor that replaces
// it without a moment in which connections are refused. In a Group, the Group has the
// Process; its members' are not used. Only one Server, Listener or Group of a process can
// have one: until its shutdown is over, another returns an error instead of serving.
//
// With a Process, systemd (a service of Type=notify) and a predecessor are told as soon
// as this process serves and is ready: a Server and a Group when their ReadyHandler
// would answer 200, a Listener when Accept is called. systemd is also told when the
// shutdown begins (STOPPING=1), and how long it may take (EXTEND_TIMEOUT_USEC): for
// ShutdownDelay and Timeout, or the Group's budget, and without limit if there is none.
//
// A successor is started by the method Upgrade, or by a signal. It gets the sockets
// that Listen has opened in this process, or that this Server, Listener or Group
// serves, by the protocol of systemd's socket activation, and takes them with Listen,
// by address. When it is ready, this process begins its shutdown, without
// ShutdownDelay, and closes nothing that they share: connections in the accept queue
// are the successor's. If the successor exits, or is not ready in time, this process
// serves on. If a shutdown begins meanwhile, the successor is ended.
//
// Upgrades work on Unix systems. On others Upgrade returns an error that wraps
// errors.ErrUnsupported. PID 1 of a container cannot be replaced: Upgrade returns an
// error, because the container ends with it.
type Process struct {
	// UpgradeSignals are the signals that start a successor, such as SIGHUP or
	// SIGUSR2. An error is logged. nil means that only Upgrade starts one. They are
	// caught until the shutdown is over, also with NoSignalHandling, and also if they
	// were ignored when the process started (nohup). A signal that begins the
	// shutdown is an error here.
	UpgradeSignals []os.Signal

	// UpgradeTimeout is how long a successor may take until it is ready. 0 means a
	// minute.
	UpgradeTimeout time.Duration

	// Path is the program to start. "" means this process's own, from the path at
	// which it was started: a new file there is a new program. If that path is a
	// symbolic link that a deployment redirects, set Path to the link.
	Path string

	// Args are the program's arguments without its name. nil means this process's.
	Args []string

	// Env is the program's environment. nil means this process's.
	Env []string
}

// check returns an error if a field of p, which may be nil, has an invalid value. The
// signals stop begin the shutdown.
func (p *Process) check(stop []os.Signal) error {
	if p == nil {
		return nil
	}
	for _, sig := range p.UpgradeSignals {
		if slices.Contains(stop, sig) {
			return fmt.Errorf("graceful: Process.UpgradeSignals has %v, which begins the shutdown", sig)
		}
	}
	return cmp.Or(
		catchable("Process.UpgradeSignals", p.UpgradeSignals),
		notNegative("Process.UpgradeTimeout", p.UpgradeTimeout),
	)
}

var (
	// handedDown takes the sockets over that were handed to this process.
	handedDown = sync.OnceValues(handoff.Receive)

	// listening are the sockets that Listen has returned and that are not closed.
	listeningMu sync.Mutex // guards listening
	listening   = make(map[*ownListener]bool)
)

// claimed is closed when the shutdown of what has this process's Process is over; nil
// if there was none.
var (
	claimedMu sync.Mutex // guards claimed
	claimed   <-chan struct{}
)

// claim makes p, which may be nil, this process's Process until stopped is closed. With
// two there would be two successors.
func (p *Process) claim(stopped <-chan struct{}) error {
	if p == nil {
		return nil
	}
	claimedMu.Lock()
	defer claimedMu.Unlock()
	if claimed != nil && claimed != stopped && !isClosed(claimed) {
		return errors.New("graceful: another Server, Listener or Group of this process has a Process: use one Group, with a Process")
	}
	claimed = stopped
	return nil
}

// A processLink does for a Server, Listener or Group what its Process says.
type processLink struct {
	*Process
	begun   <-chan struct{} // closed when the shutdown begins
	stopped <-chan struct{} // closed when it is over
	log     func(logEvent)
	ready   func(context.Context) bool
	serving func() []*listener
	budget  func() time.Duration // of the shutdown; 0 for no limit

	// handOver begins the shutdown for reason after calling share, unless a shutdown
	// has begun: then it does neither and reports false.
	handOver func(reason string, share func()) bool

	// mu guards the next two, and the order in which systemd is told of readiness, of
	// upgrades and of the shutdown.
	mu         sync.Mutex
	upgrading  bool
	handedOver bool // a successor is the service now

	busy sync.WaitGroup // telling that the shutdown has begun, and an upgrade
}

// start starts k, whose fields above mu are set.
func (k *processLink) start() {
	upgrade := make(chan os.Signal, 1)
	if len(k.UpgradeSignals) > 0 { // without arguments Notify catches all signals
		signal.Notify(upgrade, k.UpgradeSignals...)
	}
	k.busy.Add(1)
	go k.run(upgrade)
}

// settle waits until systemd was told that the shutdown has begun, or who the service
// is now, and until a successor that is not to serve has ended, but not for long. k may
// be nil.
func (k *processLink) settle() {
	if k != nil {
		callBriefly(k.busy.Wait)
	}
}

// run tells systemd and the predecessor what happens, and starts successors upon the
// signals that upgrade receives, until the shutdown is over. A signal that comes while
// the process drains must not have its default effect, which is to end it.
func (k *processLink) run(upgrade chan os.Signal) {
	defer signal.Stop(upgrade)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	isReady := make(chan bool, 1)
	go func() { isReady <- k.awaitReady(ctx) }()
	told := make(chan struct{})
	go func() {
		defer close(told)
		<-k.begun
		k.sayStopping()
		<-k.stopped
	}()
	for {
		select {
		case ok := <-isReady:
			isReady = nil
			if ok {
				k.sayReady()
			}
		case <-upgrade:
			go func() {
				if err := k.upgrade(ctx); err != nil {
					k.log(event(slog.LevelError, "upgrade failed", slog.String("error", err.Error())).sentence("upgrade failed: %v", err))
				}
			}()
		case <-told:
			return
		}
	}
}

// awaitReady waits until ready reports true, and reports false if the shutdown begins
// first. Readiness may depend on checks of anything, so it is asked for repeatedly.
func (k *processLink) awaitReady(ctx context.Context) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !k.ready(ctx) {
		select {
		case <-tick.C:
		case <-k.begun:
			return false
		}
	}
	return !isClosed(k.begun)
}

// sayReady tells the predecessor that this process is ready, and systemd if there is no
// predecessor: otherwise that tells systemd.
func (k *processLink) sayReady() {
	sockets, err := handedDown()
	if err != nil {
		k.warn(err)
		return
	}
	hadPredecessor, err := sockets.Ready()
	if err != nil {
		k.warn(err)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !hadPredecessor && !isClosed(k.begun) {
		k.notify(sdnotify.Ready)
	}
}

// stopMargin is how much longer than the budget the shutdown may take for systemd.
const stopMargin = 5 * time.Second

// sayStopping tells systemd that the shutdown has begun, and how long it may take, unless
// a successor is the service now. It returns when the shutdown is over, if that has no
// limit, otherwise at once.
func (k *processLink) sayStopping() {
	budget := k.budget()
	if !k.sayBegun(cmp.Or(budget, 2*stopMargin)+stopMargin) || budget > 0 {
		return
	}
	tick := time.NewTicker(stopMargin)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			k.notify(sdnotify.ExtendTimeout(3 * stopMargin))
		case <-k.stopped:
			return
		}
	}
}

// sayBegun tells systemd that the shutdown has begun and may take for within, and
// reports false if a successor is the service now.
func (k *processLink) sayBegun(within time.Duration) bool {
	k.mu.Lock() // an upgrade that found begun open has been counted in busy
	defer k.mu.Unlock()
	defer k.busy.Done()
	if !k.handedOver {
		k.notify(sdnotify.Stopping, sdnotify.ExtendTimeout(within))
	}
	return !k.handedOver
}

func (k *processLink) notify(messages ...string) {
	if err := sdnotify.Send(messages...); err != nil {
		k.warn(err)
	}
}

func (k *processLink) warn(err error) {
	k.log(event(slog.LevelWarn, "process notification failed", slog.String("error", err.Error())).sentence("graceful: %v", err))
}

var errStopping = errors.New("a shutdown has begun")

// upgrade starts a successor, waits until it is ready and begins the shutdown.
func (k *processLink) upgrade(ctx context.Context) error {
	if err := k.beginUpgrade(); err != nil {
		return err
	}
	defer k.busy.Done()
	defer k.endUpgrade()
	return k.replace(ctx)
}

func (k *processLink) beginUpgrade() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case os.Getpid() == 1:
		return errors.New("this process is PID 1, and the kernel would end its successor with it")
	case isClosed(k.begun):
		return errStopping
	case k.upgrading:
		return errors.New("another one is under way")
	}
	k.upgrading = true
	k.busy.Add(1)
	k.notify(sdnotify.Reloading())
	return nil
}

func (k *processLink) endUpgrade() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.upgrading = false
	if !isClosed(k.begun) { // it has failed
		k.notify(sdnotify.Ready)
	}
}

// replace starts a successor and, when that is ready, begins the shutdown.
func (k *processLink) replace(ctx context.Context) error {
	sockets, share, err := k.sockets()
	if err != nil {
		return err
	}
	k.log(event(slog.LevelInfo, "starting a successor", slog.Int("sockets", len(sockets))).
		sentence("upgrade: starting a successor with %d sockets", len(sockets)))

	timeout := cmp.Or(k.UpgradeTimeout, time.Minute)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready within %s", timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-k.begun:
			stop(errStopping)
		case <-ctx.Done():
		}
	}()
	successor, err := handoff.Start(ctx, handoff.Options{Sockets: sockets, Path: k.Path, Args: k.Args, Env: k.Env})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.handOver(fmt.Sprintf("upgrade to process %d", successor.PID()), share) {
		successor.Terminate()
		return errStopping
	}
	k.handedOver = true
	k.notify(sdnotify.MainPID(successor.PID()), sdnotify.Ready)
	return nil
}

// sockets returns what a successor gets, and a function that records that it has got it.
func (k *processLink) sockets() (sockets []handoff.Socket, share func(), err error) {
	serving := k.serving()
	have := make(map[*ownListener]bool)
	for _, l := range serving {
		s := handoff.Socket{Listener: bareListener(l.l), Owned: l.owned()}
		if own := ownOf(l.l); own != nil {
			have[own] = true
			s.Name, s.Owned = own.name, own.family
		}
		if !handoff.HasSocket(s.Listener) {
			return nil, nil, fmt.Errorf("the listener on %s, a %T, has no socket to hand on", l.Addr(), l.original)
		}
		sockets = append(sockets, s)
	}
	listeningMu.Lock()
	var others []*ownListener
	for own := range listening {
		if !have[own] {
			others = append(others, own)
			sockets = append(sockets, handoff.Socket{Listener: own.Listener, Name: own.name, Owned: own.family})
		}
	}
	listeningMu.Unlock()
	if len(sockets) == 0 {
		return nil, nil, errors.New("nothing is served")
	}
	return sockets, func() {
		for _, l := range serving {
			l.handedOn.Store(true)
			if own := ownOf(l.l); own != nil {
				own.handedOn.Store(true)
			}
			if ul, ok := bareListener(l.l).(*net.UnixListener); ok {
				ul.SetUnlinkOnClose(false)
			}
		}
		for _, own := range others {
			own.handedOn.Store(true)
		}
	}, nil
}

// Upgrade replaces this process as Process says: it starts the successor, waits until
// that is ready, begins the shutdown and returns nil; Serve returns when the shutdown
// is over. If the successor does not become ready, or ctx ends first, Upgrade returns
// the error once the successor has ended, and this process serves on. It returns an
// error at once if Process is nil, nothing is served, a shutdown has begun, or an
// upgrade is under way.
func (s *Server) Upgrade(ctx context.Context) error {
	s.init()
	return s.life.upgrade(ctx, s.Process)
}

// Upgrade replaces this process as Process says. See Server.Upgrade.
func (l *Listener) Upgrade(ctx context.Context) error {
	l.init()
	return l.life.upgrade(ctx, l.Process)
}

// Upgrade replaces this process as Process says. See Server.Upgrade. Servers that were
// added by AddFuncs take part if their sockets come from Listen.
func (g *Group) Upgrade(ctx context.Context) error {
	g.mu.Lock()
	link := g.link
	g.mu.Unlock()
	return upgradeBy(ctx, link, g.Process)
}

func (lc *lifecycle) upgrade(ctx context.Context, p *Process) error {
	lc.mu.Lock()
	link := lc.link
	lc.mu.Unlock()
	return upgradeBy(ctx, link, p)
}

func upgradeBy(ctx context.Context, link *processLink, p *Process) error {
	var err error
	switch {
	case p == nil:
		err = errors.New("the field Process is nil")
	case link == nil:
		err = errors.New("nothing is served, or Process belongs to a member of a Group")
	default:
		err = link.upgrade(ctx)
	}
	if err != nil {
		return fmt.Errorf("graceful: upgrade: %w", err)
	}
	return nil
}

// claim is Process.claim for p, unless lc is in a Group.
func (lc *lifecycle) claim(p *Process) error {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.joined {
		return nil
	}
	return p.claim(lc.stopped)
}

// connect starts the processLink of p, if p is not nil, once, and not in a Group.
func (lc *lifecycle) connect(p *Process, ready func(context.Context) bool) {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if p == nil || lc.joined || lc.link != nil {
		return
	}
	lc.link = &processLink{
		Process:  p,
		begun:    lc.begun,
		stopped:  lc.stopped,
		log:      lc.log.add,
		ready:    ready,
		serving:  lc.serving,
		budget:   lc.budget,
		handOver: lc.handOver,
	}
	lc.link.start()
}

func (lc *lifecycle) serving() []*listener {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return slices.Clone(lc.listeners)
}

// budget returns how long the shutdown may take, 0 for no limit.
func (lc *lifecycle) budget() time.Duration {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.timeout == 0 {
		return 0
	}
	return lc.cfg.delay + lc.timeout
}

// handOver begins the shutdown after calling share, unless one has begun. The delay,
// and refusing requests while the listeners are open, are for a process whose port
// is closed in the end.
func (lc *lifecycle) handOver(reason string, share func()) bool {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	if lc.Phase() != PhaseServing {
		return false
	}
	share()
	lc.handedOver.Store(true)
	lc.cfg.delay = 0
	lc.beginLocked(reason)
	return true
}

// connect starts the processLink, if Process is not nil.
func (g *Group) connect() {
	if g.Process == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.link = &processLink{
		Process: g.Process,
		begun:   g.begun,
		stopped: g.stopped,
		log:     g.log,
		ready:   func(ctx context.Context) bool { return g.unready(ctx) == "" },
		serving: func() (all []*listener) {
			for _, lc := range g.lifecycles() {
				all = append(all, lc.serving()...)
			}
			return all
		},
		budget: func() time.Duration { return g.Budget },
		handOver: func(reason string, share func()) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.reason != "" {
				return false
			}
			share()
			for _, lc := range g.lifecycles() {
				lc.handedOver.Store(true)
			}
			g.handedOver = true
			g.beginLocked(reason, nil)
			return true
		},
	}
	g.link.start()
}

// lifecycles returns those of the members. No server is added once the group has been
// started.
func (g *Group) lifecycles() []*lifecycle {
	var all []*lifecycle
	for _, t := range g.servers {
		switch m := t.member.(type) {
		case *Server:
			all = append(all, &m.life)
		case *Listener:
			all = append(all, &m.life)
		}
	}
	return all
}
