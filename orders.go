package graceful

import (
	"context"
	"fmt"
	"time"
)

// ask begins the shutdown unless the protocol has something against it. It
// reports whether one is under way. A timeout that is not nil takes the place
// of the configured one.
//
// The protocol is asked once at a time: who asks meanwhile waits for the same
// answer. A signal that took it for granted would make the next one kill a
// server that goes on serving.
func (lc *lifecycle) ask(reason string, timeout *time.Duration) bool {
	lc.mu.Lock()
	if asking := lc.asking; asking != nil && lc.Phase() == PhaseServing {
		lc.mu.Unlock()
		select {
		case <-asking:
		case <-lc.draining: // by who doesn't ask
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
	lc.mu.Unlock()
	// A panic in the callback is the program's end or somebody's recover; the
	// latter finds a server that can be asked again.
	defer func() {
		lc.mu.Lock()
		lc.asking = nil
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
	lc.p.beginDelay() // who sees the phase finds everything in it
	lc.shutting.Store(true)
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
		if isStopping(lc.stopped) { // select picks at random
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
