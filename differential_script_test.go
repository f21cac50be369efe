package graceful_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A diffScript is what a client does, and when the server is stopped.
type diffScript struct {
	seed     uint64 // 0 if a fuzzer's bytes made it
	stream   []byte
	ends     map[int]bool  // offsets in stream between two requests
	requests []int         // offsets of the ends of the requests
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

// within reports whether the request behind the first n has begun before the
// piece, has not ended, and can't have been given up, which takes five seconds
// from its beginning. CR and LF begin none.
func (s *diffScript) within(piece, n int) bool {
	whole, begin := 0, 0
	offset := s.pieces[piece-1].end
	for _, end := range s.requests {
		if end <= offset {
			whole++
		}
	}
	for end := range s.ends {
		if end <= offset {
			begin = max(begin, end)
		}
	}
	if whole < n || strings.Trim(string(s.stream[begin:offset]), "\r\n") == "" {
		return false
	}
	age := s.late
	for i := piece; i > 0 && s.pieces[i-1].end > begin; i-- {
		age += s.pieces[i].pause
	}
	return age < 5*time.Second
}

func (s *diffScript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d; stop before piece %d or at gate %d, then %v; delay %v; TLS %d; holds %v\n",
		s.seed, s.stopAt, s.stopGate, s.late, s.delay, s.tls, s.holds)
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

	heads []int // offsets of the ends of the headers
}

func (w *diffWriter) put(format string, args ...any) { w.b = fmt.Appendf(w.b, format, args...) }

func (w *diffWriter) chance(n int) bool { return w.roll(n) == n-1 }

// cut marks the offset as one at which a piece may end.
func (w *diffWriter) cut() { w.cuts = append(w.cuts, len(w.b)) }

// newSeededScript returns the stream of a seed.
func newSeededScript(seed uint64) *diffScript {
	s := newDiffScript(diffDice(seed))
	s.seed = seed
	return s
}

func newDiffScript(roll func(n int) int) *diffScript {
	w := &diffWriter{roll: roll}
	s := &diffScript{ends: map[int]bool{0: true}, holds: make(map[int]int), stopAt: -1, stopGate: -1}
	aim := roll(8)
	aimed := aim == 7
	for i := range 1 + roll(4) {
		r := w.newRequest()
		if aimed {
			w.aim(&r, i)
		}
		w.request(r)
		s.requests = append(s.requests, len(w.b))
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
	for gate := range 6 {
		s.holds[gate] = roll(4)
	}
	if aimed {
		s.splitAimed(w)
		s.stopGate = 0
		s.holds[0] = roll(2) // 0 is before the body of the second comes
	} else if aim == 6 && len(w.heads) > 1 {
		// The stop comes when a request's end and the half of the next one's
		// header have come at once.
		s.splitAt(map[int]bool{w.heads[0]: roll(2) == 1, w.heads[1] - 1 - roll(40): true, w.heads[1] - 1: roll(2) == 1}, w)
		s.stopAt = 1 + roll(2)
	} else {
		s.split(w)
		if roll(3) > 0 {
			s.stopGate = roll(3)
		} else {
			s.stopAt = roll(len(s.pieces) + 1)
		}
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
	s.splitAt(at, w)
}

// splitAimed cuts the stream of diffWriter.aim: behind the second request's
// header, and perhaps in the first's.
func (s *diffScript) splitAimed(w *diffWriter) {
	at := make(map[int]bool)
	if len(w.heads) > 1 {
		at[w.heads[1]] = true
	}
	if w.roll(2) == 0 {
		for _, c := range w.cuts {
			if c < w.heads[0] && w.roll(2) == 0 {
				at[c] = true
			}
		}
	}
	s.splitAt(at, w)
}

func (s *diffScript) splitAt(at map[int]bool, w *diffWriter) {
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

// A diffRequest says how a request is written.
type diffRequest struct {
	method, proto, nl string
	plan              diffPlan
	chunked           bool
	body              string // "" for none, without a header field that says so for GET and HEAD
	long, edge        int    // see diffWriter.long
	upgrade, expect   bool
	connection        string // "" for no such field
	noHost            bool
	bad               string // a field that should not be, if not ""
}

// newRequest returns a request, nearly valid.
func (w *diffWriter) newRequest() diffRequest {
	r := diffRequest{
		method:  []string{"GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"}[w.roll(9)],
		proto:   "HTTP/1.1",
		nl:      "\r\n",
		plan:    w.newPlan(),
		long:    w.roll(10),
		edge:    4094 + w.roll(4),
		upgrade: w.chance(20),
		noHost:  w.chance(40),
	}
	if w.chance(8) {
		r.nl = "\n"
	}
	if r.method != "GET" && r.method != "HEAD" || w.chance(12) {
		r.chunked = w.roll(5) > 2
		r.body = w.body()
		r.expect = w.chance(6)
	}
	if w.chance(24) {
		r.connection = "close"
	}
	if w.chance(8) {
		r.proto, r.chunked, r.connection = "HTTP/1.0", false, []string{"", "keep-alive"}[w.roll(2)]
	}
	if w.chance(40) {
		r.bad = []string{"Bad Header: x", ": x", "X-Bad\x01: x", "Content-Length: 7"}[w.roll(4)]
	}
	return r
}

// aim makes the stream one in which a byte could be taken for another's: the
// header of the first request ends at an edge of the buffer, its response is
// composed and not sent when the stop comes, and behind it stands the header
// of a second, whose body is a request.
func (w *diffWriter) aim(r *diffRequest, i int) {
	r.proto, r.nl, r.noHost, r.bad, r.connection, r.upgrade = "HTTP/1.1", "\r\n", false, "", "", false
	switch i {
	case 0:
		r.method, r.body, r.chunked = []string{"GET", "POST"}[w.roll(2)], "", false
		r.plan = diffPlan{respond: 3}
		r.long = []int{6, 9}[r.long%2]
		if r.method == "POST" {
			r.body = "0123456789"
			r.plan.body = w.roll(5)
			r.plan.duplex = w.roll(4)
		}
	case 1:
		r.method, r.body, r.chunked, r.long = "POST", w.smuggled(), false, 0
	}
}

// request writes a request.
func (w *diffWriter) request(r diffRequest) {
	w.ids++
	start := len(w.b)
	field := func(format string, args ...any) {
		w.put(format, args...)
		w.put("%s", r.nl)
	}
	field("%s /%x/%d %s", r.method, r.plan.number(), w.ids, r.proto)
	if !r.noHost {
		field("Host: h")
	}
	if r.connection != "" {
		field("Connection: %s", r.connection)
	}
	if r.upgrade {
		field("Connection: Upgrade")
		field("Upgrade: websocket")
	}
	if r.expect {
		field("Expect: 100-continue")
	}
	switch {
	case r.chunked:
		field("Transfer-Encoding: chunked")
		field("Trailer: X-T")
	case r.body != "" || r.method != "GET" && r.method != "HEAD":
		field("Content-Length: %d", len(r.body))
	}
	if r.bad != "" {
		field("%s", r.bad)
	}
	w.long(r, start)
	w.cut()
	w.put("%s", r.nl)
	w.cut()
	w.heads = append(w.heads, len(w.b))
	if r.chunked {
		w.chunked(r.body, r.nl)
		return
	}
	at := w.roll(len(r.body) + 1)
	w.put("%s", r.body[:at])
	w.cut()
	w.put("%s", r.body[at:])
}

// long writes a header field, or two, whose lines end at an edge of a buffer
// of 4096 bytes, counted from the line's beginning, the request's or the
// connection's.
func (w *diffWriter) long(r diffRequest, start int) {
	pad := func(name string, to int) {
		// to is how many bytes there are to be before the line's LF.
		n := to - len(name) - len(": ") - (len(r.nl) - 1)
		if n < 0 {
			n += 4096
		}
		w.cut()
		w.put("%s: %s", name, strings.Repeat("a", n))
		w.cut()
		w.put("%s", r.nl[:len(r.nl)-1])
		w.cut()
		w.put("\n")
		w.cut()
	}
	switch r.long {
	case 6:
		pad("X-Line", r.edge)
	case 7:
		pad("X-Conn", r.edge-len(w.b)%4096)
	case 8:
		pad("X-Req", r.edge-(len(w.b)-start)%4096)
	case 9: // a line that fills the buffer, so that the next begins where it is empty
		pad("X-Align", 4094+w.roll(4))
		pad("X-Line", r.edge)
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

// diffPlanSizes are how many values the digits take.
var diffPlanSizes = []int{12, 5, 4, 4, 8, 12}

func (w *diffWriter) newPlan() diffPlan {
	n := 0
	for _, size := range diffPlanSizes {
		n = n*size + w.roll(size)
	}
	return parseDiffPlan(n)
}

// number returns p as parseDiffPlan takes it.
func (p diffPlan) number() int {
	n := 0
	for i, digit := range []int{p.respond, p.body, p.gateFirst, p.duplex, p.interim, p.connection} {
		n = n*diffPlanSizes[i] + digit
	}
	return n
}

func parseDiffPlan(n int) (p diffPlan) {
	fields := []*int{&p.respond, &p.body, &p.gateFirst, &p.duplex, &p.interim, &p.connection}
	for i := len(fields) - 1; i >= 0; i-- {
		*fields[i] = n % diffPlanSizes[i]
		n /= diffPlanSizes[i]
	}
	return p
}
