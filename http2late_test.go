package graceful

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A clocked is a connection that notes when it is closed.
type clocked struct {
	net.Conn
	since  time.Time
	mu     sync.Mutex // guards closed
	closed time.Duration
}

func clock(nc net.Conn) *clocked { return &clocked{Conn: nc, since: time.Now()} }

func (c *clocked) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == 0 {
		c.closed = time.Since(c.since)
	}
	return c.Conn.Close()
}

// closedAt returns how long it was open; 0 means that it still is.
func (c *clocked) closedAt() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// TestHTTP2Linger: a peer that does not read keeps net/http from writing its
// final GOAWAY, and so from closing. A connection without a stream is closed
// http2Linger after it should have gone, to the nanosecond; one with a stream
// is not.
func TestHTTP2Linger(t *testing.T) {
	request := frame(frameHeaders, flagEndStream|flagEndHeaders, 1)
	reset := frame(frameRSTStream, 0, 1, 0, 0, 0, 8)
	for name, tt := range map[string]struct {
		play func(read func([]byte), c *http2Conn)
		want time.Duration
	}{
		"without a stream": {func(_ func([]byte), c *http2Conn) {
			c.finish()
		}, http2Linger},
		"from the end of the last stream on": {func(read func([]byte), c *http2Conn) {
			read(request)
			c.finish()
			time.Sleep(5 * time.Second)
			read(reset)
		}, 5*time.Second + http2Linger},
		"a stream that crosses the GOAWAY stops the clock": {func(read func([]byte), c *http2Conn) {
			c.finish()
			time.Sleep(http2Linger - 1)
			read(request)
			time.Sleep(3 * time.Second)
			read(reset)
		}, http2Linger - 1 + 3*time.Second + http2Linger},
		"never with a stream": {func(read func([]byte), c *http2Conn) {
			read(request)
			c.finish()
		}, 0},
		"never before the final GOAWAY is asked for": {func(_ func([]byte), c *http2Conn) {
			c.announce()
		}, 0},
		"never once net/http has left it": {func(_ func([]byte), c *http2Conn) {
			c.finish()
			c.stop()
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tap := new(tapConn)
				nc := clock(tap)
				c := newHTTP2Conn(nc)
				c.Write(frame(frameSettings, 0, 0))
				tt.play(func(b []byte) {
					tap.incoming.Write(b)
					c.Read(make([]byte, len(b)))
				}, c)
				time.Sleep(time.Minute)
				if got := nc.closedAt(); got != tt.want {
					t.Errorf("closed after %v, want %v", got, tt.want)
				}
				c.stop()
			})
		})
	}
}

// TestHTTP2LingerOverTLS: a *tls.Conn tries for 5 s to write an alert to a peer
// that does not read.
func TestHTTP2LingerOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer, server := net.Pipe()
		nc := clock(server)
		tc := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{testCert}, SessionTicketsDisabled: true})
		done := make(chan error, 1)
		go func() { done <- tls.Client(peer, testTLS).Handshake() }()
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c := newHTTP2Conn(tc)
		c.finish()
		time.Sleep(time.Minute)
		if got := nc.closedAt(); got != http2Linger {
			t.Errorf("closed after %v, want %v", got, http2Linger)
		}
		peer.Close()
	})
}

// TestHTTP2EndsBetweenFrames: the last stream may end by the client's doing while
// a frame is half written. Our side is not closed before the rest of it is out.
func TestHTTP2EndsBetweenFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tap := new(tapConn)
		c := newHTTP2Conn(tap)
		c.Write(frame(frameSettings, 0, 0))
		tap.incoming.Write(concat(frame(frameHeaders, flagEndHeaders, 1), frame(frameRSTStream, 0, 1, 0, 0, 0, 8)))
		c.Read(make([]byte, 9))
		c.finish()
		c.Write(goAway(1, 0))
		ping := frame(framePing, flagAck, 0, make([]byte, 8)...)
		c.Write(ping[:10])
		c.Read(make([]byte, 13))
		synctest.Wait()
		if n := c.streamCount(); n != 0 || tap.eof {
			t.Fatalf("%d streams; closed within a frame: %v", n, tap.eof)
		}
		c.Write(ping[10:])
		synctest.Wait()
		if !tap.eof {
			t.Error("not closed behind the frame")
		}
		c.stop()
	})
}

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

// expect compares, a minute later.
func (b *lateBubble) expect(t *testing.T, what string, swept *[]time.Duration, want ...time.Duration) {
	t.Helper()
	time.Sleep(time.Minute)
	b.mu.Lock()
	defer b.mu.Unlock()
	if diff := cmp.Diff(want, *swept); diff != "" {
		t.Errorf("%s: the final GOAWAY is asked for at (-want +got):\n%s", what, diff)
	}
	for c := range b.conns {
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
		b.expect(t, "the quick one does not wait for the deaf", &quick, 5*time.Second+lateGrace)
		b.expect(t, "the deaf", &deaf, 5*time.Second+latePatience)
	})
}
