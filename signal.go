package graceful

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// samePress is how long after a signal further ones count as the same signal. A
// terminal sends SIGINT to the whole process group, and a supervisor in that
// group (go run, npm, a shell script) forwards it as well. So one keypress may
// cause two signals.
const samePress = 250 * time.Millisecond

// ignored are the signals that were ignored when the process started, and therefore
// are not caught. A shell without job control starts its background jobs with SIGINT
// ignored, so that Ctrl-C reaches only the job in the foreground, and nohup a command
// with SIGHUP ignored; signal.Notify would undo that.
//
// signal.Ignored is called when the package is initialized, because it reports
// false once Notify was called. Go's runtime respects an ignored SIGHUP and SIGINT
// only, so that the other signals, SIGTERM among them, are never in this list (see
// os/signal).
var ignored = slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGHUP},
	func(sig os.Signal) bool { return !signal.Ignored(sig) })

// notify makes signal.Notify send sigs to c, but for those that were ignored when the
// process started.
func notify(c chan<- os.Signal, sigs []os.Signal) {
	sigs = slices.DeleteFunc(slices.Clone(sigs), func(sig os.Signal) bool { return slices.Contains(ignored, sig) })
	if len(sigs) > 0 { // without arguments Notify catches all signals
		signal.Notify(c, sigs...)
	}
}

// catchable returns an error if one of the signals of a field can never be caught.
func catchable(field string, sigs []os.Signal) error {
	for _, sig := range sigs {
		if sig == nil || sig == os.Kill {
			return fmt.Errorf("graceful: %s has a signal that cannot be caught: %v", field, sig)
		}
	}
	return nil
}

// signalsOf returns the signals that begin a shutdown, for the fields Signals and
// NoSignalHandling. There may be none.
func signalsOf(field []os.Signal, none bool) []os.Signal {
	switch {
	case none:
		return nil
	case field == nil:
		return []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	return field
}

// catchSignals catches sigs until stop is called.
//
// The first signal calls initiate. Signals of either kind within samePress of
// it are ignored. If initiate has returned true, the next signal calls
// signal.Stop and then kill. A third signal therefore has its default effect, also
// while kill blocks: the process exits. If initiate has returned false, the next
// signal counts as a first one again.
//
// The callbacks run on goroutines of the catcher. A signal that arrives later
// than samePress while initiate has not returned calls kill as well, so that an
// application's callback that hangs does not prevent the kill.
//
// stop calls signal.Stop and ends the catcher. It does not wait for callbacks, so
// it may be called from inside one, concurrently and more than once. A callback
// that was due when stop was called may run after stop has returned.
//
// Several catchers in one process each get every signal. If a Group catches
// signals as well, initiate is called only when the Group's servers drain, so
// that a server that the Group does not know as one of this package goes on
// serving during the Group's ShutdownDelay.
//
// The first signal.Notify of a process starts a goroutine that never ends, so it
// must not be called inside a testing/synctest bubble.
func catchSignals(sigs []os.Signal, initiate func(os.Signal) bool, kill func(os.Signal)) (stop func()) {
	done := make(chan struct{})
	return catchSignalsUntil(done, sigs, func(sig os.Signal) bool {
		return awaitDelayers(done) && initiate(sig)
	}, kill)
}

// catchSignalsUntil is catchSignals without the wait for Groups. stop closes done.
func catchSignalsUntil(done chan struct{}, sigs []os.Signal, initiate func(os.Signal) bool, kill func(os.Signal)) (stop func()) {
	// Buffered for a second signal that comes with the first, since os/signal
	// drops signals that do not fit.
	c := make(chan os.Signal, 4)
	notify(c, sigs)
	go watchSignals(c, done, initiate, func(sig os.Signal) {
		signal.Stop(c)
		kill(sig)
	})
	return sync.OnceFunc(func() {
		signal.Stop(c)
		close(done)
	})
}

// delayers has a channel for each Group that catches signals and whose servers
// do not drain yet. It is closed when they do; no values are sent.
var (
	delayersMu sync.Mutex // guards delayers
	delayers   = make(map[chan struct{}]bool)
)

// delayCatchers makes the catchers of catchSignals wait until release is called, which
// may be called more than once.
func delayCatchers() (release func()) {
	c := make(chan struct{})
	delayersMu.Lock()
	defer delayersMu.Unlock()
	delayers[c] = true
	return sync.OnceFunc(func() {
		delayersMu.Lock()
		defer delayersMu.Unlock()
		delete(delayers, c)
		close(c)
	})
}

// awaitDelayers waits until every release of delayCatchers was called. It reports
// false if done is closed first.
func awaitDelayers(done <-chan struct{}) bool {
	for {
		var c chan struct{}
		delayersMu.Lock()
		for c = range delayers {
			break
		}
		delayersMu.Unlock()
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

// watchSignals applies the rules of catchSignals to the signals from c until done
// is closed or kill has been called.
//
//	waiting ──signal──▶ deciding ──true──▶ stopping ──signal──▶ kill
//	   ▲                 │    └─────────────signal──────────────▲
//	   └──────false──────┘
func watchSignals(c <-chan os.Signal, done <-chan struct{}, initiate func(os.Signal) bool, kill func(os.Signal)) {
	var (
		lastAt   time.Time // when the last signal came that was not ignored
		decision chan bool // receives initiate's result; nil unless it runs
		stopping bool      // initiate returned true
	)
	for {
		select {
		case <-done:
			return
		case stopping = <-decision:
			decision = nil
		case sig := <-c:
			if isClosed(done) { // select picks at random if both are ready
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
			// On a goroutine of its own, so that signals are received meanwhile. The
			// channel is buffered, so that the goroutine ends if watchSignals has.
			ch := make(chan bool, 1)
			decision = ch
			go func() { ch <- initiate(sig) }()
		}
	}
}
