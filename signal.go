package graceful

import (
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// samePress is how long after a signal others count as the same one. A
// terminal sends SIGINT to the whole process group, and a supervisor in that
// group (go run, npm, a shell script) forwards it as well: one keypress, two
// signals.
const samePress = 250 * time.Millisecond

// caught are the signals that begin a shutdown: SIGINT and SIGTERM, without
// those that were ignored when the process started. A shell without job control
// starts its background jobs with SIGINT ignored, so that Ctrl-C reaches only
// the job in the foreground; signal.Notify would undo that.
//
// The package asks when it is initialized: once anything has called Notify,
// signal.Ignored reports false. Of SIGTERM it always does in a Go program, as
// the runtime respects only an ignored SIGHUP and SIGINT (see os/signal).
var caught = slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGTERM}, signal.Ignored)

// catchSignals catches SIGINT and SIGTERM, as far as caught has them, until stop
// is called.
//
// The first signal calls initiate. Signals of either kind within samePress of
// it are ignored. If initiate returned true, the next one lets go of the
// signals and then calls kill, so that a third does what it does in any
// program: it ends the process, also while kill blocks. If initiate returned
// false (a veto), the next signal counts as a first one again.
//
// The callbacks run on goroutines of the catcher. A signal that arrives behind the
// window while initiate has not returned is the next one as well: a callback of
// the application's that hangs does not keep the second signal from killing.
//
// stop lets go of the signals and ends the catcher. It waits for no callback, so
// it may be called from inside one, concurrently and more than once; a callback
// that was due when stop was called may run after stop has returned.
//
// Several catchers in one process each get every signal. While a Group catches
// signals it conducts: initiate is then called only once the Group's servers
// drain, so that a server which the Group does not know as one of this package
// serves on during its ShutdownDelay.
//
// The first signal.Notify of a process starts a goroutine that never ends: it
// must not be made inside a testing/synctest bubble.
func catchSignals(initiate func(os.Signal) bool, kill func(os.Signal)) (stop func()) {
	done := make(chan struct{})
	return catchSignalsUntil(done, func(sig os.Signal) bool {
		return awaitConductors(done) && initiate(sig)
	}, kill)
}

// catchSignalsUntil is catchSignals without conductors. stop closes done.
func catchSignalsUntil(done chan struct{}, initiate func(os.Signal) bool, kill func(os.Signal)) (stop func()) {
	// The buffer keeps a second signal that comes with the first; os/signal
	// drops what does not fit, it does not wait.
	c := make(chan os.Signal, 4)
	if len(caught) > 0 { // of none Notify makes all
		signal.Notify(c, caught...)
	}
	letGo := func() { signal.Stop(c) }
	go watchSignals(c, done, initiate, func(sig os.Signal) {
		letGo()
		kill(sig)
	})
	return sync.OnceFunc(func() {
		letGo()
		close(done)
	})
}

// conductors are the groups that catch signals and whose servers do not drain
// yet: channels on which nothing is sent, closed when they do.
var (
	conductorsMu sync.Mutex // guards conductors
	conductors   = make(map[chan struct{}]bool)
)

// conduct makes the catchers of the process wait until release is called, which
// may be called more than once.
func conduct() (release func()) {
	c := make(chan struct{})
	conductorsMu.Lock()
	defer conductorsMu.Unlock()
	conductors[c] = true
	return sync.OnceFunc(func() {
		conductorsMu.Lock()
		defer conductorsMu.Unlock()
		delete(conductors, c)
		close(c)
	})
}

// awaitConductors waits until nobody conducts, and reports whether that was so
// before done was closed.
func awaitConductors(done <-chan struct{}) bool {
	for {
		var c chan struct{}
		conductorsMu.Lock()
		for c = range conductors {
			break
		}
		conductorsMu.Unlock()
		if c == nil {
			return true
		}
		select {
		case <-c:
		case <-done:
			return false
		}
	}
}

// watchSignals plays catchSignals' rules on the signals from c until done is
// closed or kill has been called.
//
//	waiting ──signal──▶ deciding ──true──▶ stopping ──signal──▶ kill
//	   ▲                 │    └─────────────signal──────────────▲
//	   └──────false──────┘
func watchSignals(c <-chan os.Signal, done <-chan struct{}, initiate func(os.Signal) bool, kill func(os.Signal)) {
	var (
		lastAt   time.Time // when the signal came that counted last
		decision chan bool // what initiate said; nil unless deciding
		stopping bool
	)
	for {
		select {
		case <-done:
			return
		case stopping = <-decision:
			decision = nil
		case sig := <-c:
			if isClosed(done) { // select picks at random among what is ready
				return
			}
			now := time.Now()
			if !lastAt.IsZero() && now.Sub(lastAt) <= samePress {
				continue
			}
			if stopping || decision != nil {
				kill(sig)
				return
			}
			lastAt = now
			// On a goroutine of its own, so that signals are heard meanwhile. The
			// buffer lets it end when nothing listens any more.
			ch := make(chan bool, 1)
			decision = ch
			go func() { ch <- initiate(sig) }()
		}
	}
}
