package graceful

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	modelRuns = flag.Int("model.runs", 0, "how many sequences TestModel plays for each protocol; 0 means as many as take 2 s")
	modelSeed = flag.Uint64("model.seed", 0, "play this sequence of TestModel only; 0 means new ones each time")
)

// TestModel plays random sequences of what can happen to connections, for a
// protocol that reports its states (as HTTP does) and for one whose states come
// from Read and Write. After each event the manager and the reference must agree:
// on which connections are open and in which state, which were ended and when (to
// the nanosecond), and when the drain was over. A failure names the seed that
// replays it:
//
//	go test -run 'TestModel' -model.seed 1234
func TestModel(t *testing.T) {
	for _, protocol := range []string{"states", "turns"} {
		t.Run(protocol, func(t *testing.T) {
			if *modelSeed != 0 {
				playModel(t, protocol, *modelSeed)
				return
			}
			for n, began := 0, time.Now(); n < *modelRuns || *modelRuns == 0 && time.Since(began) < 2*time.Second; n++ {
				if playModel(t, protocol, rand.Uint64()); t.Failed() {
					return
				}
			}
		})
	}
}

func playModel(t *testing.T, protocol string, seed uint64) {
	var p *play
	defer func() {
		if e := recover(); e != nil { // the bubble's deadlock, for one
			t.Errorf("%v", e)
		}
		if t.Failed() {
			t.Logf("replay with -run 'TestModel/%s' -model.seed %d\n%+v", protocol, seed, p.ref.rules)
			for _, s := range p.steps {
				t.Log(s)
			}
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		p = newPlay(t, protocol, rand.New(rand.NewPCG(seed, 0)))
		for range 10 + p.rng.IntN(60) {
			p.event()
			if t.Failed() {
				return
			}
		}
		p.end()
	})
}

// A play is one sequence: the manager, the reference, and the actors on both.
type play struct {
	t     *testing.T
	rng   *rand.Rand
	m     *manager
	ref   *reference
	turns bool
	limit *limiter
	conns []*actor
	steps []string

	mu     sync.Mutex    // guards what follows
	doneAt time.Duration // -1 until then
}

func newPlay(t *testing.T, protocol string, rng *rand.Rand) *play {
	p := &play{t: t, rng: rng, turns: protocol == "turns", limit: newLimiter(8), doneAt: -1}
	pick := func(ds ...time.Duration) time.Duration { return ds[rng.IntN(len(ds))] }
	rules := drainRules{
		grace:        pick(0, 100*time.Millisecond, 500*time.Millisecond, 2*time.Second),
		receiving:    pick(0, time.Second, receivingLimit),
		waitHijacked: rng.IntN(2) == 0,
	}
	if p.turns {
		rules.patience = pick(0, 300*time.Millisecond, 3*time.Second)
	}
	p.m = newManager(rules)
	p.ref = newReference(rules)
	go p.m.run()
	go func() {
		<-p.m.done
		p.mu.Lock()
		defer p.mu.Unlock()
		p.doneAt = p.now()
	}()
	return p
}

func (p *play) now() time.Duration { return time.Since(p.m.began) }

func (p *play) say(format string, args ...any) {
	p.steps = append(p.steps, fmt.Sprintf("%14v  ", p.now())+fmt.Sprintf(format, args...))
}

// event lets something happen that can, and compares.
func (p *play) event() {
	switch n := p.rng.IntN(20); {
	case n < 5:
		p.sleep()
	case n < 8:
		p.accept()
	case n == 8 && p.rng.IntN(3) == 0:
		p.drain()
	case n == 9 && p.rng.IntN(3) == 0:
		p.seal()
	case n == 10 && p.rng.IntN(12) == 0:
		p.kill()
	default:
		if open := p.open(); len(open) > 0 {
			a := open[p.rng.IntN(len(open))]
			if p.turns {
				p.turnsEvent(a)
			} else {
				p.statesEvent(a)
			}
		}
	}
	p.compare()
}

// end lets the drain come to its end, one way or the other.
func (p *play) end() {
	p.drain()
	p.compare()
	p.seal()
	p.compare()
	if p.rng.IntN(3) == 0 {
		p.sleep()
		p.compare()
		p.kill()
		p.compare()
	}
	for _, a := range p.open() {
		p.sleep()
		p.compare()
		if a.ref.open() && a.ref.writing > 0 {
			p.hasWritten(a)
			p.compare()
		}
		if a.ref.open() {
			a.hangUp()
			p.say("%v: the server closes", a)
			p.ref.close(a.ref)
			p.compare()
		}
	}
	if p.ref.doneAt < 0 && !p.t.Failed() {
		p.t.Error("all are closed, and the reference is not done")
	}
	for _, a := range p.conns {
		if a.ref.over == "left" {
			a.hangUp()
			a.ref.slot = false
		}
	}
	p.compare()
}

func (p *play) sleep() {
	d := time.Duration(p.rng.Int64N(int64([]time.Duration{
		time.Millisecond, 200 * time.Millisecond, time.Second, 6 * time.Second,
	}[p.rng.IntN(4)])))
	time.Sleep(d + 1)
	synctest.Wait()
	p.ref.advance(p.now())
	p.say("after %v", d+1)
}

func (p *play) accept() {
	if p.ref.sealed || p.ref.doneAt >= 0 {
		return
	}
	room := p.limit.tryAcquire()
	if room != (p.ref.slots() < 8) {
		p.t.Errorf("room in the limit: %v, the reference has %d slots taken", room, p.ref.slots())
	}
	if !room {
		return
	}
	a := newActor(p, len(p.conns))
	a.ref = p.ref.add(p.turns)
	p.conns = append(p.conns, a)
	p.say("%v: accepted", a)
	p.ref.settle()
	if !p.m.added(a.c) {
		p.t.Error("the manager has gone")
	}
	a.startReader()
}

func (p *play) drain() {
	if p.ref.draining {
		return
	}
	p.say("the drain begins")
	p.m.signal(p.m.begin)
	p.ref.drain()
}

func (p *play) seal() {
	if !p.ref.draining || p.ref.sealed {
		return
	}
	p.say("sealed")
	p.m.signal(p.m.sealed)
	p.ref.sealed = true
	p.ref.settle()
}

func (p *play) kill() {
	if !p.ref.draining || p.ref.doneAt >= 0 {
		return
	}
	p.say("killed")
	left := p.m.abandon()
	var got, want []string
	for _, c := range left {
		i := slices.IndexFunc(p.conns, func(a *actor) bool { return a.c == c })
		got = append(got, p.conns[i].String())
	}
	for _, a := range p.conns {
		if a.ref.open() {
			want = append(want, a.String())
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		p.t.Errorf("those left for the kill (-want +got):\n%s", d)
	}
	for _, c := range left {
		c.cutSoon()
	}
	p.ref.kill()
}

func (p *play) open() []*actor {
	return slices.DeleteFunc(slices.Clone(p.conns), func(a *actor) bool { return !a.ref.open() })
}

// statesEvent does something that the protocol above or the peer may do now.
func (p *play) statesEvent(a *actor) {
	r := a.ref
	switch r.state {
	case connNew, connIdle, connReceiving:
		switch n := p.rng.IntN(8); {
		case n == 0:
			p.say("%v: the peer closes", a)
			a.fake.peerCloses()
			p.ref.close(r)
		case r.state == connReceiving && n < 6, r.state == connIdle && r.streams && n < 4:
			streams := r.streams || p.rng.IntN(6) == 0
			p.say("%v: active, streams %v", a, streams)
			a.activate(streams)
			p.ref.activate(r, streams)
		default:
			p.say("%v: bytes", a)
			a.fake.peerSends(1 + p.rng.IntN(3))
			p.ref.bytes(r)
		}
	case connActive:
		switch n := p.rng.IntN(10); {
		case n == 0:
			p.say("%v: the server closes", a)
			a.hangUp()
			p.ref.close(r)
		case n == 1 && !r.streams:
			p.say("%v: hijacked", a)
			a.stopReader()
			a.c.setState(connHijacked)
			p.ref.hijack(r)
		case n == 2 && !r.peerGone:
			p.say("%v: bytes ahead", a)
			a.fake.peerSends(1 + p.rng.IntN(3))
			p.ref.bytes(r)
		case n == 3 && !r.streams && !r.ahead && !r.peerGone && p.ref.rules.grace > 0:
			p.say("%v: the peer closes", a)
			a.fake.peerCloses()
			r.peerGone = true
		case n < 7:
			p.say("%v: written", a)
			a.nc.Write([]byte("answer"))
		default:
			p.say("%v: idle", a)
			a.idle(r.streams)
			p.ref.idle(r)
		}
	case connHijacked:
		if p.rng.IntN(2) == 0 {
			p.say("%v: the hijacker closes", a)
			a.hangUp()
			p.ref.close(r)
		}
	}
}

// turnsEvent does something that a protocol may do which reports nothing.
func (p *play) turnsEvent(a *actor) {
	r := a.ref
	switch n := p.rng.IntN(12); {
	case n < 3:
		p.say("%v: bytes", a)
		r.unread += a.fake.peerSends(1)
		p.ref.turn(r)
	case n < 5 && !r.reading:
		p.say("%v: reads", a)
		r.reading = true
		p.ref.turn(r) // idle, perhaps, if only for a moment
		a.startReader()
	case n < 7 && r.writing == 0:
		p.say("%v: begins to write", a)
		r.asked = false
		r.writing++
		a.beginWrite()
		p.ref.turn(r)
	case n < 9 && r.writing > 0:
		p.hasWritten(a)
	case n == 9 && r.busy < 3:
		p.say("%v: busy", a)
		r.busy++
		a.holds = append(a.holds, a.c.ioState.hold(a.c))
		p.ref.turn(r)
	case n == 10 && r.busy > 0:
		p.say("%v: no longer busy", a)
		r.busy--
		done := a.holds[len(a.holds)-1]
		a.holds = a.holds[:len(a.holds)-1]
		done()
		done() // once is enough
		p.ref.turn(r)
	case n == 11 && r.reading && r.writing == 0:
		p.say("%v: the peer closes", a)
		a.fake.peerCloses()
		p.ref.close(r)
	}
}

func (p *play) hasWritten(a *actor) {
	p.say("%v: has written", a)
	a.ref.writing--
	a.fake.letWritesEnd()
	p.ref.turn(a.ref)
}

// compare looks whether the manager and the reference agree.
func (p *play) compare() {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	doneAt := p.doneAt
	p.mu.Unlock()
	if doneAt != p.ref.doneAt {
		p.t.Errorf("over at %v, by the reference %v", doneAt, p.ref.doneAt)
	}
	got, alive := p.m.count()
	if !alive {
		got = p.m.last
	}
	if d := cmp.Diff(p.ref.census(), got, cmp.AllowUnexported(census{})); d != "" {
		p.t.Errorf("census (-reference +manager):\n%s", d)
	}
	for _, a := range p.conns {
		a.mu.Lock()
		closedAt := a.closedAt
		a.mu.Unlock()
		if want := a.ref.overAt; closedAt != want && a.ref.over != "left" {
			p.t.Errorf("%v was closed at %v, by the reference (%s) %v", a, closedAt, a.ref.over, want)
		}
		if want, got := !a.ref.slot, a.c.has(flagReleased); want != got {
			p.t.Errorf("%v gave its slot back: %v; by the reference %v", a, got, want)
		}
	}
	if got, want := len(p.limit.slots), p.ref.slots(); got != want {
		p.t.Errorf("%d slots are taken; by the reference %d", got, want)
	}
}

// An actor is one connection: the tracked one, the fake below it, and the
// goroutine that reads it.
type actor struct {
	p    *play
	id   int
	nc   net.Conn // wrapped
	c    *conn
	fake *fakeConn
	ref  *refConn

	holds  []func()
	reader chan struct{} // closed when the reader has ended; nil if there never was one

	mu       sync.Mutex // guards what follows
	aborting bool
	closedAt time.Duration // -1 until then
}

func newActor(p *play, id int) *actor {
	a := &actor{p: p, id: id, closedAt: -1}
	a.fake = newFakeConn(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.closedAt = p.now()
	})
	var tr *ioState
	if p.turns {
		tr = new(ioState)
	}
	a.nc, a.c = track(p.m, a.fake, p.limit, tr)
	return a
}

func (a *actor) String() string { return fmt.Sprintf("#%d", a.id) }

// startReader reads as the server of a protocol does that waits for what comes
// next: until the end if states are reported, for one turn if not.
func (a *actor) startReader() { a.read(4096, a.c.ioState == nil) }

func (a *actor) read(size int, on bool) {
	done := make(chan struct{})
	a.reader = done
	go func() {
		defer close(done)
		for {
			_, err := a.nc.Read(make([]byte, size))
			a.mu.Lock()
			aborting := a.aborting
			a.mu.Unlock()
			switch {
			case err == nil && on:
				continue
			case err == nil || aborting || size == 1:
				return
			}
			a.hangUp()
			return
		}
	}()
}

// stopReader does what net/http does to its background reads.
func (a *actor) stopReader() {
	a.mu.Lock()
	a.aborting = true
	a.mu.Unlock()
	a.nc.SetReadDeadline(aLongTimeAgo)
	<-a.reader
	a.nc.SetReadDeadline(time.Time{})
	a.mu.Lock()
	a.aborting = false
	a.mu.Unlock()
}

func (a *actor) activate(streams bool) {
	if !streams {
		a.stopReader()
	} else {
		a.c.set(flagForeign)
	}
	a.c.h1.request(a.c)
	a.c.set(flagInHandler)
	a.c.setState(connActive)
	if !streams {
		a.read(1, false)
	}
}

func (a *actor) idle(streams bool) {
	if !streams {
		a.stopReader()
	}
	a.c.unset(flagInHandler)
	a.c.setState(connIdle)
	if !streams {
		a.startReader()
	}
}

// hangUp closes as the protocol above does.
func (a *actor) hangUp() {
	a.nc.Close()
	if a.c.ioState == nil && a.c.load().state() != connHijacked {
		a.c.gone()
	}
}

func (a *actor) beginWrite() {
	a.fake.blockWrites()
	go a.nc.Write([]byte("answer"))
	synctest.Wait()
}

// A reference says what the manager has to do, in the plainest way that is
// known: it looks at every connection whenever anything happens, and knows no
// events, no queues and no words. Times are since the beginning.
type reference struct {
	rules    drainRules
	now      time.Duration
	draining bool
	began    time.Duration // the drain
	sealed   bool
	conns    []*refConn
	count    census
	doneAt   time.Duration // -1 until then
}

type refConn struct {
	state connState
	since time.Duration

	streams  bool
	ahead    bool // bytes have come that are not this request's
	peerGone bool // the peer has closed, and the server has not read that yet

	// Of a protocol that reports no states.
	turns   bool
	reading bool
	asked   bool
	unread  int
	writing int
	busy    int

	over   string // how it ended; "left" if it is open and the drain does not wait for it
	overAt time.Duration
	slot   bool // has one of the limit
}

func (r *refConn) open() bool { return r.over == "" }

func newReference(rules drainRules) *reference { return &reference{rules: rules, doneAt: -1} }

// due returns when something happens to c by itself, and what: it is ended or
// cut off.
func (f *reference) due(c *refConn) (at time.Duration, what string) {
	switch c.state {
	case connNew:
		// It has been quiet for the quiet window.
		return max(f.began, c.since+f.rules.grace), "ended"
	case connIdle:
		at = c.since + f.rules.grace
		if c.streams {
			// It has to hear the farewell first, which was said when the
			// drain began.
			at = max(at, f.began+f.rules.grace)
		}
		if p := f.rules.patience; p > 0 {
			at = min(at, max(c.since, f.began+p))
		}
		return max(at, f.began), "ended"
	case connReceiving:
		if f.rules.receiving > 0 {
			return max(c.since, f.began) + f.rules.receiving, "gave up"
		}
	}
	return -1, ""
}

// advance lets time pass until to, and all happen that is due by then.
func (f *reference) advance(to time.Duration) {
	for f.draining && f.doneAt < 0 {
		next := to + 1
		for _, c := range f.conns {
			if at, what := f.due(c); c.open() && what != "" && at > f.now {
				next = min(next, at)
			}
		}
		if next > to {
			break
		}
		f.now = next
		f.settle()
	}
	f.now = to
}

// settle ends the connections that have to end now, and the drain if none is left.
func (f *reference) settle() {
	if !f.draining || f.doneAt >= 0 {
		return
	}
	for _, c := range f.conns {
		if at, what := f.due(c); c.open() && at <= f.now {
			switch what {
			case "ended":
				f.count.ended++
				f.over(c, what)
			case "gave up":
				f.count.gaveUp++
				f.over(c, what)
			}
		}
		if c.open() && c.state == connHijacked && !f.rules.waitHijacked {
			f.count.left++
			c.over = "left"
		}
	}
	open := func(c *refConn) bool { return c.open() }
	if f.sealed && !slices.ContainsFunc(f.conns, open) {
		f.doneAt = f.now
	}
}

func (f *reference) over(c *refConn, how string) {
	c.over, c.overAt, c.slot = how, f.now, false
}

func (f *reference) add(turns bool) *refConn {
	c := &refConn{since: f.now, turns: turns, reading: turns, overAt: -1, slot: true}
	f.conns = append(f.conns, c)
	if f.draining {
		f.count.late++
	}
	return c
}

func (f *reference) slots() int {
	n := 0
	for _, c := range f.conns {
		if c.slot {
			n++
		}
	}
	return n
}

func (f *reference) drain() {
	f.draining, f.began = true, f.now
	f.settle()
}

// kill closes what is left.
func (f *reference) kill() {
	f.doneAt = f.now
	for _, c := range f.conns {
		if c.open() {
			f.count.open[c.state]++
			if c.streams {
				f.count.http2++
			}
			f.over(c, "killed")
		}
	}
}

// close ends c for another reason than the drain.
func (f *reference) close(c *refConn) {
	if f.draining {
		if c.state == connReceiving {
			f.count.gaveUp++
		} else {
			f.count.finished++
		}
	}
	f.over(c, "closed")
	f.settle()
}

func (f *reference) enter(c *refConn, s connState) {
	c.state, c.since = s, f.now
	f.settle()
}

// bytes come from the peer.
func (f *reference) bytes(c *refConn) {
	switch {
	case c.streams:
	case c.state == connActive:
		c.ahead = true
	case c.state != connReceiving:
		f.enter(c, connReceiving)
	}
}

func (f *reference) activate(c *refConn, streams bool) {
	c.streams, c.ahead = streams, false
	f.enter(c, connActive)
}

func (f *reference) idle(c *refConn) {
	if c.ahead {
		f.enter(c, connReceiving)
	} else {
		f.enter(c, connIdle)
	}
	if c.peerGone && c.open() {
		f.close(c)
	}
}

func (f *reference) hijack(c *refConn) { f.enter(c, connHijacked) }

// turn finds out where c stands, of a protocol that reports no states: it is
// idle while it waits in Read and nothing was read since the last Write began.
func (f *reference) turn(c *refConn) {
	for {
		switch inUse := c.asked || c.writing > 0 || c.busy > 0; {
		case inUse && c.state != connActive:
			f.enter(c, connActive)
		case !inUse && c.reading && c.state == connActive && c.unread == 0:
			f.enter(c, connIdle)
		case !inUse && c.reading && c.state == connActive:
			c.since = f.now // idle for no time at all
		}
		if !c.reading || c.unread == 0 || !c.open() {
			return
		}
		c.reading, c.asked, c.unread = false, true, 0
	}
}

// census is what the manager's has to be.
func (f *reference) census() census {
	n := f.count
	if f.doneAt >= 0 {
		return n
	}
	for _, c := range slices.DeleteFunc(slices.Clone(f.conns), func(c *refConn) bool { return !c.open() }) {
		n.open[c.state]++
		if c.streams {
			n.http2++
		}
	}
	return n
}

// A fakeConn is a connection whose peer is the test. What has come is read even
// after the deadline.
type fakeConn struct {
	closed func() // called once, by the first Close

	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	unread   int
	eof      bool
	over     bool
	blocking bool // writes
	deadline time.Time
	alarm    *time.Timer
}

func newFakeConn(closed func()) *fakeConn {
	f := &fakeConn{closed: closed}
	f.changed.L = &f.mu
	return f
}

// peerSends lets n bytes come, and returns n.
func (f *fakeConn) peerSends(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unread += n
	f.changed.Broadcast()
	return n
}

func (f *fakeConn) peerCloses() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.eof = true
	f.changed.Broadcast()
}

// blockWrites makes writes block until letWritesEnd, or the end.
func (f *fakeConn) blockWrites() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocking = true
}

func (f *fakeConn) letWritesEnd() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocking = false
	f.changed.Broadcast()
}

func (f *fakeConn) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.over:
			return 0, net.ErrClosed
		case f.unread > 0:
			n := min(len(p), f.unread)
			f.unread -= n
			return n, nil
		case f.eof:
			return 0, io.EOF
		case !f.deadline.IsZero() && !f.deadline.After(time.Now()):
			return 0, os.ErrDeadlineExceeded
		}
		f.changed.Wait()
	}
}

func (f *fakeConn) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.blocking && !f.over {
		f.changed.Wait()
	}
	if f.over {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

func (f *fakeConn) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return net.ErrClosed
	}
	f.over = true
	f.closed()
	f.changed.Broadcast()
	return nil
}

func (f *fakeConn) SetReadDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = t
	if f.alarm != nil {
		f.alarm.Stop()
	}
	if !t.IsZero() {
		f.alarm = time.AfterFunc(time.Until(t), func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.changed.Broadcast()
		})
	}
	f.changed.Broadcast()
	return nil
}

func (f *fakeConn) SetDeadline(t time.Time) error    { return f.SetReadDeadline(t) }
func (f *fakeConn) SetWriteDeadline(time.Time) error { return nil }
func (f *fakeConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (f *fakeConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
