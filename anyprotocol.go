package graceful

import (
	"context"
	"net"
	"time"
)

// anyProtocol is a Listener as its lifecycle sees it.
type anyProtocol Listener

func (p *anyProtocol) config() lifeConfig {
	cfg := lifeConfig{
		delay:   p.ShutdownDelay,
		timeout: p.Timeout,
		rules:   drainRules{grace: graceOf(p.IdleGrace), patience: p.Patience},
	}
	switch {
	case p.Patience == 0:
		cfg.rules.patience = 4 * cfg.rules.grace
	case p.Patience < 0:
		cfg.rules.patience = 0
	}
	return cfg
}

func (p *anyProtocol) logf(format string, args ...any) {
	logTo(p.LogFunc, p.Logger, format, args...)
}

func (p *anyProtocol) beforeShutdown() bool  { return true }
func (p *anyProtocol) beginDelay()           {}
func (p *anyProtocol) beginKill()            {}
func (p *anyProtocol) finish(int) string     { return "" }
func (p *anyProtocol) requests(any) []string { return nil }
func (p *anyProtocol) streams() int          { return 0 }

// finishRequests says farewell to the connections that are idle, before the
// manager ends those that have been so for long. Those that are not in its
// list yet have not been read, and will find the phase when they are.
func (p *anyProtocol) finishRequests(context.Context) <-chan struct{} {
	if p.OnDrain == nil {
		return nil
	}
	for _, c := range p.life.openConns() {
		c.turns.part(c)
	}
	return nil
}

func (p *anyProtocol) beginDrain() {
	if l := (*Listener)(p); l.tl != nil {
		go l.watchAccept()
	}
}

// watchAccept closes the listener when nobody accepts from it any more. A
// server that does one thing at a time comes back to Accept when it has done
// with a connection; one that does not come back must not keep the shutdown
// from ending.
func (l *Listener) watchAccept() {
	tick := time.NewTicker(max(graceOf(l.IdleGrace)/2, 10*time.Millisecond))
	defer tick.Stop()
	seen, idle := l.calls.Load(), false
	for {
		select {
		case <-tick.C:
		case <-l.tl.closed:
			return
		case <-l.life.stopped:
			return
		}
		// Once is not enough: it may be on its way from a connection that
		// has just ended to Accept.
		calls, was := l.calls.Load(), idle
		idle = calls == seen && l.accepting.Load() == 0 && l.life.stats().Open() == 0
		if idle && was {
			l.life.release(l.tl)
			return
		}
		seen = calls
	}
}

// A farewellConn is what OnDrain gets: it writes past the turns, since what it
// writes is no answer.
type farewellConn struct {
	net.Conn
	c *conn
}

func (f farewellConn) Write(p []byte) (int, error) { return f.c.raw.Write(p) }

// NetConn lets Busy find the connection.
func (f farewellConn) NetConn() net.Conn { return f.Conn }
