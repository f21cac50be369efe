package graceful_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
)

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
		if n := b.l.dials.Load(); n != 1 {
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
