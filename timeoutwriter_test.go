package graceful_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

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
