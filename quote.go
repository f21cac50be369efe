package graceful

import "strconv"

// maxQuoted is how many bytes of a text that a client has chosen a log line
// holds at most, quotes and escapes not counted.
const maxQuoted = 256

// quote returns s as a Go string literal, for log lines: a client that chooses
// s can neither begin a line of its own nor send control characters to a
// terminal. What is longer than maxQuoted bytes is cut, and three dots follow
// the closing quote.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	return strconv.Quote(s[:maxQuoted]) + "..."
}
