// Package counter counts what is in flight: a [Counter] what comes and goes with
// every request, a [Gauge] what is rare.
package counter

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// A Counter counts what is in flight without making the cores wait for each
// other: each core has, most of the time, a shard of its own. It can be closed,
// once and for good. It then admits nothing more, and tells when it has reached
// zero. The zero value is ready for use. All methods may be called
// concurrently.
//
// Until it is closed, an addition or subtraction is one atomic addition to a
// shard and one load of flags, which are not written meanwhile. Done and Close
// sum the shards under mu and with a flag set, which makes additions wait for
// mu. So no shard rises while they are summed: the sum may be too large, if a
// shard that has been read sinks, but never too small.
type Counter struct {
	flags atomic.Uint32
	next  atomic.Uint32           // number of shards handed out
	all   atomic.Pointer[[]Shard] // nil until first used
	local sync.Pool               // of *Shard: the one that this core used last
	_     [64]byte                // keeps what is written below off the flags' cache line

	mu   sync.Mutex    // guards zero, and every move between shards
	zero chan struct{} // closed when the flag closed is set and the sum is 0
}

const (
	closed   = 1 << iota // for good
	settling             // while a sum is made
)

// A Shard fills two cache lines: processors fetch them in pairs.
type Shard struct {
	n atomic.Int64
	_ [120]byte
}

// pick returns the Shard of the core that it runs on, most of the time.
func (c *Counter) pick() *Shard {
	s, _ := c.local.Get().(*Shard)
	if s == nil {
		s = c.fresh()
	}
	c.local.Put(s)
	return s
}

// fresh returns the shard for a core that has none.
func (c *Counter) fresh() *Shard {
	all := c.shards()
	return &all[c.next.Add(1)%uint32(len(all))]
}

// shards returns all shards, and makes them when first called: more than
// there are cores, so that two of them seldom share one after the pool has
// forgotten who had which.
func (c *Counter) shards() []Shard {
	if all := c.all.Load(); all != nil {
		return *all
	}
	all := make([]Shard, min(4*runtime.GOMAXPROCS(0), 256))
	if !c.all.CompareAndSwap(nil, &all) {
		return *c.all.Load()
	}
	return all
}

// Add counts n > 0 more and returns the Shard that they are in. It reports false
// once the Counter is closed.
func (c *Counter) Add(n int) (*Shard, bool) {
	s := c.pick()
	// The addition comes before the look at the flags, and in Close and Done
	// the flag before the look at the shards. So either the addition is in their
	// sum or the flag is seen here.
	s.n.Add(int64(n))
	if c.flags.Load() == 0 {
		return s, true
	}
	s.n.Add(-int64(n))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&closed != 0 {
		// What was just taken back may have hidden the zero from the last
		// Done.
		c.tellZeroLocked()
		return nil, false
	}
	s.n.Add(int64(n))
	return s, true
}

// Done counts n > 0 fewer in s, the Shard that Add has returned, or if s is nil
// in that of this core. It reports whether there were so many. If there were
// not, nothing has changed.
func (c *Counter) Done(s *Shard, n int) bool {
	if s == nil {
		s = c.pick()
	}
	if s.n.Add(-int64(n)) >= 0 && c.flags.Load() == 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags.Or(settling)
	defer c.flags.And(^uint32(settling))
	if c.Sum() < 0 {
		s.n.Add(int64(n))
		return false
	}
	c.settleLocked(s)
	c.tellZeroLocked()
	return true
}

// settleLocked brings s back to zero or above with what other shards have:
// some were added on another core than the one they are done on. It takes
// half of what the richest has, so that not each Done comes here.
func (c *Counter) settleLocked(s *Shard) {
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

// Close closes the Counter and returns a channel that is closed once it has
// reached zero.
func (c *Counter) Close() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags.Or(closed)
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	c.tellZeroLocked()
	return c.zero
}

func (c *Counter) tellZeroLocked() {
	if c.zero == nil || c.Sum() != 0 {
		return
	}
	select {
	case <-c.zero:
	default:
		close(c.zero)
	}
}

// Sum returns the count. It is exact while nothing is added and nothing done.
func (c *Counter) Sum() int64 {
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

// A Gauge counts what is rare. It panics when it falls below zero. The zero value
// is ready for use. All methods may be called concurrently.
type Gauge struct {
	mu   sync.Mutex // guards n and zero
	n    int
	zero chan struct{} // nil unless Reached was called; closed, and set to nil, at zero
}

// Add counts n more, or if n is negative fewer.
func (g *Gauge) Add(n int) {
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

// Count returns the count.
func (g *Gauge) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// Reached returns a channel that is closed when the count is zero, nil if it is
// now.
func (g *Gauge) Reached() <-chan struct{} {
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
