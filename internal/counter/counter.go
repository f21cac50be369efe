// Package counter counts what is in flight. A [Counter] is for what begins and
// ends with every request, a [Gauge] for what is rare.
package counter

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// A Counter counts what is in flight without contention between the cores: each
// core uses, most of the time, a shard of its own. A Counter can be closed. It
// then counts nothing more, and a channel is closed when it has reached zero. The
// zero value is ready for use. All methods may be called concurrently.
//
// Until the Counter is closed, Add and Done cost one atomic addition to a shard and
// one load of flags, which are not written meanwhile. To sum the shards, Done and
// Close hold mu and set a flag, which makes Add wait for mu. So no shard rises
// while the shards are summed. The sum may be too large, if a shard falls after it
// was read, but never too small.
type Counter struct {
	flags atomic.Uint32
	next  atomic.Uint32           // how many shards pick has handed out
	all   atomic.Pointer[[]Shard] // nil until first used
	local sync.Pool               // of *Shard: the one that this core used last
	_     [64]byte                // keeps mu off the cache line of flags

	mu   sync.Mutex    // guards zero, and every move between shards
	zero chan struct{} // closed when the flag closed is set and the sum is 0
}

const (
	closed  = 1 << iota // Close was called; never cleared
	summing             // Done is summing the shards
)

// A Shard is a part of a Counter's count. It fills two cache lines, because
// processors fetch them in pairs.
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

// shards returns all shards, and makes them when first called. There are more
// shards than cores, so that two cores seldom share one after the garbage
// collector has emptied the pool.
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

// Add adds n > 0 to the count and returns the Shard that n was added to. It
// reports false, and adds nothing, once the Counter is closed.
func (c *Counter) Add(n int) (*Shard, bool) {
	s := c.pick()
	// The shard is written before the flags are read; in Close and Done a flag is
	// written before the shards are read. So either their sum contains n, or the
	// flag is seen here.
	s.n.Add(int64(n))
	if c.flags.Load() == 0 {
		return s, true
	}
	s.n.Add(-int64(n))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&closed != 0 {
		// While n was added, the last Done may have seen a sum above 0.
		c.tellZeroLocked()
		return nil, false
	}
	s.n.Add(int64(n))
	return s, true
}

// Done subtracts n > 0 from the count: from s, the Shard that Add has returned, or
// if s is nil from the shard of this core. It reports false, and subtracts
// nothing, if the count is less than n.
func (c *Counter) Done(s *Shard, n int) bool {
	if s == nil {
		s = c.pick()
	}
	if s.n.Add(-int64(n)) >= 0 && c.flags.Load() == 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags.Or(summing)
	defer c.flags.And(^uint32(summing))
	if c.Sum() < 0 {
		s.n.Add(int64(n))
		return false
	}
	c.rebalanceLocked(s)
	c.tellZeroLocked()
	return true
}

// rebalanceLocked raises s to zero or above by moving counts from other shards. A
// shard falls below zero when Done runs on another core than Add. It takes half of
// the highest shard, so that rebalancing is seldom needed.
func (c *Counter) rebalanceLocked(s *Shard) {
	all := c.shards()
	for range all {
		if s.n.Load() >= 0 {
			return
		}
		highest := &all[0]
		for i := range all {
			if all[i].n.Load() > highest.n.Load() {
				highest = &all[i]
			}
		}
		n := (highest.n.Load() + 1) / 2
		highest.n.Add(-n)
		s.n.Add(n)
	}
}

// Close closes the Counter and returns a channel that is closed once the count is
// zero. It may be called repeatedly, and returns the same channel.
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

// tellZeroLocked closes zero if the Counter is closed and the count is zero.
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

// Sum returns the count. It is exact if no Add or Done is under way.
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

// A Gauge is a count under a mutex, for what is rare. The zero value is ready for
// use. All methods may be called concurrently.
type Gauge struct {
	mu   sync.Mutex // guards n and zero
	n    int
	zero chan struct{} // nil unless Reached was called; closed, and set to nil, at zero
}

// Add adds n, which may be negative, to the count. It panics if the count falls
// below zero.
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

// Reached returns a channel that is closed when the count reaches zero. It returns
// nil if the count is zero now.
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
