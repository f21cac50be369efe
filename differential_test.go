package graceful_test

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// The differential test of HTTP/1: a client sends what it likes around a stop,
// and net/http without a stop says what has to be answered, in which order and
// with which bytes. What a stream is, a generator decides by bytes that choose
// productions of a grammar, so that most are nearly valid, and lines, headers
// and bodies end at the edges of net/http's buffers.
//
// For an hour on each release:
//
//	go test -run '^TestDifferential$' -differential 1h -timeout 2h .
//	GOTOOLCHAIN=go1.27.3 go test -run '^TestDifferential$' -differential 1h -timeout 2h .
//
// A failure names its seed: -differential-seed runs that one alone, and prints
// the stream.

var (
	diffFor  = flag.Duration("differential", 2*time.Second, "how long TestDifferential runs")
	diffSeed = flag.Uint64("differential-seed", 0, "run the one stream of this seed")
	diffOnly = flag.String("differential-faults", "", "report only faults that match this `regexp`")
	diffMax  = flag.Int("differential-max", 10, "end after so many faults")
)

// diffShow, if not nil, is given what the servers did.
var diffShow func(format string, args ...any)

func TestDifferential(t *testing.T) {
	if *diffSeed != 0 {
		f := newDiffScript(diffDice(*diffSeed))
		t.Log(f)
		diffShow = t.Logf
		var n diffCounts
		if fault := f.run(t, &n); fault != "" {
			t.Errorf("seed %d: %s", *diffSeed, fault)
		}
		return
	}
	only := regexp.MustCompile(*diffOnly)
	first := uint64(1)
	if *diffFor > 2*time.Second {
		first = uint64(time.Now().UnixNano())
	}
	var n diffCounts
	began := time.Now()
	faults := 0
	for seed := first; time.Since(began) < *diffFor; seed++ {
		fault := newDiffScript(diffDice(seed)).run(t, &n)
		if fault != "" && only.MatchString(fault) {
			t.Errorf("seed %d: %s", seed, fault)
			if faults++; faults == *diffMax {
				break
			}
		}
	}
	t.Logf("%s in %v from seed %d, %.0f streams/h", n, time.Since(began).Round(time.Second), first,
		float64(n.streams)/time.Since(began).Hours())
}

func FuzzDifferential(f *testing.F) {
	for seed := range uint64(20) {
		b := make([]byte, 64)
		for i, d := 0, diffDice(seed+1); i < len(b); i++ {
			b[i] = byte(d(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		script := newDiffScript(func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0])
			b = b[1:]
			if n > 256 && len(b) > 0 {
				v = v<<8 | int(b[0])
				b = b[1:]
			}
			return v % n
		})
		var n diffCounts
		if fault := script.run(t, &n); fault != "" {
			t.Errorf("%s\n%s", fault, script)
		}
	})
}

// diffDice returns a function that returns numbers below its argument.
func diffDice(seed uint64) func(n int) int {
	return rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)).IntN
}

// diffCounts says what was tried.
type diffCounts struct {
	streams, stops, inHandler, responses, unanswered, overTLS int

	unsteady int // of net/http's answers only another run's were ours
}

func (n diffCounts) String() string {
	return fmt.Sprintf("%d streams (%d over TLS), %d stops, %d of them inside a handler, %d responses compared, %d requests left to the client, %d that net/http does not always answer the same",
		n.streams, n.overTLS, n.stops, n.inHandler, n.responses, n.unanswered, n.unsteady)
}

// A diffScript is what a client does, and when the server is stopped.
type diffScript struct {
	stream   []byte
	ends     map[int]bool  // offsets in stream between two requests
	pieces   []diffPiece   // of stream, in order
	holds    map[int]int   // for how many pieces a gate stays shut, by its number
	stopAt   int           // before this piece; len(pieces) for after the last; -1 for not so
	stopGate int           // at this gate of a handler; -1 for not so
	late     time.Duration // from the stop to the next thing
	delay    time.Duration // Server.ShutdownDelay
	tls      int           // 0 none, 1 the server's own, 2 a listener's
}

type diffPiece struct {
	end   int           // offset in stream
	pause time.Duration // before it
}

func (s *diffScript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stop before piece %d or at gate %d, then %v; delay %v; TLS %d; holds %v\n",
		s.stopAt, s.stopGate, s.late, s.delay, s.tls, s.holds)
	from := 0
	for i, p := range s.pieces {
		text := strconv.Quote(string(s.stream[from:p.end]))
		if len(text) > 600 {
			text = text[:300] + " ... " + text[len(text)-300:]
		}
		fmt.Fprintf(&b, "%2d: after %v, %d bytes to %d: %s\n", i, p.pause, p.end-from, p.end, text)
		from = p.end
	}
	return b.String()
}

// A diffWriter writes a stream by the grammar.
type diffWriter struct {
	roll func(n int) int
	b    []byte
	cuts []int // offsets at which a piece may end
	ids  int
}

func (w *diffWriter) put(format string, args ...any) { w.b = fmt.Appendf(w.b, format, args...) }

func (w *diffWriter) chance(n int) bool { return w.roll(n) == n-1 }

// cut marks the offset as one at which a piece may end.
func (w *diffWriter) cut() { w.cuts = append(w.cuts, len(w.b)) }

func newDiffScript(roll func(n int) int) *diffScript {
	w := &diffWriter{roll: roll}
	s := &diffScript{ends: map[int]bool{0: true}, holds: make(map[int]int), stopAt: -1, stopGate: -1}
	for range 1 + roll(4) {
		w.request()
		w.cut()
		s.ends[len(w.b)] = true
		switch roll(12) {
		case 9, 10:
			for range 1 + roll(2) {
				w.put("\r\n")
				w.cut()
				s.ends[len(w.b)] = true
			}
		case 11:
			w.put("X") // it is the beginning of the next one's method
			w.cut()
		}
	}
	s.stream = w.b
	s.split(w)
	if roll(3) > 0 {
		s.stopGate = roll(3)
	} else {
		s.stopAt = roll(len(s.pieces) + 1)
	}
	for gate := range 6 {
		s.holds[gate] = roll(4)
	}
	s.late = diffPauses[roll(len(diffPauses))]
	if roll(4) == 3 {
		s.delay = 300 * ms
	}
	if roll(16) == 15 {
		s.tls = 1 + roll(2)
	}
	return s
}

// diffPauses are about the quiet window of 500 ms, and less than what half a
// request is waited for.
var diffPauses = []time.Duration{0, 0, 0, 10 * ms, 100 * ms, 499 * ms, 501 * ms, 1200 * ms}

// split decides where the pieces of the stream end.
func (s *diffScript) split(w *diffWriter) {
	at := make(map[int]bool)
	switch w.roll(4) {
	case 0: // all at once
	case 1: // where requests end
		for end := range s.ends {
			at[end] = true
		}
	case 2: // some of the marks
		for _, c := range w.cuts {
			if w.roll(2) == 0 {
				at[c] = true
			}
		}
	case 3: // anywhere, and about the marks
		for range 1 + w.roll(4) {
			at[w.roll(len(s.stream))] = true
		}
		for range w.roll(3) {
			at[w.cuts[w.roll(len(w.cuts))]+w.roll(5)-2] = true
		}
	}
	for i := 1; i < len(s.stream); i++ {
		if at[i] {
			s.pieces = append(s.pieces, diffPiece{end: i, pause: diffPauses[w.roll(len(diffPauses))]})
		}
		if len(s.pieces) == 40 {
			break
		}
	}
	s.pieces = append(s.pieces, diffPiece{end: len(s.stream), pause: diffPauses[w.roll(len(diffPauses))]})
}

// smuggled returns a request that is never sent: it stands in a body.
func (w *diffWriter) smuggled() string {
	w.ids++
	return fmt.Sprintf("GET /0/%d HTTP/1.1\r\nHost: evil\r\n\r\n", 1000+w.ids)
}

// diffUnsent matches what smuggled has written.
var diffUnsent = regexp.MustCompile(`^GET /0/\d{4}$`)

// request writes a request, nearly valid.
func (w *diffWriter) request() {
	w.ids++
	start := len(w.b)
	method := []string{"GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"}[w.roll(9)]
	proto := "HTTP/1.1"
	if w.chance(8) {
		proto = "HTTP/1.0"
	}
	nl := "\r\n"
	if w.chance(8) {
		nl = "\n"
	}
	w.put("%s /%x/%d %s%s", method, w.plan(), w.ids, proto, nl)
	if !w.chance(40) {
		w.put("Host: h%s", nl)
	}
	var body string
	kind := 0
	if method != "GET" && method != "HEAD" || w.chance(12) {
		kind = 1 + w.roll(5)
		body = w.body()
	}
	if proto == "HTTP/1.0" {
		kind = min(kind, 1)
		if w.roll(2) == 0 {
			w.put("Connection: keep-alive%s", nl)
		}
	} else if w.chance(24) {
		w.put("Connection: close%s", nl)
	}
	if kind > 0 && w.chance(6) {
		w.put("Expect: 100-continue%s", nl)
	}
	if w.chance(20) {
		w.put("Connection: Upgrade%sUpgrade: websocket%s", nl, nl)
	}
	switch {
	case kind > 3: // chunked
		w.put("Transfer-Encoding: chunked%s", nl)
		if w.chance(3) {
			w.put("Trailer: X-T%s", nl)
		}
		if w.chance(40) {
			w.put("Content-Length: %d%s", len(body), nl)
		}
	case kind > 0:
		w.put("Content-Length: %d%s", len(body), nl)
	}
	if w.chance(40) {
		w.put("%s%s", []string{"Bad Header: x", ": x", "X-Bad\x01: x", "Content-Length: 7"}[w.roll(4)], nl)
	}
	w.long(start, nl)
	w.cut()
	w.put("%s", nl)
	w.cut()
	switch {
	case kind > 3:
		w.chunked(body, nl)
	case kind > 0:
		at := w.roll(len(body) + 1)
		w.put("%s", body[:at])
		w.cut()
		w.put("%s", body[at:])
	}
}

// long writes a header field, or two, whose lines end at an edge of a buffer
// of 4096 bytes, counted from the line's beginning, the request's or the
// connection's.
func (w *diffWriter) long(start int, nl string) {
	pad := func(name string, to int) {
		// to is how many bytes there are to be before the line's LF.
		n := to - len(name) - len(": ") - (len(nl) - 1)
		if n < 0 {
			n += 4096
		}
		w.put("%s: %s", name, strings.Repeat("a", n))
		w.cut()
		w.put("%s", nl[:len(nl)-1])
		w.cut()
		w.put("%s", nl[len(nl)-1:])
		w.cut()
	}
	edge := 4094 + w.roll(4)
	switch w.roll(10) {
	case 6:
		pad("X-Line", edge)
	case 7:
		pad("X-Conn", edge-len(w.b)%4096)
	case 8:
		pad("X-Req", edge-(len(w.b)-start)%4096)
	case 9: // aligns, so that the next line begins with an empty buffer
		pad("X-Align", 4095-(len(w.b)-start)%4096)
		pad("X-Line", edge)
	}
}

// body returns what a body consists of: often of requests.
func (w *diffWriter) body() string {
	switch w.roll(8) {
	case 0:
		return ""
	case 1:
		return "0123456789"
	case 2, 3:
		return w.smuggled()
	case 4:
		return "\r\n" + w.smuggled()
	case 5: // to an edge
		b := strings.Repeat(w.smuggled(), 100)
		n := 4096 - len(w.b)%4096 + w.roll(68) // the header goes on for some 60 bytes
		return b[:n%len(b)]
	case 6:
		return strings.Repeat("x", 4090+w.roll(10)) + w.smuggled()
	}
	if w.chance(8) {
		return strings.Repeat("x", 300<<10) // more than net/http reads behind an answer
	}
	return strings.Repeat("x", 1+w.roll(9000)) + w.smuggled()
}

func (w *diffWriter) chunked(body, nl string) {
	for len(body) > 0 {
		n := 1 + w.roll(len(body))
		if w.roll(2) == 0 {
			n = len(body)
		}
		w.put("%x", n)
		if w.chance(6) {
			w.put(";ext=%s", strings.Repeat("e", w.roll(20)))
		}
		w.put("%s", nl)
		w.cut()
		w.put("%s", body[:n])
		w.cut()
		if w.chance(60) {
			w.put("!")
		}
		w.put("%s", nl)
		body = body[n:]
	}
	w.put("0%s", nl)
	w.cut()
	if w.chance(3) {
		w.put("X-T: t%s", nl)
		w.cut()
	}
	w.put("%s", nl)
}

// A diffPlan says what a handler does with a request. It stands in the target,
// as a number of these digits.
type diffPlan struct {
	respond    int // 12
	body       int // 5: when the handler reads it
	gateFirst  int // 4: a gate before everything, if 3
	duplex     int // 4: EnableFullDuplex, if 3
	interim    int // 8: a 103 first, if 7
	connection int // 12: what it does with the field Connection
}

func (w *diffWriter) plan() int {
	n := 0
	for _, size := range diffPlanSizes {
		n = n*size + w.roll(size)
	}
	return n
}

var diffPlanSizes = []int{12, 5, 4, 4, 8, 12}

func parseDiffPlan(n int) (p diffPlan) {
	fields := []*int{&p.respond, &p.body, &p.gateFirst, &p.duplex, &p.interim, &p.connection}
	for i := len(fields) - 1; i >= 0; i-- {
		*fields[i] = n % diffPlanSizes[i]
		n /= diffPlanSizes[i]
	}
	return p
}

// A diffSide is one of the two servers, seen by its client.
type diffSide struct {
	mu      sync.Mutex // guards what follows
	entered []string   // each request that a handler was given
	state   http.ConnState
	gate    chan struct{}
	gates   int // there have been
}

// wait is a gate: a handler waits there until the client lets it go on.
func (d *diffSide) wait() {
	ch := make(chan struct{})
	d.mu.Lock()
	d.gate = ch
	d.gates++
	d.mu.Unlock()
	<-ch
}

// ServeHTTP carries out the plan in the target.
func (d *diffSide) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.entered = append(d.entered, r.Method+" "+r.URL.Path)
	d.mu.Unlock()
	var n, id int
	fmt.Sscanf(r.URL.Path, "/%x/%d", &n, &id)
	p := parseDiffPlan(n)
	h := w.Header()
	h.Set("X-Id", fmt.Sprint(id))
	h.Set("X-Method", r.Method)
	switch p.connection {
	case 8:
		h.Set("Connection", "keep-alive")
	case 9:
		h.Set("connection", "close")
	case 10:
		h.Del("Connection")
	case 11:
		h["Connection"] = []string{"X-Method", "Keep-Alive"}
	}
	rc := http.NewResponseController(w)
	if p.duplex == 3 {
		rc.EnableFullDuplex()
	}
	if p.gateFirst == 3 {
		d.wait()
	}
	if p.interim == 7 {
		w.WriteHeader(http.StatusEarlyHints)
	}
	sum := "unread"
	read := func(when int, n int64) {
		if p.body == when {
			b, err := io.ReadAll(io.LimitReader(r.Body, n))
			sum = fmt.Sprintf("%d bytes %08x %v", len(b), crc32.ChecksumIEEE(b), err)
			if err == nil && len(r.Trailer) > 0 {
				sum += r.Trailer.Get("X-T")
			}
		}
	}
	read(0, 1<<20)
	read(1, 10)
	done := func() { // the end of every answer
		read(2, 1<<20)
		fmt.Fprintf(w, "<%d %s>", id, sum)
	}
	const lookalike = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
	switch p.respond {
	case 0, 1, 2:
		done()
	case 3: // composed, and not sent
		h.Set("Content-Length", "3001")
		io.WriteString(w, strings.Repeat("x", 3000))
		d.wait()
		io.WriteString(w, "y")
		read(2, 1<<20)
	case 4: // sent
		rc.Flush()
		d.wait()
		done()
	case 5: // bodies that look like a header
		io.WriteString(w, strings.Repeat(lookalike, 80))
		d.wait()
		io.WriteString(w, strings.Repeat(lookalike, 80))
		done()
	case 6:
		h.Set("Content-Length", fmt.Sprint(2*len(lookalike)))
		io.WriteString(w, lookalike)
		rc.Flush()
		d.wait()
		io.WriteString(w, lookalike)
		read(2, 1<<20)
	case 7:
		w.WriteHeader([]int{204, 304, 404, 500}[id%4])
		d.wait()
		read(2, 1<<20)
	case 8: // a header of more than a buffer
		for i := range 5 {
			h.Set(fmt.Sprintf("X-Long-%d", i), strings.Repeat("l", 1000))
		}
		d.wait()
		done()
	case 9:
		h.Set("Trailer", "X-Sum")
		done()
		d.wait()
		h.Set("X-Sum", sum)
	case 10:
		done()
		d.wait()
	case 11:
		if id%4 == 3 {
			rc.Flush()
			d.wait()
			panic(http.ErrAbortHandler)
		}
		d.wait()
		done()
	}
}

// A diffMoment is what the client knows at a moment.
type diffMoment struct {
	entered int // requests that handlers have been given
	got     int // bytes
	closed  bool
}

// A diffRun is what one of the servers did.
type diffRun struct {
	before, after []diffMoment // of sending each piece
	out           []byte
	entered       []string
	stopPiece     int  // when the stop came, -1 for not at all
	inHandler     bool // at the stop a handler was at work
	tookTooLong   bool
	busy          bool // at the end it waits for the rest of a body
	panicked      bool // net/http has, of itself
}

// run runs the stream against both servers, and returns what is wrong.
func (s *diffScript) run(t *testing.T, n *diffCounts) (fault string) {
	defer func() {
		if v := recover(); v != nil {
			fault = fmt.Sprintf("leaks: %v", v)
		}
	}()
	var ref, got diffRun
	synctest.Test(t, func(t *testing.T) { ref = s.serve(false) })
	synctest.Test(t, func(t *testing.T) { got = s.serve(true) })
	n.streams++
	if s.tls > 0 {
		n.overTLS++
	}
	if got.stopPiece >= 0 {
		n.stops++
		if got.inHandler {
			n.inHandler++
		}
	}
	fault = s.compare(ref, got, n)
	for range 20 {
		if fault == "" {
			break
		}
		// net/http itself does not always do the same with one stream: where a
		// handler has left a body unread, its reading ahead races with it.
		synctest.Test(t, func(t *testing.T) { ref = s.serve(false) })
		if again := s.compare(ref, got, new(diffCounts)); again == "" {
			n.unsteady++
			fault = ""
		}
	}
	return fault
}

// serve sends the stream to a server: ours, which is stopped, or net/http's.
func (s *diffScript) serve(ours bool) diffRun {
	side := new(diffSide)
	var errors diffCounter
	hs := &http.Server{Handler: side, ErrorLog: log.New(&errors, "", 0)}
	hs.ConnState = func(_ net.Conn, state http.ConnState) {
		side.mu.Lock()
		side.state = state
		side.mu.Unlock()
	}
	l := &diffListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	cl, sv := newDiffConn()
	var client net.Conn = cl
	var listener net.Listener = l
	var config *tls.Config
	if s.tls > 0 {
		config = diffTLS().Clone()
		client = tls.Client(cl, &tls.Config{InsecureSkipVerify: true})
	}
	if s.tls == 2 {
		listener, config = tls.NewListener(l, config), nil
	}
	hs.TLSConfig = config
	served := make(chan struct{})
	srv := &graceful.Server{Server: hs, NoSignalHandling: true, ShutdownDelay: s.delay, IdleGrace: 500 * ms}
	go func() {
		defer close(served)
		switch {
		case ours && config != nil:
			srv.ServeTLS(listener, "", "")
		case ours:
			srv.Serve(listener)
		case config != nil:
			hs.ServeTLS(listener, "", "")
		default:
			hs.Serve(listener)
		}
	}()
	l.conns <- sv
	if c, ok := client.(*tls.Conn); ok {
		c.Handshake()
	}
	out := make(chan []byte, 1)
	var got diffCounter
	go func() {
		io.Copy(&got, client)
		out <- got.bytes()
	}()
	synctest.Wait()

	r := diffRun{stopPiece: -1}
	moment := func() diffMoment {
		side.mu.Lock()
		defer side.mu.Unlock()
		return diffMoment{len(side.entered), got.len(), sv.isClosed()}
	}
	stop := func(piece int) {
		if r.stopPiece >= 0 {
			return
		}
		r.stopPiece = piece
		if ours {
			side.mu.Lock()
			r.inHandler = side.gate != nil
			side.mu.Unlock()
			srv.Stop(0)
		}
		time.Sleep(s.late)
		synctest.Wait()
	}
	seen, held := 0, 0
	pass := func(piece int, last bool) { // lets handlers go on that are to
		for {
			side.mu.Lock()
			gate, number := side.gate, side.gates-1
			side.mu.Unlock()
			if gate == nil {
				return
			}
			if number >= seen {
				seen, held = number+1, s.holds[number]
				if number == s.stopGate {
					stop(piece)
				}
			}
			if held > 0 && !last {
				held--
				return
			}
			side.mu.Lock()
			side.gate = nil
			side.mu.Unlock()
			close(gate)
			synctest.Wait()
		}
	}
	from := 0
	for i, p := range s.pieces {
		time.Sleep(p.pause)
		if i == s.stopAt {
			stop(i)
		}
		synctest.Wait()
		r.before = append(r.before, moment())
		client.Write(s.stream[from:p.end])
		from = p.end
		synctest.Wait()
		pass(i, i == len(s.pieces)-1)
		r.after = append(r.after, moment())
	}
	stop(len(s.pieces))
	synctest.Wait()
	if ours {
		// A connection that has nothing to say ends with the quiet window,
		// and half a request is given up.
		for range 12 {
			time.Sleep(time.Second)
			synctest.Wait()
			pass(len(s.pieces), true)
			if isClosedChan(served) {
				break
			}
		}
		r.tookTooLong = !isClosedChan(served)
		r.before = append(r.before, moment())
	}
	side.mu.Lock()
	r.busy = side.state == http.StateActive
	side.mu.Unlock()
	cl.CloseWrite()
	synctest.Wait()
	pass(len(s.pieces), true)
	if ours {
		srv.Close()
	} else {
		hs.Close()
	}
	<-served
	r.out = <-out
	r.entered = side.entered
	client.Close()
	time.Sleep(time.Second) // what net/http waits before it closes behind a response that says so
	synctest.Wait()
	r.panicked = bytes.Contains(errors.bytes(), []byte("panic serving"))
	return r
}

// isClosedChan reports whether the channel has been closed.
func isClosedChan(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// compare returns what is wrong with what our server did; "" if nothing. If
// net/http has panicked in the reference, as it does where a handler has called
// EnableFullDuplex and left a body unread, it says only what came before.
func (s *diffScript) compare(ref, got diffRun, n *diffCounts) string {
	want, have := parseDiff(ref.out), parseDiff(got.out)
	if diffShow != nil {
		diffShow("net/http: %q %v\n%v", ref.entered, ref.after, want)
		diffShow("ours: %q %v\n%v", got.entered, got.after, have)
	}

	// What was answered.
	for i, h := range have {
		if h.interim() && h.close && !(i < len(want) && want[i].close) {
			return fmt.Sprintf("interim: response %d, a %d, says close", i, h.status)
		}
		if i >= len(want) && ref.panicked {
			break
		}
		if i >= len(want) {
			return fmt.Sprintf("answered what net/http does not: response %d of %d: %s", i, len(want), h)
		}
		if h.same(want[i]) {
			continue
		}
		if i == len(have)-1 && !h.whole && want[i].whole {
			return fmt.Sprintf("cut: response %d is cut short: %s\nwant %s", i, h, want[i])
		}
		return fmt.Sprintf("differs: response %d is\n%s\nwant\n%s", i, h, want[i])
	}
	n.responses += len(have)

	// What handlers were given.
	for i, e := range got.entered {
		if i >= len(ref.entered) && ref.panicked && !diffUnsent.MatchString(e) {
			continue
		}
		if i >= len(ref.entered) || e != ref.entered[i] {
			return fmt.Sprintf("smuggled: a handler was given %q as request %d; net/http's were given %q", e, i, ref.entered)
		}
	}
	if got.tookTooLong && !ref.busy {
		return "hangs: the stop has not ended 12 s after the last byte"
	}
	said := false
	answered := 0
	for i, h := range have {
		if said {
			return fmt.Sprintf("after close: response %d follows one that said close: %s", i, h)
		}
		if !h.interim() {
			answered++
			said = h.close || !h.framed
		}
	}
	if said {
		n.unanswered += len(want) - len(have)
		if answered < len(got.entered) {
			return fmt.Sprintf("processed: %d requests were given to handlers, %d are answered", len(got.entered), answered)
		}
		return ""
	}
	if len(have) >= len(want) {
		return ""
	}

	// The connection ended without a farewell, and net/http has answered more:
	// had more been sent when it ended?
	n.unanswered += len(want) - len(have)
	var known diffMoment // net/http, at that time
	end := len(s.pieces)
	for i := range s.pieces {
		if got.before[i].closed {
			if i > 0 {
				known = ref.after[i-1]
			}
			end = i
			break
		}
		if got.after[i].closed {
			known = ref.after[i]
			end = i + 1
			break
		}
		known = ref.after[i]
	}
	if full := parseDiff(ref.out[:known.got]); len(have) < len(full) && full[len(have)].whole {
		return fmt.Sprintf("lost: %d responses and no farewell; net/http had answered %d by piece %d, the next with %s",
			len(have), len(full), end, full[len(have)])
	}
	if known.entered > answered {
		return fmt.Sprintf("lost: %d responses and no farewell; net/http's handlers were given %q by piece %d", answered, ref.entered[:known.entered], end)
	}
	return ""
}

// A diffResponse is a response on the wire.
type diffResponse struct {
	status int
	head   string // without Date and Connection
	body   string
	close  bool
	framed bool // its end does not depend on the connection's
	whole  bool
}

func (r diffResponse) interim() bool { return r.status/100 == 1 && r.status != 101 }

func (r diffResponse) String() string {
	s := fmt.Sprintf("%q %q", r.head, r.body)
	if len(s) > 700 {
		s = s[:500] + " ... " + s[len(s)-200:]
	}
	return fmt.Sprintf("%s close=%v whole=%v", s, r.close, r.whole)
}

// same reports whether r is as good an answer as the reference's.
func (r diffResponse) same(want diffResponse) bool {
	return r.head == want.head && r.body == want.body && r.whole == want.whole
}

// parseDiff splits what a server has sent into responses. What is no response
// becomes one that no other is the same as.
func parseDiff(b []byte) []diffResponse {
	var rs []diffResponse
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte("\r\n\r\n"))
		if !ok {
			return append(rs, diffResponse{status: 999, head: string(b), framed: true})
		}
		var r diffResponse
		method := ""
		length := -1
		chunked := false
		var kept []string
		keepAlive := false
		for i, line := range strings.Split(string(head), "\r\n") {
			if i == 0 {
				fmt.Sscanf(line, "HTTP/1.%d %d", new(int), &r.status)
				kept = append(kept, line)
				continue
			}
			k, v, _ := strings.Cut(line, ": ")
			switch strings.ToLower(k) {
			case "date":
				continue
			case "connection":
				r.close = r.close || v == "close"
				keepAlive = keepAlive || v == "keep-alive"
				continue
			case "x-method":
				method = v
			case "content-length":
				length, _ = strconv.Atoi(v)
			case "transfer-encoding":
				chunked = v == "chunked"
			}
			kept = append(kept, line)
		}
		r.head = strings.Join(kept, "\n")
		r.framed, r.whole = true, true
		b = rest
		switch {
		case r.interim() || method == "HEAD" || r.status == 204 || r.status == 304:
		case chunked:
			n := diffChunkedLen(b)
			if r.whole = n >= 0; !r.whole {
				n = len(b)
			}
			r.body, b = string(b[:n]), b[n:]
		case length >= 0:
			r.whole = len(b) >= length
			length = min(length, len(b))
			r.body, b = string(b[:length]), b[length:]
		default:
			r.framed = false
			r.body, b = string(b), nil
		}
		rs = append(rs, r)
	}
	return rs
}

// diffChunkedLen returns the length of the chunked body that b begins with,
// trailers included; -1 if it is not whole.
func diffChunkedLen(b []byte) int {
	at := 0
	line := func() string {
		i := bytes.Index(b[at:], []byte("\r\n"))
		if i < 0 {
			return "-"
		}
		s := string(b[at : at+i])
		at += i + 2
		return s
	}
	for {
		n, err := strconv.ParseInt(line(), 16, 32)
		if err != nil {
			return -1
		}
		if n == 0 {
			for {
				switch line() {
				case "":
					return at
				case "-":
					return -1
				}
			}
		}
		if at += int(n); at > len(b) || line() != "" {
			return -1
		}
	}
}

// A diffCounter collects what is written to it.
type diffCounter struct {
	mu sync.Mutex // guards b
	b  []byte
}

func (c *diffCounter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b = append(c.b, p...)
	return len(p), nil
}

func (c *diffCounter) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.b)
}

func (c *diffCounter) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b
}

// diffTLS is made once: its keys take longer than a stream.
var diffTLS = sync.OnceValue(func() *tls.Config {
	config := traffic.ServerTLS().Clone()
	config.NextProtos = []string{"http/1.1"}
	return config
})

// A diffListener accepts what is put into conns.
type diffListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *diffListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *diffListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *diffListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// A diffConn is one end of a connection in memory. A Write never waits.
type diffConn struct {
	in, out *diffPipe
}

func newDiffConn() (client, server *diffConn) {
	a, b := new(diffPipe), new(diffPipe)
	a.changed.L, b.changed.L = &a.mu, &b.mu
	return &diffConn{a, b}, &diffConn{b, a}
}

func (c *diffConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *diffConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *diffConn) Close() error {
	c.CloseWrite()
	c.in.end(&c.in.closed)
	return nil
}

func (c *diffConn) CloseWrite() error {
	c.out.end(&c.out.eof)
	return nil
}

// isClosed reports whether this end has been closed.
func (c *diffConn) isClosed() bool {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.eof
}

func (c *diffConn) LocalAddr() net.Addr                { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }
func (c *diffConn) RemoteAddr() net.Addr               { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 99} }
func (c *diffConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *diffConn) SetWriteDeadline(t time.Time) error { return nil }

func (c *diffConn) SetReadDeadline(t time.Time) error {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.alarm != nil {
		p.alarm.Stop()
		p.alarm = nil
	}
	if d := time.Until(t); !t.IsZero() && d > 0 {
		p.alarm = time.AfterFunc(d, p.wake)
	}
	p.changed.Broadcast()
	return nil
}

// A diffPipe is one direction of a connection.
type diffPipe struct {
	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	buf      bytes.Buffer
	eof      bool // the writer has closed
	closed   bool // the reader has
	deadline time.Time
	alarm    *time.Timer
}

func (p *diffPipe) wake() { p.end(new(bool)) }

// end sets the flag and wakes whoever waits.
func (p *diffPipe) end(flag *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*flag = true
	p.changed.Broadcast()
}

func (p *diffPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, net.ErrClosed
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			return 0, os.ErrDeadlineExceeded // before bytes that are there, as package net has it
		case p.buf.Len() > 0:
			return p.buf.Read(b)
		case p.eof:
			return 0, io.EOF
		}
		p.changed.Wait()
	}
}

func (p *diffPipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.eof:
		return 0, net.ErrClosed
	case p.closed:
		return 0, io.ErrClosedPipe
	}
	p.changed.Broadcast()
	return p.buf.Write(b)
}
