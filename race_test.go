//go:build race

package graceful_test

// Under the race detector, which makes everything some ten times slower, the
// number of stops and clients is smaller.
const raceDetector = true
