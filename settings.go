package graceful

import (
	"fmt"
	"log"
	"time"
)

// notNegative returns an error that names the field if value is negative.
func notNegative[T int | time.Duration](field string, value T) error {
	if value < 0 {
		return fmt.Errorf("graceful: %s is negative: %v", field, value)
	}
	return nil
}

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
