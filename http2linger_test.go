package graceful

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
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
		"a stream that crosses the GOAWAY sets the clock back": {func(read func([]byte), c *http2Conn) {
			c.finish()
			time.Sleep(http2Linger - 2)
			read(request)
			time.Sleep(time.Nanosecond)
			read(reset)
		}, http2Linger - 1 + http2Linger},
		"and one that lasts stops it": {func(read func([]byte), c *http2Conn) {
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
		"nor by a timer that was too late to be stopped": {func(read func([]byte), c *http2Conn) {
			read(request)
			c.finish()
			time.Sleep(time.Second) // closed at 0 would look like open
			c.abandon()
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
