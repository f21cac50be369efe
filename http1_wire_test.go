package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// TestDeafPeers: 200 TLS connections, whose peers have stopped reading, are
// closed together in no time when Timeout is over. Closing a *tls.Conn can take
// five seconds each, for the alert that it writes.
func TestDeafPeers(t *testing.T) {
	const n = 200
	for _, beside := range []bool{false, true} {
		name := "the server's TLS"
		if beside {
			name = "a TLS listener"
		}
		t.Run(name, func(t *testing.T) {
			stuck := make(chan struct{}, n)
			var handlers sync.WaitGroup
			over := make(chan struct{})
			type socketKey struct{}
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handlers.Add(1)
				defer handlers.Done()
				// Closing TLS while a Write is under way is cheap, so half of
				// them have none, on a socket that takes no byte more.
				nc := r.Context().Value(socketKey{}).(net.Conn)
				nc.SetWriteDeadline(time.Now().Add(50 * ms))
				for b := make([]byte, 64<<10); ; {
					if _, err := nc.Write(b); err != nil {
						break
					}
				}
				nc.SetWriteDeadline(time.Time{})
				stuck <- struct{}{}
				if r.URL.Path == "/write" {
					w.Write(make([]byte, 1<<20))
				}
				<-over
			})
			srv := &graceful.Server{Server: &http.Server{Handler: h}, Timeout: 100 * ms}
			srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
				return context.WithValue(ctx, socketKey{}, nc.(*tls.Conn).NetConn())
			}
			s := serveTLS(t, srv, smallBuffers(listenTCP(t)), beside)
			addr := waitAddr(s)
			// TLS 1.2 takes sessions up again for next to no work.
			config := traffic.ClientTLS()
			config.ServerName, config.MaxVersion = "127.0.0.1", tls.VersionTLS12
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range n {
				nc := dialClient(t, addr).Conn
				nc.(*net.TCPConn).SetReadBuffer(4 << 10)
				newClient(t, tls.Client(nc, config)).ask([]string{"/write", "/wait"}[i%2])
			}
			patience := time.After(20 * time.Second)
			for i := range n {
				select {
				case <-stuck:
				case <-patience:
					t.Fatalf("only %d are stuck", i)
				}
			}
			s.stop()
			got := s.end()
			close(over)
			handlers.Wait()
			r := s.Report()
			if len(r.Killed) != n || r.Kill > 2*time.Second || got > 4*time.Second {
				t.Errorf("over after %v, kill %v, %d killed", got, r.Kill, len(r.Killed))
			}
		})
	}
}

// smallBuffers makes writes to a peer that does not read get stuck soon.
func smallBuffers(l net.Listener) net.Listener {
	return &hookedListener{Listener: l, over: func(nc net.Conn) net.Conn {
		nc.(*net.TCPConn).SetWriteBuffer(4 << 10)
		return nc
	}}
}

// TestExpectContinue: a client that waits for leave to send its body gets it,
// and is answered, though the stop came in between.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	entered, read := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-read
		io.Copy(w, r.Body)
	})
	for _, secure := range []bool{false, true} {
		entered, read = make(chan struct{}), make(chan struct{})
		srv := &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 20 * ms, Timeout: 10 * time.Second}
		s, c := servePlainOrTLS(t, srv, secure)
		c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		<-entered
		s.stop()
		waitPhase(s, graceful.PhaseDraining)
		time.Sleep(50 * ms) // longer than the quiet window
		close(read)
		if line, err := c.br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Errorf("got %q, %v", line, err)
		}
		c.br.ReadString('\n')
		c.send("bo")
		time.Sleep(50 * ms)
		c.send("dy")
		c.expect("body")
		s.end()
		if r := s.Report(); r.KillReason != "" || r.IncompleteClosed > 0 {
			t.Errorf("%v", r)
		}
	}
}

// TestPipelined: of requests that were sent behind one another the first is
// answered whole. If its answer says close, the others are the client's to
// repeat (RFC 9112 9.3.2); if it began before the stop and so does not, the
// next is answered as well, and says it.
func TestPipelined(t *testing.T) {
	t.Parallel()
	for _, begun := range []bool{false, true} {
		for _, secure := range []bool{false, true} {
			g := newGate()
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if begun {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
				}
				g.ServeHTTP(w, r)
				io.WriteString(w, strings.Repeat("x", 1<<16))
			})
			srv := &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 100 * ms, Timeout: 10 * time.Second}
			s, c := servePlainOrTLS(t, srv, secure)
			c.send("GET /first HTTP/1.1\r\nHost: h\r\n\r\nGET /second HTTP/1.1\r\nHost: h\r\n\r\n")
			<-g.entered
			s.stop()
			waitPhase(s, graceful.PhaseDraining)
			time.Sleep(200 * ms) // longer than the quiet window
			close(g.open)
			first := c.expect("/first" + strings.Repeat("x", 1<<16))
			if first.close == begun {
				t.Errorf("begun before the stop %v, TLS %v: says close %v", begun, secure, first.close)
			}
			if begun {
				if second := c.expect("/second" + strings.Repeat("x", 1<<16)); !second.close {
					t.Errorf("TLS %v: the second answer does not say close", secure)
				}
			}
			if err := c.ended(); err != nil {
				t.Errorf("begun %v, TLS %v: after the last answer: %v", begun, secure, err)
			}
			s.end()
			if r := s.Report(); r.KillReason != "" {
				t.Errorf("begun %v, TLS %v: %v", begun, secure, r)
			}
		}
	}
}

// TestPipelinedInTwo: what a client sends behind a request that is in progress,
// whole or in part, is not served once the response has said close, though its
// header was composed before the stop. A body that looks like a request is not
// taken for one.
func TestPipelinedInTwo(t *testing.T) {
	const body = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
	post := fmt.Sprintf("POST /second HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", len(body))
	for _, tc := range []struct {
		name   string
		before string // comes with the first request, or what the first request is
		after  string // comes when the first is answered
	}{
		{"nothing behind", "GET /first HTTP/1.1\r\nHost: h\r\n\r\n", post + body},
		{"nothing behind a body", "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nnine\r\n\r\n\r", post + body},
		{"a header", "GET /first HTTP/1.1\r\nHost: h\r\n\r\n" + post, body},
		{"a header behind a body", "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nfour" + post, body},
		{"a header behind chunks", "POST /first HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + post, body},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newVirtListener()
				var served []string
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					served = append(served, r.URL.Path)
					io.Copy(io.Discard, r.Body)
					io.WriteString(w, strings.Repeat("x", 3000)) // the header is composed, and not sent
					time.Sleep(time.Second)
				})
				s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}}, l)
				c := newClient(t, l.dial())
				c.send(tc.before)
				synctest.Wait()
				s.stop()
				if got := c.expect(strings.Repeat("x", 3000)); !got.close {
					t.Error("the response does not say close")
				}
				io.WriteString(c, tc.after)
				c.ended()
				s.end()
				if diff := cmp.Diff([]string{"/first"}, served); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestSlowUpload: a body that is on its way when the stop comes is read to its
// end, and the answer sent, over a connection that was idle for a while before.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(b)
	})
	s := serve(t, &graceful.Server{Server: &http.Server{Handler: h}, IdleGrace: 20 * ms, Timeout: 10 * time.Second}, listenTCP(t))
	c := dialClient(t, waitAddr(s))
	c.get("/", "")
	body := strings.Repeat("0123456789", 20)
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n" + body[:10])
	waitStats(s, func(st graceful.Stats) int { return st.Active }, 1)
	s.stop()
	for i := 10; i < 200; i += 38 {
		time.Sleep(30 * ms)
		c.send(body[i : i+38])
	}
	c.expect(body)
	s.end()
	if diff := cmp.Diff(0, s.Report().IncompleteClosed+len(s.Report().Killed)); diff != "" {
		t.Errorf("%v", s.Report())
	}
}

// An exchange is what passed over one connection of HTTP/1.
type exchange struct {
	given     []string // what the handler was given
	responses []response
	log       lockedBuffer // what net/http logged
}

// dropped reports whether net/http dropped the connection by a panic. With
// EnableFullDuplex and an unread body Go 1.26 begins to read the connection in the
// background as the request ends, and so does what reads the next request. It is a
// race whether both read at once, upon which net/http panics.
func (x *exchange) dropped() bool {
	return strings.Contains(x.log.String(), "invalid concurrent Body.Read call")
}

type response struct {
	text  string // the status, the header but for Connection and Date, the body
	final bool
	close bool
	late  bool // it began after the stop
}

// exchangeHandler notes what it is given, and answers as the path and the query
// say.
func exchangeHandler(given *[]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := fmt.Sprint(w.Header())
		connection := func() {
			switch v := r.URL.Query().Get("connection"); v {
			case "":
			case "delete":
				w.Header().Del("Connection")
			case "clear":
				clear(w.Header())
			default:
				w.Header().Set("Connection", v)
			}
		}
		connection()
		rc := http.NewResponseController(w)
		body := []byte("unread")
		switch r.URL.Path {
		case "/unread", "/duplex":
		default:
			body, _ = io.ReadAll(r.Body)
		}
		*given = append(*given, fmt.Sprintf("%s %s %q %s", r.Method, r.URL, body, header))
		switch r.URL.Path {
		case "/duplex":
			rc.EnableFullDuplex()
			fallthrough
		case "/composed":
			// Over 2 KiB: net/http composes the header, and does not send it.
			w.Header().Set("Content-Length", "3001")
			w.Write(bytes.Repeat([]byte("x"), 3000))
			time.Sleep(time.Second)
			io.WriteString(w, "y")
			return
		case "/begun":
			rc.Flush()
			time.Sleep(time.Second)
		case "/slow":
			time.Sleep(time.Second)
		case "/hints":
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			time.Sleep(100 * ms)
			w.WriteHeader(http.StatusProcessing)
			time.Sleep(100 * ms)
			connection()
		}
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})
}

// newProxy returns an httputil.ReverseProxy in front of h, within a bubble, and a
// function that ends both.
func newProxy(h http.Handler) (http.Handler, func()) {
	l := newVirtListener()
	backend := &http.Server{Handler: h}
	go backend.Serve(l)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(), nil }}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "backend"})
	proxy.Transport, proxy.FlushInterval, proxy.ErrorLog = tr, -1, log.New(io.Discard, "", 0)
	return proxy, func() {
		tr.CloseIdleConnections()
		backend.Close()
	}
}

// playExchange sends the pieces with pauses between them, and closes its side
// behind them. The server is net/http's if stop is negative, else ours, and is
// stopped before that piece.
func playExchange(t *testing.T, pieces []string, stop int, secure, proxied bool) *exchange {
	x := &exchange{}
	synctest.Test(t, func(t *testing.T) {
		h, end := exchangeHandler(&x.given), func() {}
		if proxied {
			h, end = newProxy(h)
		}
		hs := &http.Server{Handler: h, ErrorLog: log.New(&x.log, "", 0)}
		l := newVirtListener()
		serveIt, serveItTLS := hs.Serve, hs.ServeTLS
		srv := &graceful.Server{Server: hs, IdleGrace: time.Hour, Timeout: time.Minute, NoSignalHandling: true}
		if stop >= 0 {
			serveIt, serveItTLS = srv.Serve, srv.ServeTLS
		}
		served := make(chan struct{})
		nc := net.Conn(l.dial())
		go func() {
			defer close(served)
			if secure {
				hs.TLSConfig = serverTLS()
				serveItTLS(l, "", "")
			} else {
				serveIt(l)
			}
		}()
		if secure {
			config := traffic.ClientTLS()
			config.ServerName, config.NextProtos = "127.0.0.1", []string{"http/1.1"}
			tc := tls.Client(nc, config)
			if err := tc.Handshake(); err != nil {
				t.Error(err)
			}
			nc = tc
		}
		var got lockedBuffer
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			io.Copy(&got, nc)
		}()
		before := -1 // how much had come when the server was stopped
		for i := range len(pieces) + 1 {
			synctest.Wait()
			if i == stop {
				before = len(got.String())
				srv.Stop(time.Minute)
			}
			synctest.Wait()
			if i < len(pieces) {
				io.WriteString(nc, pieces[i]) // fails when the server has said close
				time.Sleep(200 * ms)
			}
		}
		time.Sleep(10 * time.Second) // longer than the handlers take
		nc.(interface{ CloseWrite() error }).CloseWrite()
		<-ended
		x.responses = readResponses(t, got.String(), before)
		if stop < 0 {
			hs.Shutdown(bg)
		}
		<-served
		end()
		if r := srv.Report(); r.KillReason != "" || len(r.Killed) > 0 {
			t.Errorf("%v", r)
		}
	})
	return x
}

func readResponses(t *testing.T, sent string, before int) (all []response) {
	t.Helper()
	r := strings.NewReader(sent)
	for br := bufio.NewReader(r); ; {
		late := before >= 0 && len(sent)-r.Len()-br.Buffered() >= before
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF || br.Buffered() > 0 {
				t.Errorf("%v after %v, in %q", err, all, sent)
			}
			return all
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("response cut short: %v", err)
		}
		var text strings.Builder
		fmt.Fprintln(&text, resp.Proto, resp.Status)
		for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
			if name != "Connection" && name != "Date" {
				fmt.Fprintln(&text, name, resp.Header[name])
			}
		}
		fmt.Fprintf(&text, "%q", body)
		all = append(all, response{text.String(), resp.StatusCode >= 200 || resp.StatusCode == 101, resp.Close, late})
	}
}

// compareExchange compares what our server did around a stop with what net/http
// does without one: it may only end the connection earlier, behind a final
// response that says close, and each that begins after the stop has to.
func compareExchange(t *testing.T, want, got *exchange) {
	t.Helper()
	told := false
	for i, r := range got.responses {
		if told {
			t.Errorf("a response behind one that says close: %v", r)
		}
		switch {
		case !r.final && r.close:
			t.Errorf("an interim response says close: %v", r)
		case r.final && r.late && !r.close:
			t.Errorf("a response that began after the stop does not say close: %v", r)
		}
		if i >= len(want.responses) {
			if !want.dropped() {
				t.Errorf("a response too many: %v", r)
			}
		} else if diff := cmp.Diff(want.responses[i].text, r.text); diff != "" {
			t.Errorf("response %d (-net/http +ours):\n%s", i, diff)
		}
		told = r.final && r.close
	}
	told = told || got.dropped() // nothing more is owed
	if !told && len(got.responses) < len(want.responses) {
		t.Errorf("lost: %v\nafter %v", want.responses[len(got.responses):], got.responses)
	}
	n := min(len(got.given), len(want.given))
	given := got.given
	if want.dropped() {
		given = given[:n]
	}
	if diff := cmp.Diff(want.given[:n], given); diff != "" {
		t.Errorf("the handler was given (-net/http +ours):\n%s", diff)
	}
	if !told && n < len(want.given) {
		t.Errorf("not handled: %q", want.given[n:])
	}
}

func getOf(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// headOf returns the header of a request with a body of n bytes.
func headOf(target string, n int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", target, n)
}

func postOf(target, body string) string { return headOf(target, len(body)) + body }

// expecting makes a request's header ask for 100 Continue.
func expecting(head string) string {
	return strings.Replace(head, "Host", "Expect: 100-continue\r\nHost", 1)
}

// TestExchanges sends what has led or may lead a server astray, stops the server
// before each piece, and compares with net/http. Among the faults that were found
// in an earlier core, which served what came behind a response with another
// http.Server:
//
//   - a request's body was answered as a request, when net/http had the request's
//     header in its buffer: behind a line that ended at the buffer's edge;
//   - with EnableFullDuplex and an unread body a byte of the next request was lost
//     to a read that was still waiting: another request was handled than was sent;
//   - CR and LF behind the body of a POST were answered with 400;
//   - a handler's own "Connection: keep-alive", or a ReverseProxy's clearing of the
//     header behind a 103, undid the farewell, and requests were lost by it;
//   - interim responses said close, upon which Node's client ends.
func TestExchanges(t *testing.T) {
	smuggled := getOf("/smuggled")
	head := headOf("/second", len(smuggled))
	const first = "GET /composed HTTP/1.1\r\nHost: x\r\n"
	long := "X-Long: " + strings.Repeat("a", 4095-len("X-Long: ")-1) + "\r" // the line without its LF
	chunked := "POST /composed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n" +
		"1\r\nz\r\n0\r\nT: u\r\n\r\n"
	const pause = ""
	cases := map[string][]string{
		"in turn":               {getOf("/a"), getOf("/b"), postOf("/c", "body"), getOf("/d")},
		"pipelined":             {getOf("/a") + getOf("/b") + postOf("/c", "body") + getOf("/d")},
		"pipelined, slow":       {getOf("/slow") + getOf("/b") + postOf("/slow", smuggled) + getOf("/d"), pause, pause, pause, pause, pause, pause},
		"pipelined, begun":      {getOf("/begun") + head + smuggled, pause, getOf("/c"), pause, pause, pause, getOf("/d")},
		"half behind":           {getOf("/a") + head[:20], head[20:] + smuggled, getOf("/c")},
		"half behind a slow":    {getOf("/composed") + head[:20], pause, pause, pause, pause, head[20:] + smuggled, getOf("/c")},
		"half behind a begun":   {getOf("/begun") + head[:20], pause, pause, pause, pause, head[20:] + smuggled, getOf("/c")},
		"body behind":           {getOf("/composed") + head, pause, pause, pause, pause, pause, smuggled},
		"body behind a begun":   {getOf("/begun") + head, pause, pause, pause, pause, pause, smuggled, getOf("/c")},
		"a line at the edge":    {first, long, "\n\r\n" + head, pause, pause, pause, pause, smuggled},
		"aligned to the edge":   {first + "X-A: " + strings.Repeat("a", 4091) + "\n" + long + "\n\r\n" + head, pause, pause, pause, pause, smuggled},
		"chunks and a trailer":  {chunked + head, pause, pause, pause, pause, pause, smuggled, getOf("/c")},
		"full duplex":           {postOf("/duplex", "0123456789"), pause, pause, pause, pause, pause, "XGET /next HTTP/1.1\r\nHost: x\r\n\r\n"},
		"full duplex, ahead":    {postOf("/duplex", "0123456789"), "XGET /next HTTP/1.1\r\nHost: x\r\n\r\n", pause, pause, pause, pause},
		"unread":                {postOf("/unread", smuggled), getOf("/b")},
		"unread, half":          {headOf("/unread", 9) + "four", "fives" + getOf("/b"), getOf("/c")},
		"unread, too long":      {postOf("/unread", strings.Repeat("x", 300<<10)), getOf("/b")},
		"stray line ends":       {postOf("/composed", "0123456789"), "\r\n", pause, pause, pause, getOf("/b")},
		"stray and nothing":     {postOf("/composed", "0123456789") + "\r\n", pause, pause, pause, pause, pause, "\r", "\n"},
		"stray, and half":       {postOf("/a", "0123456789") + "\r\n" + head[:3], head[3:] + smuggled, getOf("/c")},
		"expect":                {expecting(head), smuggled, getOf("/b")},
		"expect, unread":        {expecting(headOf("/unread", 4)), "body", getOf("/b")},
		"HTTP/1.0":              {"GET /composed HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", pause, pause, pause, pause, pause, "GET /b HTTP/1.0\r\n\r\n"},
		"an upgrade refused":    {"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: y\r\n\r\n", getOf("/b")},
		"interim":               {getOf("/hints"), getOf("/hints"), getOf("/b")},
		"interim, pipelined":    {getOf("/hints") + getOf("/hints") + getOf("/b"), pause, pause, pause},
		"nonsense behind":       {getOf("/composed") + "nonsense\r\n\r\n", pause, pause, pause, pause, pause},
		"nonsense":              {getOf("/a"), "nonsense\r\n\r\n"},
		"an unfinished request": {getOf("/a"), head + smuggled[:5]},
	}
	for _, v := range []string{"keep-alive", "close", "Upgrade", "x, keep-alive", "delete", "clear"} {
		q := "?connection=" + url.QueryEscape(v)
		cases["Connection by the handler: "+v] = []string{
			getOf("/a" + q), getOf("/composed" + q), pause, pause, pause, pause, pause, pause,
			getOf("/begun" + q), pause, pause, pause, pause, pause, pause, getOf("/hints" + q), pause, getOf("/b"),
		}
	}
	for size := 4093; size < 4100; size++ {
		// The body, or the header, ends at the edge of net/http's buffer.
		fill := strings.Repeat("x", size)
		body := fill[len(headOf("/composed", size)):]
		cases[fmt.Sprint("a body up to ", size)] = []string{postOf("/composed", body) + head, pause, pause, pause, pause, pause, smuggled}
		cases[fmt.Sprint("a header up to ", size)] = []string{
			first + "X: " + fill[:size-len(first)-len("X: \r\n\r\n")] + "\r\n\r\n" + head, pause, pause, pause, pause, pause, smuggled,
		}
	}
	for name, pieces := range cases {
		for _, through := range []string{"TCP", "TLS", "a proxy"} {
			secure, proxied := through == "TLS", through == "a proxy"
			if proxied && !strings.HasPrefix(name, "interim") && !strings.HasPrefix(name, "Connection") {
				continue
			}
			t.Run(name+"/"+through, func(t *testing.T) {
				want := playExchange(t, pieces, -1, secure, proxied)
				if len(want.responses) == 0 {
					t.Fatal("net/http does not answer: nothing is tested")
				}
				for stop := range len(pieces) + 1 {
					compareExchange(t, want, playExchange(t, pieces, stop, secure, proxied))
					if t.Failed() {
						t.Fatalf("stopped before piece %d", stop)
					}
				}
			})
		}
	}
}
