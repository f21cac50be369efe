package graceful

import "strconv"

// maxQuoted is how many bytes of a text from a client a log line contains at most,
// without quotes and escapes.
const maxQuoted = 256

// quote returns s as a Go string literal, so that a client that chooses s cannot
// begin a new log line or send control characters to a terminal. A text longer
// than maxQuoted bytes is cut off, and three dots follow the closing quote.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	return strconv.Quote(s[:maxQuoted]) + "..."
}
