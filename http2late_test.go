package graceful

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A lateBubble is a layer without net/http behind it, in a bubble: it notes when
// the final GOAWAY is asked for.
type lateBubble struct {
	*http2Layer
	began time.Time
	mu    sync.Mutex // guards swept
	swept []time.Duration
}

const (
	lateGrace    = 100 * time.Millisecond
	latePatience = time.Second
)

func newLateBubble() *lateBubble {
	b := &lateBubble{began: time.Now()}
	user := new(http.Server)
	b.http2Layer = &http2Layer{
		cfg:  http2Config{grace: lateGrace, patience: latePatience},
		user: user, conns: make(map[*http2Conn]*http2Holder),
	}
	b.holder = newHTTP2Holder(b.http2Layer, new(http.Server))
	b.watch(b.holder, &b.swept)
	return b
}

// watch appends the times at which h asks to swept.
func (b *lateBubble) watch(h *http2Holder, swept *[]time.Duration) {
	h.srv.RegisterOnShutdown(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		*swept = append(*swept, time.Since(b.began))
	})
}

// come has a connection come and begin; its client acknowledges at once, or not.
func (b *lateBubble) come(ack bool) (*http2Conn, *tapConn) {
	tap := new(tapConn)
	c := newHTTP2Conn(tap)
	b.add(c)
	b.begin(c, tap, ack)
	return c, tap
}

func (b *lateBubble) begin(c *http2Conn, tap *tapConn, ack bool) {
	c.Write(frame(frameSettings, 0, 0))
	if ack {
		tap.incoming.Write(frame(framePing, flagAck, 0, []byte(pingData)...))
		c.Read(make([]byte, 100))
	}
}

// compare looks a minute later when the final GOAWAY was asked for.
func (b *lateBubble) compare(t *testing.T, what string, swept *[]time.Duration, want ...time.Duration) {
	t.Helper()
	time.Sleep(time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	if diff := cmp.Diff(want, *swept); diff != "" {
		t.Errorf("%s: the final GOAWAY is asked for at (-want +got):\n%s", what, diff)
	}
}

// expect is compare, and the end: all connections have to know of it.
func (b *lateBubble) expect(t *testing.T, what string, swept *[]time.Duration, want ...time.Duration) {
	t.Helper()
	b.compare(t, what, swept, want...)
	for c := range b.conns {
		c.mu.Lock()
		if !c.finishing {
			t.Errorf("%s: a connection does not know that it is at its end", what)
		}
		c.mu.Unlock()
		c.stop()
	}
}

// TestHTTP2Late has connections come at every stage of a drain, and looks when
// the final GOAWAY is asked for on their behalf. Each case is the only one that
// fails when what it tests is taken away.
func TestHTTP2Late(t *testing.T) {
	const ms = time.Millisecond
	story := func(name string, f func(t *testing.T, b *lateBubble)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, newLateBubble()) })
		})
	}
	story("after the first GOAWAY: told behind its SETTINGS, and waited for", func(t *testing.T, b *lateBubble) {
		b.announce()
		time.Sleep(300 * ms)
		_, tap := b.come(false)
		if diff := cmp.Diff(concat(frame(frameSettings, 0, 0), announcement), tap.out.Bytes()); diff != "" {
			t.Error(diff)
		}
		b.finish()
		b.expect(t, "a deaf client", &b.swept, 300*ms+latePatience)
	})
	story("begun late: the grace counts from there", func(t *testing.T, b *lateBubble) {
		tap := new(tapConn)
		c := newHTTP2Conn(tap)
		b.add(c)
		b.finish()
		time.Sleep(300 * ms)
		b.begin(c, tap, true)
		b.expect(t, "300 ms late", &b.swept, 300*ms+lateGrace)
	})
	story("begun after the sweep: swept again", func(t *testing.T, b *lateBubble) {
		tap := new(tapConn)
		c := newHTTP2Conn(tap)
		b.add(c)
		b.finish()
		time.Sleep(5 * time.Second)
		b.begin(c, tap, true)
		b.expect(t, "5 s late", &b.swept, latePatience, 5*time.Second+lateGrace)
	})
	story("begun as the timer fires: not swept before its time", func(t *testing.T, b *lateBubble) {
		b.announce()
		b.come(true)
		b.finish()
		time.Sleep(lateGrace / 2)
		b.holder.sweep() // a timer that was too late to be stopped
		b.expect(t, "swept too soon", &b.swept, lateGrace)
	})
	story("gone before it has acknowledged: no longer waited for", func(t *testing.T, b *lateBubble) {
		b.announce()
		b.come(true)
		deaf, _ := b.come(false)
		b.finish()
		time.Sleep(lateGrace + 200*ms)
		b.remove(deaf)
		b.expect(t, "a deaf client leaves", &b.swept, lateGrace+200*ms)
	})
	story("after the final GOAWAY: each on its own", func(t *testing.T, b *lateBubble) {
		b.finish()
		time.Sleep(5 * time.Second)
		var deaf, quick []time.Duration
		c, _ := b.come(false)
		b.watch(b.conns[c], &deaf)
		c, _ = b.come(true)
		b.watch(b.conns[c], &quick)
		b.compare(t, "the quick one does not wait for the deaf", &quick, 5*time.Second+lateGrace)
		b.expect(t, "the deaf", &deaf, 5*time.Second+latePatience)
	})
}
