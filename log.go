package graceful

import (
	"fmt"
	"log"
	"sync"
	"time"
)

// logTo logs with logFunc, or with logger if logFunc is nil. If both are nil it does
// nothing.
func logTo(logFunc func(format string, args ...any), logger *log.Logger, format string, args ...any) {
	switch {
	case logFunc != nil:
		logFunc(format, args...)
	case logger != nil:
		logger.Printf(format, args...)
	}
}

// A shutdownLog writes the log lines of a shutdown, in order and on a goroutine of
// its own, so that a log that blocks does not delay the shutdown. If more than
// maxLogLines wait to be written, further lines are dropped and counted.
type shutdownLog struct {
	write func(format string, args ...any) // may block

	mu      sync.Mutex // guards what follows
	lines   []logLine
	dropped int
	writing bool          // run is running
	idle    chan struct{} // closed when run returns; nil unless close waits
}

type logLine struct {
	format string
	args   []any
}

const (
	// maxLogLines is how many lines may wait to be written.
	maxLogLines = 1000

	// logTimeout is how long the end of the shutdown waits for the log.
	logTimeout = 200 * time.Millisecond
)

// printf queues a line. It does not block.
func (l *shutdownLog) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) >= maxLogLines {
		l.dropped++
		return
	}
	l.lines = append(l.lines, logLine{format, args})
	if !l.writing {
		l.writing = true
		go l.run()
	}
}

// run writes lines until none is left.
func (l *shutdownLog) run() {
	for {
		l.mu.Lock()
		if len(l.lines) == 0 {
			if n := l.dropped; n > 0 {
				l.dropped = 0
				l.lines = append(l.lines, logLine{"%d lines of the shutdown's log were dropped, because the log blocks", []any{n}})
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
		line := l.lines[0]
		l.lines = l.lines[1:]
		l.mu.Unlock()
		l.write(line.format, line.args...)
	}
}

// close waits until every line is written, for logTimeout at most.
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

// notNegative returns an error that names the field if value is negative.
func notNegative[T int | time.Duration](field string, value T) error {
	if value < 0 {
		return fmt.Errorf("graceful: %s is negative: %v", field, value)
	}
	return nil
}
