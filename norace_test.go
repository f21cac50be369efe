//go:build !race

package graceful_test

const raceDetector = false
