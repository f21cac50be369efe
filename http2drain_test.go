package graceful

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var http2Stops = flag.Int("http2stops", 0, "how often TestHTTP2DrainLosesNothing stops a server of each kind; 0 means 50 times, or as often as 3 s allow")

// drainGrace is the least time between the two GOAWAYs, by default. However
// busy the machine is, the acknowledgement of the first is waited for; but
// net/http's client acknowledges past a request that has its stream and is about
// to write its HEADERS. With 20 ms of grace such a request was lost once in some
// 20 runs of all tests on a busy machine.
const drainGrace = defaultIdleGrace

// drainHandler answers in all the ways that differ on the wire.
func drainHandler() http.Handler {
	mux := http.NewServeMux()
	// An answer of n bytes after the whole request has been read.
	mux.HandleFunc("POST /sized", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) == 0 {
			panic(http.ErrAbortHandler)
		}
		if n%3 == 0 {
			time.Sleep(time.Duration(n%7) * time.Millisecond)
		}
		w.Write(bytes.Repeat([]byte{'x'}, n))
	})
	// An answer that runs beside its request.
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.Flush() // the client waits for the headers
		buf := make([]byte, 4<<10)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			rc.Flush()
			if err == io.EOF {
				return
			} else if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
	// An answer that is complete while its request is not.
	mux.HandleFunc("POST /early", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("enough"))
	})
	return mux
}

// onceBody is a request body that net/http's client cannot send again.
type onceBody struct {
	io.Reader
	sent   atomic.Bool // a header has gone out
	spoilt atomic.Bool // the client closed it before
}

func (b *onceBody) Close() error {
	if !b.sent.Load() {
		b.spoilt.Store(true)
	}
	if c, ok := b.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// errUnsent is for a request that the client spoilt itself: told that its
// connection takes no more, net/http's client closes the body that it has not
// read. Then it cannot use it for another connection; where it has one already
// it tries to, sends the header there, and fails at the closed body.
var errUnsent = errors.New("not sent")

// drainRequest sends one request of a random kind and reports what became of it.
func drainRequest(rt http.RoundTripper, base string) error {
	post := func(path string, body io.Reader) (*http.Response, error) {
		once := &onceBody{Reader: body}
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			WroteHeaders: func() { once.sent.Store(true) },
		})
		req, _ := http.NewRequestWithContext(ctx, "POST", base+path, once)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			if !once.sent.Load() || once.spoilt.Load() && errors.Is(err, io.ErrClosedPipe) {
				return nil, errUnsent
			}
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			resp.Body.Close()
			return nil, fmt.Errorf("%s: %s %s", path, resp.Proto, resp.Status)
		}
		return resp, nil
	}
	switch rand.IntN(8) {
	case 0: // both directions at once
		pr, pw := io.Pipe()
		defer pw.Close()
		resp, err := post("/echo", pr)
		if err != nil {
			pr.Close()
			return err
		}
		defer resp.Body.Close()
		msg := bytes.Repeat([]byte("ping"), 1+rand.IntN(500))
		got := make([]byte, len(msg))
		for range 3 {
			if _, err := pw.Write(msg); err != nil {
				return fmt.Errorf("echo, sending: %w", err)
			}
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				return fmt.Errorf("echo: %w", err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			return fmt.Errorf("echo: %d bytes too many, %v", len(rest), err)
		}
	case 1:
		resp, err := post("/early", bytes.NewReader(make([]byte, 20<<10)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); string(body) != "enough" || err != nil {
			return fmt.Errorf("early: %q, %v", body, err)
		}
	default:
		n := []int{0, 1, 100, 4000, 5000, 16384, 20000, 100_000}[rand.IntN(8)]
		path := fmt.Sprint("/sized?n=", n)
		resp, err := post(path, bytes.NewReader(make([]byte, 1+rand.IntN(3000))))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if got, err := io.Copy(io.Discard, resp.Body); int(got) != n || err != nil {
			return fmt.Errorf("%s: %d bytes, %w", path, got, err)
		}
	}
	return nil
}

// drainLoad has 8 clients with 8 requests in flight each while n servers, one
// after another, serve and are stopped; a successor is up before each stop. The
// one that is stopped has accepted all that were dialled: what is lost is lost by
// HTTP/2.
//
// It stops as often as it can in the given time, but three times at least, and
// returns how often that was.
func drainLoad(tb testing.TB, overTLS bool, n int, atMost time.Duration, stop func(*h2Server)) (stops int, sent, lost int64, first error) {
	began := time.Now()
	start := func() *h2Server {
		user := &http.Server{Handler: drainHandler(), ErrorLog: log.New(io.Discard, "", 0)}
		return serveHTTP2(tb, user, overTLS, http2Config{grace: drainGrace, patience: time.Minute})
	}
	s := start()
	var (
		mu      sync.RWMutex // guards current and, shared, the dials to it
		current = s
	)

	base := "http://server"
	if overTLS {
		base = "https://example.com" // as the certificate says
	}
	var (
		requests, errs atomic.Int64
		once           sync.Once
		wg             sync.WaitGroup
		done           = make(chan struct{})
	)
	for range 8 {
		t := h2Transport(overTLS)
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			mu.RLock()
			defer mu.RUnlock()
			nc, err := new(net.Dialer).DialContext(ctx, network, current.addr)
			if err == nil {
				current.dialed.Add(1)
			}
			return nc, err
		}
		defer t.CloseIdleConnections()
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					requests.Add(1)
					if err := drainRequest(t, base); errors.Is(err, errUnsent) {
						requests.Add(-1)
					} else if err != nil {
						errs.Add(1)
						once.Do(func() { first = err })
					}
				}
			})
		}
	}
	for ; stops < n; stops++ {
		if stops >= 3 && time.Since(began) > atMost {
			break
		}
		time.Sleep(time.Duration(10+rand.IntN(10)) * time.Millisecond)
		next := start()
		mu.Lock()
		current = next
		mu.Unlock()
		for s.accepted.Load() < s.dialed.Load() {
			time.Sleep(time.Millisecond)
		}
		stop(s)
		s.close()
		s = next
	}
	close(done)
	wg.Wait()
	return stops, requests.Load(), errs.Load(), first
}

// stopInTwoSteps is what a Server does for HTTP/2.
func stopInTwoSteps(tb testing.TB) func(*h2Server) {
	return func(s *h2Server) {
		s.layer.finish()
		if !s.waitGone(30 * time.Second) {
			conns, streams := s.layer.counts()
			tb.Errorf("%d connections left, %d HTTP/2 with %d streams", s.open.Load(), conns, streams)
		}
	}
}

// TestHTTP2DrainLosesNothing: net/http's Shutdown lost streams that crossed its
// one GOAWAY, and with them requests whose bodies cannot be sent again.
//
// All 50 stops of 8 connections with 8 requests each in flight, however busy the
// machine is, are made by
//
//	go test -run TestHTTP2DrainLosesNothing -v -http2stops 50
//
// which ends after 2 minutes of each kind at the latest, and then fails if there
// were fewer.
func TestHTTP2DrainLosesNothing(t *testing.T) {
	want, atMost := 50, 3*time.Second
	if *http2Stops > 0 {
		want, atMost = *http2Stops, 2*time.Minute
	}
	for name, overTLS := range map[string]bool{"TLS": true, "clear": false} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			stops, sent, lost, err := drainLoad(t, overTLS, want, atMost, stopInTwoSteps(t))
			if lost > 0 {
				t.Errorf("lost %d of %d requests; the first: %v", lost, sent, err)
			}
			if stops < want && *http2Stops > 0 {
				t.Errorf("only %d of %d stops in %v", stops, want, atMost)
			}
			t.Logf("%d requests, %d lost, %d stops in %v", sent, lost, stops, time.Since(began))
		})
	}
	t.Run("net/http", func(t *testing.T) {
		stops, sent, lost, err := drainLoad(t, true, max(5, *http2Stops), atMost/3, func(s *h2Server) {
			// Shutdown of the server on which HTTP/2 was configured.
			s.layer.holder.srv.Shutdown(context.Background())
			if !s.waitGone(500 * time.Millisecond) {
				t.Log("a connection outlived Shutdown (golang/go#81153)")
			}
		})
		t.Logf("for comparison, one GOAWAY: %d requests, %d lost in %d stops; %v", sent, lost, stops, err)
	})
}
