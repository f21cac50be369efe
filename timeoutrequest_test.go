package graceful_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
					r.Body = body
					h.ServeHTTP(w, r)
					b.elapsed(limit)
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
