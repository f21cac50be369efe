package graceful

import (
	"testing"
	"testing/synctest"
	"time"
)

// slowToTell is a protocol that makes time pass, and other connections change their
// states, while it is asked for a connection's requests.
type slowToTell struct {
	*anyProtocol
	ask func()
}

func (p slowToTell) requests(*conn) []requestLine {
	p.ask()
	return nil
}

// TestAgeNotNegative: the age of a connection whose state changes while the killed
// ones are being listed was negative, and "active for -6.5µs" was logged.
func TestAgeNotNegative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(drainRules{})
		go m.run()
		var conns []*conn
		for range 2 {
			_, c := track(m, newFakeConn(func() {}), nil, nil)
			m.added(c)
			c.setState(connActive)
			conns = append(conns, c)
		}
		var lc lifecycle
		lc.init(slowToTell{new(anyProtocol), func() {
			time.Sleep(time.Microsecond)
			for _, c := range conns {
				c.setState(connIdle)
				c.setState(connActive)
			}
		}})
		lc.killLeft(m)
		for _, k := range lc.report.Killed {
			if k.Age < 0 {
				t.Error(k)
			}
		}
		if n := len(lc.report.Killed); n != 2 {
			t.Errorf("%d were killed", n)
		}
	})
}

// TestLeftNotNegative: a tick may be handled when the time is over.
func TestLeftNotNegative(t *testing.T) {
	now := time.Now()
	drain := drainTimer{end: now.Add(-6500 * time.Nanosecond)}
	if got := drain.leftText(now); got != "0s left" {
		t.Errorf("drain: %q", got)
	}
	group := groupStep{g: new(Group), start: now.Add(-time.Second), leave: now.Add(-6500 * time.Nanosecond)}
	if got := group.leftText(); got != "0s left" {
		t.Errorf("group: %q", got)
	}
}

// TestKillEvent: queries, which may hold secrets, are not attributes, whether a
// connection has one request or several.
func TestKillEvent(t *testing.T) {
	lines := []requestLine{{"GET", "/a?secret", 0}, {"POST", "/b#c", 0}}
	attrs := killEvent(KilledConn{}, lines).attrs
	if got := attrs[len(attrs)-1].String(); got != "requests=[GET /a POST /b]" {
		t.Error(got)
	}
	attrs = killEvent(KilledConn{}, lines[:1]).attrs
	if got := attrs[len(attrs)-1].String(); got != "path=/a" {
		t.Error(got)
	}
}
