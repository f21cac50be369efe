package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

// What an access log, a trace or a recovery around RequestTimeout reads of a
// request whose handler still runs is not what that handler writes. It was, and
// the process could die of "concurrent map read and map write"; the race
// detector watches.
func TestRequestTimeoutOuterReadsWhileHandlerWrites(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		stop := make(chan struct{})
		var running sync.WaitGroup
		running.Add(1)
		h := within(func(w http.ResponseWriter, r *http.Request) {
			defer running.Done()
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				v := fmt.Sprint(i)
				r.Header.Set("Mine", v)
				r.Header["Accept"][0] = v
				r.Header.Del("Authorization")
				r.Trailer.Set("Sum", v)
				r.URL.Path, r.URL.RawQuery = v, v
				r.Form.Set("a", v)
				r.PostForm.Set("a", v)
				r.TransferEncoding = append(r.TransferEncoding, v)
				r.SetPathValue("name", v)
				r.SetPathValue("other", v)
				r.Method, r.Host, r.RequestURI, r.RemoteAddr, r.Pattern = v, v, v, v, v
				w.Header().Set("Mine", v)
				time.Sleep(time.Nanosecond)
			}
		})
		mux := http.NewServeMux()
		mux.HandleFunc("/{name}", func(w http.ResponseWriter, r *http.Request) {
			r.ParseForm()
			r.SetPathValue("other", "outer")
			r.Trailer = http.Header{"Sum": nil}
			r.TransferEncoding = append(make([]string, 0, 8), "chunked")
			shallow := *r
			h.ServeHTTP(w, r)
			for range 100 {
				for _, r := range []*http.Request{r, &shallow} {
					got := []string{r.Header.Get("Authorization"), r.Header.Get("Accept"), r.Header.Get("Mine"), r.Trailer.Get("Sum"),
						r.URL.String(), r.Form.Encode(), r.PostForm.Encode(), fmt.Sprint(r.TransferEncoding),
						r.PathValue("name"), r.PathValue("other"), r.Method, r.Pattern}
					want := []string{"me", "application/json", "", "", "/x?a=b", "a=b", "", "[chunked]", "x", "outer", "PUT", "/{name}"}
					if diff := cmp.Diff(want, got); diff != "" {
						b.Error(diff)
					}
				}
				time.Sleep(time.Nanosecond)
			}
		})
		b.serve(mux)
		resp := b.do(b.request("PUT", "/x?a=b", strings.NewReader("body"), "Authorization", "me", "Accept", "application/json"))
		if got := b.body(resp); resp.StatusCode != 504 || !strings.HasPrefix(got, "{") {
			b.Errorf("%s %q", resp.Status, got)
		}
		close(stop)
		running.Wait()
	})
}

// A client that is sending at full speed when the deadline passes gets its 504
// all the same. Over HTTP/1 it used to be reset before it could read it, more
// often than not; http.TimeoutHandler's is not, for there the handler goes on
// reading.
func TestRequestTimeoutUpload(t *testing.T) {
	h := (&graceful.RequestTimeout{Max: 30 * time.Millisecond}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	}))
	for _, http2 := range []bool{false, true} {
		for _, sized := range []bool{false, true} {
			t.Run(fmt.Sprintf("HTTP/2 %v, sized %v", http2, sized), func(t *testing.T) {
				var protocols http.Protocols
				protocols.SetHTTP1(!http2)
				protocols.SetUnencryptedHTTP2(http2)
				srv := httptest.NewUnstartedServer(h)
				srv.Config.Protocols = &protocols
				srv.Start()
				defer srv.Close()
				tr := &http.Transport{Protocols: &protocols}
				defer tr.CloseIdleConnections()
				for range 10 {
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					body := &untilDone{ctx}
					req, _ := http.NewRequest("POST", srv.URL, body)
					if sized {
						req.ContentLength = 1 << 40
					}
					resp, err := tr.RoundTrip(req)
					if err != nil {
						t.Error(err)
					} else if got, err := io.ReadAll(resp.Body); resp.StatusCode != 504 || err != nil {
						t.Errorf("%s %q, %v", resp.Status, got, err)
					}
					cancel()
				}
			})
		}
	}
}

// untilDone is a body without an end of its own.
type untilDone struct{ ctx context.Context }

func (b *untilDone) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, io.EOF
	}
	return len(p), nil
}

// What a handler that returns in time has made of its request is what an outer
// handler finds, whether that holds the request or a copy of it, as with
// http.TimeoutHandler; but for what the handler does not change nothing is
// written, since another goroutine may be reading.
func TestRequestTimeoutRequestInTime(t *testing.T) {
	type seen struct {
		user, gone, path, query string
		form, pattern           string
	}
	inner := http.NewServeMux()
	inner.HandleFunc("/{name}", func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		r.Header.Set("X-User", "me")
		r.Header.Del("Gone")
		r.URL.Path = "/rewritten"
		r.URL.RawQuery += "&c=d"
	})
	look := func(h http.Handler) (got, copied seen) {
		r := httptest.NewRequest("GET", "http://user:password@host/x?a=b", nil)
		r.Header.Set("Gone", "no")
		shallow := r.WithContext(r.Context())
		h.ServeHTTP(httptest.NewRecorder(), r)
		of := func(r *http.Request) seen {
			return seen{r.Header.Get("X-User"), r.Header.Get("Gone"), r.URL.Path, r.URL.RawQuery, r.Form.Encode(), r.Pattern}
		}
		return of(r), of(shallow)
	}
	got, copied := look(within(inner.ServeHTTP))
	_, wantCopied := look(http.TimeoutHandler(inner, limit, ""))
	want := seen{"me", "", "/rewritten", "a=b&c=d", "a=b", "/{name}"} // net/http's does not hand back the last two
	opts := cmp.AllowUnexported(seen{})
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wantCopied, copied, opts); diff != "" {
		t.Error(diff)
	}

	reads, stop := make(chan struct{}), make(chan struct{})
	r := httptest.NewRequest("GET", "http://user@host/x", nil)
	r.Header.Set("A", "b")
	go func() {
		defer close(reads)
		for {
			select {
			case <-stop:
				return
			default:
				_ = fmt.Sprint(r.Header, r.URL)
			}
		}
	}()
	for range 100 {
		within(func(w http.ResponseWriter, r *http.Request) {}).ServeHTTP(httptest.NewRecorder(), r)
	}
	close(stop)
	<-reads
}

// kubernetes/kubernetes#117052: an outer handler has wrapped the request's body
// to count its bytes, and looks at the count when RequestTimeout has returned.
// Over HTTP/2 the handler could still be reading.
func TestRequestTimeoutWrappedBody(t *testing.T) {
	for name, read := range map[string]func(io.ReadCloser){
		"reading": func(b io.ReadCloser) { io.Copy(io.Discard, b) },
		"closing": func(b io.ReadCloser) { b.Read(make([]byte, 1)); b.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				over := make(chan struct{})
				h := within(func(w http.ResponseWriter, r *http.Request) {
					defer close(over)
					for r.Context().Err() == nil {
						read(r.Body)
						time.Sleep(time.Millisecond)
					}
					read(r.Body)
				})
				b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body := &countingBody{ReadCloser: r.Body}
					// Not in r itself: net/http has to recognize the body that the handler
					// closes, or it closes the connection without lingering.
					r = r.WithContext(r.Context())
					r.Body = body
					h.ServeHTTP(w, r)
					for range 100 {
						body.n++ // unsynchronized, for the race detector
						time.Sleep(time.Nanosecond)
					}
				}))
				body, writer := io.Pipe()
				defer writer.Close()
				go func() {
					for {
						if _, err := writer.Write(make([]byte, 100)); err != nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
				}()
				resp := b.do(b.request("POST", "/", body))
				if resp.StatusCode != 504 {
					b.Error(resp.Status)
				}
				if d := time.Since(b.start); d < limit || d > limit+20*time.Millisecond {
					b.Errorf("answered after %v", d)
				}
				<-over
			})
		})
	}
}

type countingBody struct {
	io.ReadCloser
	n int
}

func (c *countingBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += n
	return n, err
}

func (c *countingBody) Close() error { c.n++; return c.ReadCloser.Close() }

// The request's context ends before Max: by a deadline it gets the answer that
// a deadline gets, by a cancellation none, and both at once.
func TestRequestTimeoutOuterContext(t *testing.T) {
	custom := fmt.Errorf("custom")
	for name, tt := range map[string]struct {
		with    func(context.Context) (context.Context, context.CancelFunc)
		grace   time.Duration
		err     error
		cause   error
		aborted bool
	}{
		"deadline": {with: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, err: context.DeadlineExceeded, cause: context.DeadlineExceeded},
		"deadline with a cause": {with: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeoutCause(ctx, time.Second, custom)
		}, err: context.DeadlineExceeded, cause: custom},
		"cancelled for a deadline": {with: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Second, func() { cancel(context.DeadlineExceeded) })
			return ctx, func() { cancel(nil) }
		}, err: context.Canceled, cause: context.DeadlineExceeded},
		"cancelled": {with: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Second, func() { cancel(custom) })
			return ctx, func() { cancel(nil) }
		}, err: context.Canceled, cause: custom, aborted: true},
		"deadline and grace": {with: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, grace: time.Minute, err: context.DeadlineExceeded, cause: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				end, over := make(chan struct{}), make(chan struct{})
				h := (&graceful.RequestTimeout{Max: limit, Grace: tt.grace}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(over)
					ctx := r.Context()
					<-ctx.Done()
					b.elapsed(time.Second)
					if ctx.Err() != tt.err || context.Cause(ctx) != tt.cause {
						b.Errorf("%v, %v", ctx.Err(), context.Cause(ctx))
					}
					<-end
				}))
				b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					ctx, cancel := tt.with(r.Context())
					defer cancel()
					h.ServeHTTP(w, r.WithContext(ctx))
				}))
				resp, err := b.client.Do(b.request("POST", "/", nil))
				b.elapsed(time.Second + tt.grace)
				if tt.aborted && err == nil || !tt.aborted && (err != nil || resp.StatusCode != 504) {
					b.Errorf("%v, %v", resp, err)
				}
				if err == nil {
					resp.Body.Close()
				}
				close(end)
				<-over
			})
		})
	}
}

// The outer one of two is as fast as the inner one, which must not begin an
// answer that the outer one then has to abort.
func TestRequestTimeoutNested(t *testing.T) {
	for range 20 {
		bothProtocols(t, func(b *bench) {
			end := make(chan struct{})
			defer close(end)
			h := within(func(w http.ResponseWriter, r *http.Request) { <-end })
			for range 3 {
				h = within(h.ServeHTTP)
			}
			b.serve(h)
			resp := b.do(b.request("POST", "/", nil))
			if got := b.body(resp); resp.StatusCode != 504 || got != "the server did not answer in time\n" {
				b.Errorf("%s %q", resp.Status, got)
			}
			b.elapsed(limit)
		})
	}
}

// A client's bytes cannot begin a line of the log, nor control a terminal:
// neither in the path, nor in the address that a proxy's header has replaced,
// nor where a panic repeats what it was given.
func TestRequestTimeoutLogIsQuoted(t *testing.T) {
	const forged = "\n2026/01/01 00:00:00 LOGIN OK user=root \x1b[2J\u2028\u202e"
	withBench(t, false, func(b *bench) {
		h := within(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			synctest.Wait()
			panic("no user " + r.URL.Path)
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.RemoteAddr = forged // as behind a proxy whose header is believed
			r.RequestURI = r.URL.Path
			h.ServeHTTP(w, r)
		}))
		u := b.request("GET", "/", nil)
		u.URL.Path = "/x" + forged + strings.Repeat("long", 1000)
		b.body(b.do(u))
		time.Sleep(time.Second)
		log := b.log.String()
		first, _, _ := strings.Cut(log, "\n")
		if !strings.Contains(first, `panic serving "GET /x\n2026/01/01`) || !strings.Contains(first, `for "\n2026`) || !strings.Contains(first, `: "no user /x\n2026`) {
			b.Errorf("%q", first)
		}
		if strings.ContainsAny(log, "\x1b\u2028\u202e") || strings.Contains(log, "\n2026") {
			b.Errorf("forged: %q", log)
		}
		if len(first) > 1500 {
			b.Errorf("%d bytes in the line", len(first))
		}
	})
}

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

// If the client does not read its connection at all, a single stream cannot be
// freed; the timeout waits for the handler for a second.
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
			conn, err := b.l.connectPipe()
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

// In the timeout filter of the Kubernetes apiserver, which "there" means in what
// follows, a Flush before the first Write loses the handler's header.
func TestRequestTimeoutFlushFirst(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Mine", "yes")
			w.(http.Flusher).Flush()
			w.Header().Set("Late", "yes")
			time.Sleep(time.Second)
			io.WriteString(w, "body")
		}))
		resp := b.get("/")
		b.elapsed(0)
		if resp.Header.Get("Mine") != "yes" || resp.Header.Get("Late") != "" {
			b.Error(resp.Header)
		}
		if got := b.body(resp); got != "body" {
			b.Errorf("%q", got)
		}
	})
}

// There a 103 is taken for the status.
func TestRequestTimeoutInformational(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		end := make(chan struct{})
		defer close(end)
		h := within(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.Header().Del("Outer")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.Header().Set("Final", "yes")
			if r.URL.Path == "/late" {
				<-end
			}
			w.WriteHeader(404)
			io.WriteString(w, "not there")
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Outer", "yes")
			h.ServeHTTP(w, r)
		}))
		for path, want := range map[string]struct {
			code                     int
			link, outer, final, body string
		}{
			"/":     {404, "", "", "yes", "not there"},
			"/late": {504, "", "yes", "", "the server did not answer in time\n"},
		} {
			resp := b.get(path)
			h := resp.Header
			got := want
			got.code, got.link, got.outer, got.final, got.body = resp.StatusCode, h.Get("Link"), h.Get("Outer"), h.Get("Final"), b.body(resp)
			if got != want {
				b.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}

// There trailers are lost.
func TestRequestTimeoutTrailers(t *testing.T) {
	for name, set := range map[string]func(h http.Header, value string){
		"Declared":   func(h http.Header, value string) { h.Set("Declared", value) },
		"Undeclared": func(h http.Header, value string) { h.Set(http.TrailerPrefix+"Undeclared", value) },
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(b *bench) {
				b.serve(within(func(w http.ResponseWriter, r *http.Request) {
					h := w.Header()
					if name == "Declared" {
						h.Set("Trailer", name)
					}
					io.Copy(io.Discard, r.Body)
					io.WriteString(w, "body")
					w.(http.Flusher).Flush()
					set(h, r.Trailer.Get("Asked"))
					w.Header().Set("Late", "yes")
				}))
				req := b.request("POST", "/", struct{ io.Reader }{strings.NewReader("body")})
				req.Trailer = http.Header{"Asked": {"one"}}
				resp := b.do(req)
				b.body(resp)
				if diff := cmp.Diff(http.Header{name: {"one"}}, resp.Trailer); diff != "" {
					b.Error(diff)
				}
				if _, ok := resp.Header["Late"]; ok {
					b.Error(resp.Header)
				}
			})
		})
	}
}

// net/http puts trailers that were not announced into its own *Request.
func TestRequestTimeoutUndeclaredRequestTrailer(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, r.Trailer.Get("Asked"))
		}))
		conn := b.dial()
		go io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nAsked: one\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			b.Fatal(err)
		}
		if got := b.body(resp); got != "one" {
			b.Errorf("%q", got)
		}
	})
}

// There a handler that is late can set the deadlines of the next request.
func TestRequestTimeoutLateDeadline(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		late, set := make(chan struct{}), make(chan struct{})
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				io.Copy(io.Discard, r.Body)
				<-late
				rc := http.NewResponseController(w)
				rc.SetReadDeadline(time.Now())
				rc.SetWriteDeadline(time.Now())
				close(set)
				return
			}
			close(late)
			<-set
			time.Sleep(time.Second)
			io.WriteString(w, "undisturbed")
		}))
		resp := b.do(b.request("POST", "/late", strings.NewReader("read to its end")))
		b.body(resp)
		if resp.StatusCode != 504 || resp.Close {
			b.Error(resp.Status, resp.Close)
		}
		if got := b.body(b.get("/next")); got != "undisturbed" {
			b.Errorf("%q", got)
		}
		if n := b.l.taken(); n != 1 {
			b.Errorf("%d connections", n)
		}
	})
}

// The files of a form, which net/http removes, are not left where a handler
// got a copy of net/http's request; nor are they removed while it runs. An
// outer handler finds what a mux has noted.
func TestMultipart(t *testing.T) {
	long := func(*http.Request) bool { return true }
	left := map[bool]int{} // by HTTP/2: files that net/http by itself leaves
	for _, tt := range []struct {
		name string
		wrap func(http.Handler) http.Handler // called in a bubble
		late bool
	}{
		{"net/http", func(h http.Handler) http.Handler { return h }, false},
		{"RequestTimeout, late", func(h http.Handler) http.Handler { return (&graceful.RequestTimeout{Max: limit}).Handler(h) }, true},
		{"RequestTimeout", func(h http.Handler) http.Handler { return (&graceful.RequestTimeout{Max: limit}).Handler(h) }, false},
		{"RequestDeadline", func(h http.Handler) http.Handler { return (&graceful.RequestDeadline{Max: limit}).Handler(h) }, false},
		{"InFlight", func(h http.Handler) http.Handler { return (&graceful.InFlight{}).Handler(h) }, false},
		{"InFlight, long-running", func(h http.Handler) http.Handler { return (&graceful.InFlight{LongRunning: long}).Handler(h) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			t.Setenv("TMP", dir)
			bothProtocols(t, func(b *bench) {
				glob := func() []string {
					names, err := filepath.Glob(filepath.Join(dir, "*"))
					if err != nil {
						b.Fatal(err)
					}
					return names
				}
				files := func() int { return len(glob()) }
				over := make(chan struct{})
				mux := http.NewServeMux()
				mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
					if err := r.ParseMultipartForm(1); err != nil {
						b.Error(err)
					}
					if files() != 1 {
						b.Errorf("%d files", files())
					}
					if tt.late {
						<-over
						if files() != 1 {
							b.Errorf("%d files while the handler runs", files())
						}
					}
				})
				h := tt.wrap(mux)
				b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(w, r)
					if !tt.late && (r.Pattern != "/upload" || r.MultipartForm == nil) {
						b.Errorf("the pattern is %q, the form %v", r.Pattern, r.MultipartForm)
					}
				}))
				var body bytes.Buffer
				mw := multipart.NewWriter(&body)
				part, _ := mw.CreateFormFile("file", "name")
				part.Write(make([]byte, 1<<10))
				mw.Close()
				b.body(b.do(b.request("POST", "/upload", &body, "Content-Type", mw.FormDataContentType())))
				close(over)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				// net/http itself leaves them over HTTP/2 in Go 1.27, where its
				// handler gets a copy of the request that it cleans up after.
				n := files()
				if tt.name == "net/http" {
					left[b.http2] = n
				}
				if n > left[b.http2] || tt.late && n > 0 {
					b.Errorf("%d files are left", n)
				}
				for _, name := range glob() {
					os.Remove(name)
				}
			})
		})
	}
}

// What outer handlers look for in their request is there.
func TestRequestTimeoutRequestFields(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/{name}", func(w http.ResponseWriter, r *http.Request) { r.ParseForm() })
	r := httptest.NewRequest("GET", "/x?a=b", nil)
	new(graceful.RequestTimeout).Handler(mux).ServeHTTP(httptest.NewRecorder(), r)
	if r.Pattern != "/{name}" || r.Form.Get("a") != "b" {
		t.Errorf("%q %v", r.Pattern, r.Form)
	}
}

// hidingWriter shows net/http's writer only through Unwrap.
type hidingWriter struct{ http.ResponseWriter }

func (h hidingWriter) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// What Unwrap finds is behind the same guard, with its own methods.
func TestRequestTimeoutUnwrap(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		over := make(chan struct{})
		var outside []string
		h := within(func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
				b.Error(err)
			}
			inner := w.(interface{ Unwrap() http.ResponseWriter }).Unwrap()
			if diff := cmp.Diff(outside, can(inner)); diff != "" {
				b.Error(diff)
			}
			<-r.Context().Done()
			synctest.Wait()
			if _, err := inner.Write(nil); err != http.ErrHandlerTimeout {
				b.Error(err)
			}
			if err := http.NewResponseController(inner).SetWriteDeadline(time.Now()); err != http.ErrHandlerTimeout {
				b.Error(err)
			}
			inner.Header().Set("Late", "yes")
			close(over)
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outside = can(w)
			h.ServeHTTP(hidingWriter{w}, r)
		}))
		if resp := b.get("/"); resp.StatusCode != 504 || resp.Header.Get("Late") != "" {
			b.Error(resp.Status, resp.Header)
		}
		<-over
	})
	withBench(t, false, func(b *bench) {
		h := within(func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				b.Error(err)
				return
			}
			io.WriteString(conn, "HTTP/1.1 204 Hijacked\r\n\r\n")
			conn.Close()
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(hidingWriter{w}, r) }))
		if resp := b.get("/"); resp.StatusCode != 204 {
			b.Error(resp.Status)
		}
	})
}

// An outer handler's header can be seen and deleted, and a status that
// net/http panics over leaves the next one its header.
func TestRequestTimeoutHeader(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		h := within(func(w http.ResponseWriter, r *http.Request) {
			if got := w.Header().Get("Gone"); got != "outer" {
				b.Errorf("%q", got)
			}
			w.Header().Del("Gone")
			w.Header().Add("Both", "inner")
			func() {
				defer func() {
					if recover() == nil {
						b.Error("no panic")
					}
				}()
				w.WriteHeader(0)
			}()
			w.Header().Set("After", "yes")
			w.WriteHeader(http.StatusTeapot)
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Gone", "outer")
			w.Header().Set("Both", "outer")
			h.ServeHTTP(w, r)
		}))
		resp := b.get("/")
		resp.Header.Del("Date")
		want := http.Header{"Both": {"outer", "inner"}, "After": {"yes"}, "Content-Length": {"0"}}
		if diff := cmp.Diff(want, resp.Header); diff != "" || resp.StatusCode != http.StatusTeapot {
			b.Error(resp.Status, diff)
		}
	})
}

// What is read from while it is copied may block: the deadline ends that,
// too. Files go to the inner writer as they are.
func TestRequestTimeoutReadFrom(t *testing.T) {
	withBench(t, false, func(b *bench) {
		name := filepath.Join(b.TempDir(), "file")
		data := bytes.Repeat([]byte("0123456789"), 20_000)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			b.Fatal(err)
		}
		var types []string
		src, silent := io.Pipe()
		defer silent.Close()
		h := within(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/file":
				http.ServeFile(w, r, name)
			case "/bytes":
				io.Copy(w, struct{ io.Reader }{bytes.NewReader(data)})
			case "/pipe":
				io.Copy(w, src)
			}
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(struct {
				hidingWriter
				readFromSpy
			}{hidingWriter{w}, readFromSpy{w, &types}}, r)
		}))
		for _, path := range []string{"/file", "/bytes"} {
			if got := b.body(b.get(path)); got != string(data) {
				b.Errorf("%s: %d bytes", path, len(got))
			}
		}
		if diff := cmp.Diff([]string{"*os.File"}, types); diff != "" {
			b.Error(diff)
		}
		go silent.Write(data)
		resp := b.get("/pipe")
		if got, err := io.ReadAll(resp.Body); err == nil || len(got) == 0 {
			b.Errorf("%d bytes, %v", len(got), err)
		}
		b.elapsed(limit)
	})
}

type readFromSpy struct {
	w     http.ResponseWriter
	files *[]string
}

func (s readFromSpy) ReadFrom(src io.Reader) (int64, error) {
	if l, ok := src.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			*s.files = append(*s.files, fmt.Sprintf("%T", l.R))
		}
	}
	return s.w.(io.ReaderFrom).ReadFrom(src)
}

// An HTTP/1.0 answer ends with its connection: there the abort must be an
// error, not an end.
func TestRequestTimeoutResetsHTTP10(t *testing.T) {
	end := make(chan struct{})
	defer close(end) // a handler that ends by itself might be in time
	srv := httptest.NewServer((&graceful.RequestTimeout{Max: 50 * time.Millisecond}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		<-end
	})))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	if got, err := io.ReadAll(conn); err == nil {
		t.Errorf("the client takes %q for a whole answer", got)
	}
}

// can lists what a ResponseWriter offers.
func can(w http.ResponseWriter) (names []string) {
	add := func(name string, ok bool) {
		if ok {
			names = append(names, name)
		}
	}
	_, ok := w.(http.Flusher)
	add("Flusher", ok)
	_, ok = w.(http.Hijacker)
	add("Hijacker", ok)
	_, ok = w.(io.ReaderFrom)
	add("ReaderFrom", ok)
	_, ok = w.(http.Pusher)
	add("Pusher", ok)
	_, ok = w.(interface{ Unwrap() http.ResponseWriter })
	add("Unwrap", ok)
	return names
}

func TestRequestTimeoutServerInterfaces(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		var outside []string
		h := within(func(w http.ResponseWriter, r *http.Request) {
			if diff := cmp.Diff(outside, can(w)); diff != "" {
				b.Error(diff)
			}
			rc := http.NewResponseController(w)
			for name, err := range map[string]error{
				"SetReadDeadline":  rc.SetReadDeadline(time.Now().Add(time.Hour)),
				"SetWriteDeadline": rc.SetWriteDeadline(time.Now().Add(time.Hour)),
				"EnableFullDuplex": rc.EnableFullDuplex(),
				"Flush":            rc.Flush(),
			} {
				if err != nil {
					b.Errorf("%s: %v", name, err)
				}
			}
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outside = can(w)
			h.ServeHTTP(w, r)
		}))
		b.body(b.get("/"))
	})
}

// plainWriter has what an http.ResponseWriter must have, and no more.
type plainWriter struct{ http.ResponseWriter }

func TestRequestTimeoutNotSupported(t *testing.T) {
	rec := httptest.NewRecorder()
	within(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_, _, hijack := rc.Hijack()
		for name, err := range map[string]error{
			"SetReadDeadline":  rc.SetReadDeadline(time.Now()),
			"SetWriteDeadline": rc.SetWriteDeadline(time.Now()),
			"EnableFullDuplex": rc.EnableFullDuplex(),
			"Flush":            rc.Flush(),
			"Hijack":           hijack,
		} {
			if err == nil || !strings.Contains(err.Error(), http.ErrNotSupported.Error()) {
				t.Errorf("%s: %v", name, err)
			}
		}
		w.Header().Set("Still", "open") // Flush has fixed nothing
	}).ServeHTTP(plainWriter{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Header().Get("Still") == "" {
		t.Error("a Flush that is not supported has fixed the header")
	}
}
