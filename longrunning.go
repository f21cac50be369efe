package graceful

import (
	"context"
	"sync"
	"time"
)

// longRunning counts the requests without an end, and lets them go at a pace
// when the server shuts down.
type longRunning struct {
	mu       sync.Mutex    // guards what follows
	draining chan struct{} // nil until needed; closed once drain was called
	drained  bool          // draining is closed
	hurry    chan struct{} // nil until the pace is set; closed when a Wait's context ended
	hurried  bool          // hurry is closed
	interval time.Duration // between two releases
	turn     time.Time     // the earliest time of the next release

	gauge
}

// add counts one more and returns the channel that tells it of a drain, or
// reports that there is one already.
func (l *longRunning) add() (draining <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	if l.drained {
		return l.draining, false
	}
	l.gauge.add(1)
	return l.draining, true
}

// told returns the channel that tells of a drain.
func (l *longRunning) told() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	return l.draining
}

// force counts one more even while draining.
func (l *longRunning) force() { l.gauge.add(1) }

func (l *longRunning) makeDrainingLocked() {
	if l.draining == nil {
		l.draining = make(chan struct{})
	}
}

func (l *longRunning) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeDrainingLocked()
	if !l.drained {
		l.drained = true
		close(l.draining)
	}
}

// setPaceLocked fixes, when first called, how far apart releases are.
func (l *longRunning) setPaceLocked(window time.Duration, rate float64) {
	if l.hurry != nil {
		return
	}
	l.hurry = make(chan struct{})
	if window == 0 {
		window = 5 * time.Second
	}
	if rate <= 0 {
		rate = 200
	}
	if n := l.count(); n > 0 && window > 0 {
		l.interval = min(window/time.Duration(n), time.Duration(float64(time.Second)/rate))
	}
	l.turn = time.Now()
}

// release counts one less; first, if its server is draining, it waits for
// its turn, unless the client has gone or the time is up.
func (l *longRunning) release(ctx context.Context, window time.Duration, rate float64) {
	defer l.gauge.add(-1)
	l.mu.Lock()
	draining := l.drained
	select {
	case <-Draining(ctx): // it may be the server's channel, not ours
		draining = true
	default:
	}
	if !draining || ctx.Err() != nil {
		l.mu.Unlock()
		return
	}
	l.setPaceLocked(window, rate)
	now := time.Now()
	if l.turn.Before(now) {
		// Turns that nobody took are lost. Were they kept, handlers that all
		// return late would all go at once.
		l.turn = now
	}
	wait := l.turn.Sub(now)
	l.turn = l.turn.Add(l.interval)
	hurry := l.hurry
	l.mu.Unlock()

	if wait == 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
	case <-ctx.Done():
	}
}

func (l *longRunning) wait(ctx context.Context, window time.Duration, rate float64) error {
	l.mu.Lock()
	l.setPaceLocked(window, rate)
	l.mu.Unlock()
	err := await(ctx, l.reached())
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.hurried {
			l.hurried = true
			close(l.hurry)
		}
	}
	return err
}
