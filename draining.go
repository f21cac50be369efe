package graceful

import "context"

// drainingKey is the context key under which a server keeps the channel that
// Draining hands out.
type drainingKey struct{}

// Draining returns the channel that is closed once the server that ctx came
// from has begun to shut down: at the first moment of it, ShutdownDelay
// included. A handler with a long answer (server-sent events, a long poll)
// selects on it and ends early.
//
// For a context that no server of this package made it returns nil, which
// blocks for ever in a select: a handler written for graceful works elsewhere
// too.
func Draining(ctx context.Context) <-chan struct{} {
	ch, _ := ctx.Value(drainingKey{}).(<-chan struct{})
	return ch
}
