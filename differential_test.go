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
	"regexp"
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
//	go test -run '^TestDifferential$' -differential 1h -timeout 2h -v .
//	GOTOOLCHAIN=go1.27.3 go test -run '^TestDifferential$' -differential 1h -timeout 2h -v .
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
		f := newSeededScript(*diffSeed)
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
		fault := newSeededScript(seed).run(t, &n)
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
	// Virtual time stands still if something waits for what is no event of the
	// bubble, a mutex say.
	alarm := time.AfterFunc(30*time.Second, func() { panic(fmt.Sprintf("the stream hangs in real time: %s", s)) })
	defer alarm.Stop()
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
	l := newVirtListener()
	cl := l.dial()
	sv := l.conns[0]
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
		return diffMoment{len(side.entered), got.len(), virtClosed(sv.out)}
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

// virtClosed reports whether the writer of p has closed it.
func virtClosed(p *virtPipe) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wclosed
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
		diffShow = nil
	}

	// What handlers were given.
	for i, e := range got.entered {
		if i >= len(ref.entered) && ref.panicked && !diffUnsent.MatchString(e) {
			continue
		}
		if i >= len(ref.entered) || e != ref.entered[i] {
			return fmt.Sprintf("smuggled: a handler was given %q as request %d; net/http's were given %q", e, i, ref.entered)
		}
	}
	// What was answered.
	for i, h := range have {
		if h.interim() && h.close && i < len(want) && !want[i].close {
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

	// Where net/http has panicked, the reference does not say whether a request is
	// still in progress.
	if got.tookTooLong && !ref.busy && !ref.panicked {
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
			end = i
			break
		}
		if known = ref.after[i]; got.after[i].closed {
			end = i + 1
			break
		}
	}
	if end > 0 && end < len(s.pieces) && s.within(end, answered) {
		return fmt.Sprintf("half: %d responses, no farewell, and the connection ends within a request, behind piece %d", len(have), end-1)
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
