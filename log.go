package graceful

import (
	"fmt"
	"log"
	"sync"
	"time"
)

// logTo writes to what fields LogFunc and Logger say: to the first of them that
// is not nil, or nowhere.
func logTo(logFunc func(format string, args ...any), logger *log.Logger, format string, args ...any) {
	switch {
	case logFunc != nil:
		logFunc(format, args...)
	case logger != nil:
		logger.Printf(format, args...)
	}
}

// A shutdownLog writes the lines of a shutdown, in their order and on a goroutine
// of its own: a log that blocks holds up neither the shutdown nor its end. Lines
// that can't be written in time are dropped, and counted.
type shutdownLog struct {
	write func(format string, args ...any) // may block

	mu      sync.Mutex // guards what follows
	lines   []logLine
	dropped int
	writing bool          // the goroutine runs
	idle    chan struct{} // closed when it ends; nil unless that is awaited
}

type logLine struct {
	format string
	args   []any
}

const (
	// maxLogLines is how many lines may wait to be written.
	maxLogLines = 1000

	// logPatience is how long the end of the shutdown waits for the log.
	logPatience = 200 * time.Millisecond
)

// printf hands a line over. It does not block.
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

// run writes until no line is left.
func (l *shutdownLog) run() {
	for {
		l.mu.Lock()
		if len(l.lines) == 0 {
			if n := l.dropped; n > 0 {
				l.dropped = 0
				l.lines = append(l.lines, logLine{"%d lines were dropped: the log did not keep up", []any{n}})
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

// close waits until every line is written, for as long as logPatience.
func (l *shutdownLog) close() {
	l.mu.Lock()
	if !l.writing {
		l.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	l.idle = idle
	l.mu.Unlock()
	t := time.NewTimer(logPatience)
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
