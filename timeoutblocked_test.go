package graceful_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// The timeout filter of the Kubernetes apiserver waits here: net/http, before
// it answers, for the handler's Read, and that for a client that sends
// nothing.
func TestRequestTimeoutBlockedRead(t *testing.T) {
	for name, read := range map[string]func(r *http.Request) error{
		"reading":    func(r *http.Request) error { _, err := io.ReadAll(r.Body); return err },
		"closing":    func(r *http.Request) error { return r.Body.Close() },
		"notReading": func(r *http.Request) error { time.Sleep(limit + 1); return http.ErrHandlerTimeout },
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				if name == "closing" && b.http2 {
					b.Skip("over HTTP/2 closing does not block")
				}
				over := make(chan error, 1)
				b.serve(within(func(w http.ResponseWriter, r *http.Request) {
					over <- read(r)
					// Now it may be another request's.
					if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err == nil {
						b.Errorf("Read: %d, %v", n, err)
					}
				}))
				body, silent := io.Pipe()
				defer silent.Close()
				go io.WriteString(silent, "a part")
				resp := b.do(b.request("POST", "/", body))
				b.elapsed(limit)
				if got := b.body(resp); resp.StatusCode != 504 {
					b.Errorf("%s %q", resp.Status, got)
				}
				if err := <-over; err != http.ErrHandlerTimeout {
					b.Error(err)
				}
			})
		})
	}
}

// The same when the response has begun: net/http reads the request, unless
// told not to, before the first byte of the response, and again before it
// closes the connection.
func TestRequestTimeoutBlockedReadAborts(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter){
		"HalfDuplex": func(w http.ResponseWriter) {},
		"FullDuplex": func(w http.ResponseWriter) { http.NewResponseController(w).EnableFullDuplex() },
	} {
		t.Run(name, func(t *testing.T) {
			withBench(t, false, func(b *bench) {
				b.serve(within(func(w http.ResponseWriter, r *http.Request) {
					begin(w)
					io.WriteString(w, "half")
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					time.Sleep(time.Nanosecond)
				}))
				conn := b.dial()
				io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\na part")
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err == nil {
					_, err = io.ReadAll(resp.Body)
				}
				if err == nil {
					b.Error("no error")
				}
				b.elapsed(limit)
			})
		})
	}
}

// A connection whose request was not read to its end is not used again, and
// the rest of the request is read for half a second, but no longer.
func TestRequestTimeoutLingers(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); time.Sleep(time.Nanosecond) }))
		conn := b.dial()
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.elapsed(limit)
		if resp.StatusCode != 504 || !resp.Close {
			b.Error(resp.Status, resp.Header)
		}
		io.Copy(io.Discard, resp.Body)
		time.Sleep(400 * time.Millisecond)
		if _, err := io.WriteString(conn, "more"); err != nil {
			b.Error(err)
		}
		if _, err := br.ReadByte(); err != io.EOF {
			b.Error(err)
		}
		// net/http's own delay before it closes may come on top (Go 1.27).
		if d := time.Since(b.start) - limit; d < 500*time.Millisecond || d > time.Second {
			b.Errorf("closed %v after the answer", d)
		}
	})
}

// There the handler's Write holds the lock that the timeout needs.
func TestRequestTimeoutBlockedWrite(t *testing.T) {
	for name, write := range map[string]func(w http.ResponseWriter) error{
		"Write": func(w http.ResponseWriter) error {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		},
		"Flush": func(w http.ResponseWriter) error {
			for {
				w.Write(make([]byte, 64<<10))
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			}
		},
		"Copy": func(w http.ResponseWriter) error {
			_, err := io.Copy(w, zeros{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				over, handlerOver := make(chan any, 1), make(chan error, 1)
				h := within(func(w http.ResponseWriter, r *http.Request) { handlerOver <- write(w) })
				b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { v := recover(); over <- v; panic(v) }()
					h.ServeHTTP(w, r)
				}))
				b.getUnread()
				if v := <-over; v != http.ErrAbortHandler {
					b.Errorf("panic %v", v)
				}
				if err := <-handlerOver; err != http.ErrHandlerTimeout {
					b.Errorf("the write returned %v", err)
				}
				b.elapsed(limit)
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A connection that nobody reads at all cannot be freed stream by stream; the
// timeout waits for the handler a second, and no longer.
func TestRequestTimeoutBlockedConnection(t *testing.T) {
	withBench(t, true, func(b *bench) {
		over := make(chan struct{})
		h := within(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, zeros{}) })
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(over)
			h.ServeHTTP(w, r)
		}))
		stop := make(chan struct{})
		defer close(stop)
		tr := b.client.Transport.(*http.Transport)
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
			conn, err := b.l.dial()
			return &deafConn{Conn: conn, stop: stop}, err
		}
		go func() {
			if resp, err := b.client.Do(b.request("GET", "/", nil)); err == nil {
				<-stop
				resp.Body.Close()
			}
		}()
		<-over
		b.elapsed(limit + time.Second)
	})
}

// A deafConn reads the first frames, for the connection to be set up, and
// then nothing more.
type deafConn struct {
	net.Conn
	n    int
	stop chan struct{}
}

func (c *deafConn) Read(p []byte) (int, error) {
	if c.n > 100 {
		<-c.stop
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	c.n += n
	return n, err
}
