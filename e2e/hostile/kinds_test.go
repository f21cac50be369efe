//go:build unix

package hostile

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

// A kind is a kind of hostile client.
type kind struct {
	name string

	// attack is what the n-th client does with a new connection. It returns when
	// it is done with it or ctx has ended, upon which nc is closed. The client then
	// connects again.
	attack func(ctx context.Context, nc net.Conn, n int)

	// tls: the connection is to the TLS listener. attack begins below TLS.
	tls bool

	// rule is how much longer this library may take to stop than net/http.
	rule rule
}

// A rule is how long the library's documentation says that it waits where
// net/http closes at once.
type rule struct {
	wait time.Duration
	why  string
}

var (
	// Half a request is read to its end, for 5 s at most (receivingLimit). net/http
	// does that on new connections, and drops the second request of a connection.
	halfRequest = rule{timeout, "half a request is waited for"}

	// A client that acknowledges nothing is cut 2 s after the first GOAWAY.
	twoGoAways = rule{2*time.Second + grace, "the client has not acknowledged the GOAWAY"}
)

const http1Header = "GET /ok HTTP/1.1\r\nHost: h\r\n"

var kinds = []kind{
	{name: "silence", attack: func(ctx context.Context, nc net.Conn, n int) { <-ctx.Done() }},
	{name: "half a header, silence", attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, "GET /ok HT")
		<-ctx.Done()
	}},
	{name: "slow header", attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, http1Header)
		for every(ctx, 20*time.Millisecond) && say(nc, "X: y\r\n") {
		}
	}},
	{name: "slow body", attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, "POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
		for every(ctx, 20*time.Millisecond) && say(nc, "x") {
		}
	}},
	{name: "deaf reader", attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, "GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
		<-ctx.Done()
	}},
	{name: "deaf reader, TLS", tls: true, attack: func(ctx context.Context, nc net.Conn, n int) {
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
		io.WriteString(tc, "GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
		<-ctx.Done()
	}},
	{name: "half a TLS handshake", tls: true, attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
		<-ctx.Done()
	}},
	{name: "pipelining, deaf", attack: func(ctx context.Context, nc net.Conn, n int) {
		for say(nc, strings.Repeat(http1Header+"\r\n", 20)) && every(ctx, 20*time.Millisecond) {
		}
	}, rule: halfRequest},
	{name: "reset", attack: func(ctx context.Context, nc net.Conn, n int) {
		io.WriteString(nc, [...]string{
			"",
			"GET /ok HT",
			"POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhalf",
			"GET /large HTTP/1.1\r\nHost: h\r\n\r\n",
		}[n%4])
		every(ctx, 20*time.Millisecond)
		nc.(*net.TCPConn).SetLinger(0)
	}},
	{name: "garbage", attack: func(ctx context.Context, nc net.Conn, n int) {
		p := make([]byte, 4096)
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		nc.Write(p)
		io.Copy(io.Discard, nc)
	}},
	{name: "header of 1 MB", attack: func(ctx context.Context, nc net.Conn, n int) {
		size := 1_000_000 // is served
		if n%2 == 1 {
			size = 2_000_000 // is refused
		}
		go io.Copy(io.Discard, nc)
		for say(nc, http1Header+"X: "+strings.Repeat("x", size)+"\r\n\r\n") && every(ctx, 200*time.Millisecond) {
		}
	}, rule: halfRequest},
	http2Kind("half a frame, silence", func(ctx context.Context, nc net.Conn, n int) {
		say(nc, string(request(1, "/ok", endStream|endHeaders)[:5]))
		<-ctx.Done()
	}),
	http2Kind("half a header block, silence", func(ctx context.Context, nc net.Conn, n int) {
		nc.Write(request(1, "/ok", endStream))
		<-ctx.Done()
	}),
	http2Kind("slow body, HTTP/2", func(ctx context.Context, nc net.Conn, n int) {
		go io.Copy(io.Discard, nc)
		nc.Write(request(1, "/ok", endHeaders))
		for every(ctx, 20*time.Millisecond) && say(nc, string(frame(frameData, 0, 1, []byte("x")))) {
		}
	}),
	http2Kind("rapid reset", func(ctx context.Context, nc net.Conn, n int) {
		go io.Copy(io.Discard, nc)
		for id := uint32(1); ; {
			var p []byte
			for range 10 {
				p = append(p, request(id, "/ok", endStream|endHeaders)...)
				p = append(p, frame(frameReset, 0, id, []byte{0, 0, 0, 8})...)
				id += 2
			}
			if !say(nc, string(p)) || !every(ctx, 20*time.Millisecond) {
				return
			}
		}
	}),
	http2Kind("CONTINUATION flood", func(ctx context.Context, nc net.Conn, n int) {
		go io.Copy(io.Discard, nc)
		nc.Write(request(1, "/ok", 0))
		var field []byte // of none, or of a kilobyte
		if n%2 == 1 {
			field = append([]byte("\x00\x01x\x7f\xe9\x06"), strings.Repeat("x", 0x7f+0x69+6<<7)...)
		}
		flood(ctx, nc, frame(frameContinuation, 0, 1, field))
	}),
	http2Kind("SETTINGS flood", func(ctx context.Context, nc net.Conn, n int) {
		if n%2 == 1 {
			go io.Copy(io.Discard, nc)
		}
		flood(ctx, nc, frame(frameSettings, 0, 0, nil))
	}),
	http2Kind("PING flood", func(ctx context.Context, nc net.Conn, n int) {
		if n%2 == 1 {
			go io.Copy(io.Discard, nc)
		}
		flood(ctx, nc, frame(framePing, 0, 0, make([]byte, 8)))
	}),
	http2Kind("flood of frames without use", func(ctx context.Context, nc net.Conn, n int) {
		go io.Copy(io.Discard, nc)
		nc.Write(request(1, "/ok", endHeaders))
		flood(ctx, nc, [][]byte{
			frame(frameData, 0, 1, nil),
			frame(framePriority, 0, 3, []byte{0, 0, 0, 0, 7}),
			frame(frameWindow, 0, 0, []byte{0, 0, 0, 1}),
			frame(99, 0, 0, []byte("unknown")),
		}[n%4])
	}),
	http2Kind("windows that stay closed", func(ctx context.Context, nc net.Conn, n int) {
		go io.Copy(io.Discard, nc)
		nc.Write(frame(frameSettings, 0, 0, []byte{0, 4, 0, 0, 0, 0})) // INITIAL_WINDOW_SIZE
		for id := uint32(1); id < 200; id += 2 {
			nc.Write(request(id, "/large", endStream|endHeaders))
		}
		<-ctx.Done()
	}),
	http2Kind("deaf reader, HTTP/2", func(ctx context.Context, nc net.Conn, n int) {
		nc.Write(frame(frameSettings, 0, 0, []byte{0, 4, 0x7f, 0xff, 0xff, 0xff}))
		nc.Write(frame(frameWindow, 0, 0, []byte{0x7f, 0, 0, 0}))
		for id := uint32(1); id < 20; id += 2 {
			nc.Write(request(id, "/large", endStream|endHeaders))
		}
		<-ctx.Done()
	}),
}

// http2Kind returns a kind whose attack begins after HTTP/2's preface, in the
// clear.
func http2Kind(name string, attack func(context.Context, net.Conn, int)) kind {
	return kind{name: name, attack: func(ctx context.Context, nc net.Conn, n int) {
		if say(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+string(frame(frameSettings, 0, 0, nil))) {
			attack(ctx, nc, n)
		}
	}, rule: twoGoAways}
}

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0
	frameHeaders      = 1
	framePriority     = 2
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameWindow       = 8
	frameContinuation = 9

	endStream  = 1
	endHeaders = 4
)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	p = binary.BigEndian.AppendUint32(append(p, flags), stream)
	return append(p, payload...)
}

// request returns a HEADERS frame with all of a request: POST, http, path, h.
func request(stream uint32, path string, flags byte) []byte {
	block := append([]byte{0x83, 0x86, 0x04, byte(len(path))}, path...)
	return frame(frameHeaders, flags, stream, append(block, 0x41, 1, 'h'))
}

// flood writes frames until ctx ends or the server closes the connection: 2,500 in
// a second. It is not the limit of the machine that is to be found.
func flood(ctx context.Context, nc net.Conn, frame []byte) {
	p := strings.Repeat(string(frame), 50)
	for say(nc, p) && every(ctx, 20*time.Millisecond) {
	}
}

// say reports whether text could be written.
func say(nc net.Conn, text string) bool {
	_, err := io.WriteString(nc, text)
	return err == nil
}

// every waits for d and reports whether ctx has not ended.
func every(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// besiege attacks addr with n clients until ctx ends. The clients have closed
// their connections when wait returns.
func (k kind) besiege(ctx context.Context, addr string, n int) (wait func()) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for ok := true; ok; ok = every(ctx, 10*time.Millisecond) {
				nc, err := net.DialTimeout("tcp", addr, time.Second)
				if err != nil {
					continue // the server has stopped
				}
				nc.(*net.TCPConn).SetReadBuffer(4 << 10)
				free := context.AfterFunc(ctx, func() { nc.Close() })
				k.attack(ctx, nc, i)
				free()
				nc.Close()
			}
		})
	}
	return wg.Wait
}
