package graceful

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// A counter counts what is in flight without making the cores wait for each
// other: each core has, most of the time, a shard of its own. It can be
// closed, once and for good; then it admits nothing more, and tells when it
// has reached zero.
//
// Serving, an addition or subtraction is one atomic addition to a shard and
// one load of flags, which nobody writes. All sums are made under mu, and
// with a flag set, so that additions stand aside; that is what makes a sum
// trustworthy: while it is made nothing goes up any more, so what it has read
// can only have become too large, never too small.
type counter struct {
	flags atomic.Uint32
	next  atomic.Uint32           // number of shards handed out
	all   atomic.Pointer[[]shard] // nil until first used
	local sync.Pool               // of *shard: the one that this core used last
	_     [64]byte                // keeps what is written below off the flags' cache line

	mu   sync.Mutex    // guards zero, and every move between shards
	zero chan struct{} // closed once counterClosed is set and the sum is 0
}

const (
	counterClosed   = 1 << iota // for good
	counterSettling             // while a sum is made
)

// A shard fills two cache lines: processors fetch them in pairs.
type shard struct {
	n atomic.Int64
	_ [120]byte
}

// pick returns the shard of the core it runs on, or nearly so.
func (c *counter) pick() *shard {
	s, _ := c.local.Get().(*shard)
	if s == nil {
		s = c.fresh()
	}
	c.local.Put(s)
	return s
}

// fresh returns the shard for a core that has none.
func (c *counter) fresh() *shard {
	all := c.shards()
	return &all[c.next.Add(1)%uint32(len(all))]
}

// shards returns all shards, and makes them when first called: more than
// there are cores, so that two of them seldom share one after the pool has
// forgotten who had which.
func (c *counter) shards() []shard {
	if all := c.all.Load(); all != nil {
		return *all
	}
	all := make([]shard, min(4*runtime.GOMAXPROCS(0), 256))
	if !c.all.CompareAndSwap(nil, &all) {
		return *c.all.Load()
	}
	return all
}

// add counts n > 0 more and returns the shard that they are in. Once the
// counter is closed it returns ErrDraining.
func (c *counter) add(n int) (*shard, error) {
	s := c.pick()
	// First the addition, then the look at the flags; close and done first
	// set a flag, then read the shards. So either the addition is in their
	// sum or the flag is seen here.
	s.n.Add(int64(n))
	if c.flags.Load() == 0 {
		return s, nil
	}
	s.n.Add(-int64(n))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&counterClosed != 0 {
		// What was just taken back may have hidden the zero from the last
		// done.
		c.tellZeroLocked()
		return nil, ErrDraining
	}
	s.n.Add(int64(n))
	return s, nil
}

// done counts n > 0 fewer. It reports whether there were so many; if there
// were not, nothing has changed.
func (c *counter) done(s *shard, n int) bool {
	if s.n.Add(-int64(n)) >= 0 && c.flags.Load() == 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags.Or(counterSettling)
	defer c.flags.And(^uint32(counterSettling))
	if c.sum() < 0 {
		s.n.Add(int64(n))
		return false
	}
	c.settleLocked(s)
	c.tellZeroLocked()
	return true
}

// settleLocked brings s back to zero or above with what other shards have:
// some were added on another core than the one they are done on. It takes
// half of what the richest has, lest each done come here.
func (c *counter) settleLocked(s *shard) {
	all := c.shards()
	for range all {
		if s.n.Load() >= 0 {
			return
		}
		rich := &all[0]
		for i := range all {
			if all[i].n.Load() > rich.n.Load() {
				rich = &all[i]
			}
		}
		n := (rich.n.Load() + 1) / 2
		rich.n.Add(-n)
		s.n.Add(n)
	}
}

// close closes the counter and returns a channel that is closed once it has
// reached zero.
func (c *counter) close() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags.Or(counterClosed)
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	c.tellZeroLocked()
	return c.zero
}

func (c *counter) tellZeroLocked() {
	if c.zero == nil || c.sum() != 0 {
		return
	}
	select {
	case <-c.zero:
	default:
		close(c.zero)
	}
}

// sum is exact while no addition can come, and a fair guess otherwise.
func (c *counter) sum() int64 {
	var sum int64
	all := c.all.Load()
	if all == nil {
		return 0
	}
	for i := range *all {
		sum += (*all)[i].n.Load()
	}
	return sum
}

// A gauge counts what is too rare or too dear to be worth a shard. It
// panics when it falls below zero.
type gauge struct {
	mu   sync.Mutex    // guards n and zero
	n    int           //
	zero chan struct{} // nil unless somebody waits; closed, and forgotten, at zero
}

func (g *gauge) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n += n
	if g.n < 0 {
		panic("graceful: negative count")
	}
	if g.n == 0 && g.zero != nil {
		close(g.zero)
		g.zero = nil
	}
}

func (g *gauge) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// reached returns a channel that is closed once the count is zero, nil if it
// is that already.
func (g *gauge) reached() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n == 0 {
		return nil
	}
	if g.zero == nil {
		g.zero = make(chan struct{})
	}
	return g.zero
}
