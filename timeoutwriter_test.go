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
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
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

// A connection whose request was not read to its end is not used again, and
// the rest of the request is read for half a second, but no longer.
func TestRequestTimeoutLingers(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); time.Sleep(time.Nanosecond) }))
		conn, err := b.l.dial()
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
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
		b.elapsed(limit + 500*time.Millisecond)
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
				if b.http2 {
					b.get("/") // and do not read the body
				} else {
					conn, err := b.l.dial()
					if err != nil {
						b.Fatal(err)
					}
					defer conn.Close()
					io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				}
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

// There a Flush before the first Write loses the handler's header.
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
	bothProtocols(t, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Trailer", "Declared")
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "body")
			h.Set("Declared", r.Trailer.Get("Asked"))
			h.Set(http.TrailerPrefix+"Undeclared", "two")
			w.Header().Set("Late", "yes")
		}))
		req := b.request("POST", "/", struct{ io.Reader }{strings.NewReader("body")})
		req.Trailer = http.Header{"Asked": {"one"}}
		resp := b.do(req)
		b.body(resp)
		if diff := cmp.Diff(http.Header{"Declared": {"one"}, "Undeclared": {"two"}}, resp.Trailer); diff != "" {
			b.Error(diff)
		}
		if _, ok := resp.Header["Late"]; ok {
			b.Error(resp.Header)
		}
	})
}

// net/http puts trailers that were not announced into its own *Request.
func TestRequestTimeoutUndeclaredRequestTrailer(t *testing.T) {
	withBench(t, false, func(b *bench) {
		b.serve(within(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, r.Trailer.Get("Asked"))
		}))
		conn, err := b.l.dial()
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
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
		resp := b.get("/late")
		b.body(resp)
		if resp.StatusCode != 504 || resp.Close {
			b.Error(resp.Status, resp.Close)
		}
		if got := b.body(b.get("/next")); got != "undisturbed" {
			b.Errorf("%q", got)
		}
		if n := b.l.dials.Load(); n != 1 {
			b.Errorf("%d connections", n)
		}
	})
}

// There the files of a form outlive a request that timed out.
func TestRequestTimeoutMultipart(t *testing.T) {
	for _, path := range []string{"/late", "/intime"} {
		t.Run(path, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			t.Setenv("TMP", dir)
			bothProtocols(t, func(b *bench) {
				files := func() int {
					names, err := filepath.Glob(filepath.Join(dir, "*"))
					if err != nil {
						b.Fatal(err)
					}
					return len(names)
				}
				over := make(chan struct{})
				b.serve(within(func(w http.ResponseWriter, r *http.Request) {
					if err := r.ParseMultipartForm(1); err != nil {
						b.Error(err)
					}
					if files() != 1 {
						b.Errorf("%d files", files())
					}
					if path == "/late" {
						<-over
						if files() != 1 {
							b.Errorf("%d files while the handler runs", files())
						}
					}
				}))
				var body bytes.Buffer
				mw := multipart.NewWriter(&body)
				part, _ := mw.CreateFormFile("file", "name")
				part.Write(make([]byte, 1<<10))
				mw.Close()
				b.body(b.do(b.request("POST", path, &body, "Content-Type", mw.FormDataContentType())))
				close(over)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				if files() != 0 {
					b.Errorf("%d files are left", files())
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

type unwrapper struct{ w http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.w }

func TestRequestTimeoutInterfaces(t *testing.T) {
	type (
		W = http.ResponseWriter
		F = http.Flusher
		H = http.Hijacker
		R = io.ReaderFrom
		P = http.Pusher
		U = unwrapper
	)
	rec := plainWriter{httptest.NewRecorder()}
	for _, w := range []http.ResponseWriter{
		struct{ W }{W: rec}, struct {
			W
			F
		}{W: rec}, struct {
			W
			H
		}{W: rec}, struct {
			W
			F
			H
		}{W: rec},
		struct {
			W
			R
		}{W: rec}, struct {
			W
			F
			R
		}{W: rec}, struct {
			W
			H
			R
		}{W: rec}, struct {
			W
			F
			H
			R
		}{W: rec},
		struct {
			W
			P
		}{W: rec}, struct {
			W
			F
			P
		}{W: rec}, struct {
			W
			H
			P
		}{W: rec}, struct {
			W
			F
			H
			P
		}{W: rec},
		struct {
			W
			R
			P
		}{W: rec}, struct {
			W
			F
			R
			P
		}{W: rec}, struct {
			W
			H
			R
			P
		}{W: rec}, struct {
			W
			F
			H
			R
			P
		}{W: rec},
		struct {
			W
			U
		}{W: rec}, struct {
			W
			F
			U
		}{W: rec}, struct {
			W
			H
			U
		}{W: rec}, struct {
			W
			F
			H
			U
		}{W: rec},
		struct {
			W
			R
			U
		}{W: rec}, struct {
			W
			F
			R
			U
		}{W: rec}, struct {
			W
			H
			R
			U
		}{W: rec}, struct {
			W
			F
			H
			R
			U
		}{W: rec},
		struct {
			W
			P
			U
		}{W: rec}, struct {
			W
			F
			P
			U
		}{W: rec}, struct {
			W
			H
			P
			U
		}{W: rec}, struct {
			W
			F
			H
			P
			U
		}{W: rec},
		struct {
			W
			R
			P
			U
		}{W: rec}, struct {
			W
			F
			R
			P
			U
		}{W: rec}, struct {
			W
			H
			R
			P
			U
		}{W: rec}, struct {
			W
			F
			H
			R
			P
			U
		}{W: rec},
	} {
		outside := can(w)
		h := new(graceful.RequestTimeout).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if diff := cmp.Diff(outside, can(w)); diff != "" {
				t.Errorf("%v: %s", outside, diff)
			}
		}))
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	}
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
		b.get("/")
	})
}

// plainWriter has what an http.ResponseWriter must have, and no more.
type plainWriter struct{ http.ResponseWriter }

func TestRequestTimeoutNotSupported(t *testing.T) {
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
	}).ServeHTTP(plainWriter{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
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
	srv := httptest.NewServer((&graceful.RequestTimeout{Max: 50 * time.Millisecond}).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		time.Sleep(time.Millisecond)
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
