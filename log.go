package graceful

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"time"
)

// A logSink is where a Server, Listener or Group logs: the first of its fields that
// is not nil.
type logSink struct {
	slog    *slog.Logger
	logFunc func(format string, args ...any)
	logger  *log.Logger
}

// log writes e. It blocks as long as the log does.
func (s logSink) log(e logEvent) {
	switch {
	case s.slog != nil:
		// Not by LogAttrs, which would take the time of writing and this file for the source.
		ctx, h := context.Background(), s.slog.Handler()
		if h.Enabled(ctx, e.level) {
			r := slog.NewRecord(e.time, e.level, e.message, 0)
			r.AddAttrs(e.attrs...)
			h.Handle(ctx, r)
		}
	case s.logFunc != nil:
		s.logFunc(e.format, e.args...)
	case s.logger != nil:
		s.logger.Printf(e.format, e.args...)
	}
}

// A logEvent is what is logged: a message that is always the same and attributes for
// slog, and a sentence for a log of text.
type logEvent struct {
	time    time.Time // of the event, which may be written later
	level   slog.Level
	message string
	attrs   []slog.Attr

	format string // the sentence
	args   []any
}

// event returns a logEvent whose sentence is the message.
func event(level slog.Level, message string, attrs ...slog.Attr) logEvent {
	return logEvent{time: time.Now(), level: level, message: message, attrs: attrs, format: "%s", args: []any{message}}
}

// sentence returns e with another sentence.
func (e logEvent) sentence(format string, args ...any) logEvent {
	e.format, e.args = format, args
	return e
}

// A shutdownLog writes the log of a shutdown, in order and on a goroutine of its own,
// so that a log that blocks does not delay the shutdown. If more than maxLogLines
// events wait to be written, further ones are dropped and counted.
type shutdownLog struct {
	write func(logEvent) // may block

	mu      sync.Mutex // guards what follows
	lines   []logEvent
	dropped int
	writing bool          // run is running
	idle    chan struct{} // closed when run returns; nil unless close waits
}

const (
	// maxLogLines is how many events may wait to be written.
	maxLogLines = 1000

	// logTimeout is how long the end of the shutdown waits for the log.
	logTimeout = 200 * time.Millisecond
)

// add queues an event. It does not block.
func (l *shutdownLog) add(e logEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) >= maxLogLines {
		l.dropped++
		return
	}
	l.lines = append(l.lines, e)
	if !l.writing {
		l.writing = true
		go l.run()
	}
}

// run writes events until none is left.
func (l *shutdownLog) run() {
	for {
		l.mu.Lock()
		if len(l.lines) == 0 {
			if n := l.dropped; n > 0 {
				l.dropped = 0
				l.lines = append(l.lines, event(slog.LevelWarn, "shutdown log dropped", slog.Int("records", n)).
					sentence("%d lines of the shutdown's log were dropped, because the log blocks", n))
			} else {
				l.writing = false
				if l.idle != nil {
					close(l.idle)
					l.idle = nil
				}
				l.mu.Unlock()
				return
			}
		}
		e := l.lines[0]
		l.lines = l.lines[1:]
		l.mu.Unlock()
		l.write(e)
	}
}

// close waits until every event is written, for logTimeout at most.
func (l *shutdownLog) close() {
	l.mu.Lock()
	if !l.writing {
		l.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	l.idle = idle
	l.mu.Unlock()
	t := time.NewTimer(logTimeout)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

// hookTimeout is how long the end of a shutdown waits for what surrounds it: OnReport,
// and a Process.
const hookTimeout = time.Second

// callReportHook calls hook with report, for hookTimeout at most. It does nothing if
// hook is nil.
func callReportHook[R any](hook func(R), report R) {
	if hook != nil {
		callBriefly(func() { hook(report) })
	}
}

// callBriefly calls f on a goroutine of its own, and waits until it has returned, for
// hookTimeout at most.
func callBriefly(f func()) {
	returned := make(chan struct{})
	go func() {
		defer close(returned) // deferred for functions that call runtime.Goexit
		f()
	}()
	t := time.NewTimer(hookTimeout)
	defer t.Stop()
	select {
	case <-returned:
	case <-t.C:
	}
}

// notNegative returns an error that names the field if value is negative.
func notNegative[T int | time.Duration](field string, value T) error {
	if value < 0 {
		return fmt.Errorf("graceful: %s is negative: %v", field, value)
	}
	return nil
}
