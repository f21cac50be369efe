package graceful

import (
	"flag"
	"fmt"
	"math/rand/v2"
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
// from Read and Write, and looks after each event whether the manager and the
// reference of reference_test.go say the same: who is open and in which state,
// who was ended and when to the nanosecond, and when the drain was over. A failure names the seed that replays it:
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

// A play is one sequence: the manager, the reference, and who acts on both.
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
		half:         pick(0, time.Second, halfRequest),
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
		a.holds = append(a.holds, a.c.turns.hold(a.c))
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
