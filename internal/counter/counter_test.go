package counter

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCounter(t *testing.T) {
	var c Counter
	s, ok := c.Add(3)
	if !ok || c.Sum() != 3 {
		t.Fatal(c.Sum())
	}
	if !c.Done(s, 1) || !c.Done(nil, 1) || c.Sum() != 1 {
		t.Error(c.Sum())
	}
	if c.Done(nil, 2) || c.Sum() != 1 {
		t.Error("more done than there were")
	}
	zero := c.Close()
	select {
	case <-zero:
		t.Error("zero")
	default:
	}
	if _, ok := c.Add(1); ok {
		t.Error("added to a closed Counter")
	}
	if !c.Done(nil, 1) {
		t.Error("not done")
	}
	<-zero
	<-c.Close()
}

// What is added on one core is done on another, while the Counter is closed:
// nothing is lost, and zero is told when it is reached and not before.
func TestCounterConcurrently(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for range 100 {
		var c Counter
		var all sync.WaitGroup
		var held atomic.Int64 // added, and Done is not called yet
		start := make(chan struct{})
		for range 4 {
			work := make(chan *Shard, 16)
			all.Go(func() {
				defer close(work)
				<-start
				for range 1000 {
					s, ok := c.Add(1)
					if !ok {
						return
					}
					held.Add(1)
					work <- s
				}
			})
			all.Go(func() {
				for s := range work {
					held.Add(-1)
					if !c.Done(s, 1) {
						t.Error("Done failed")
					}
				}
			})
		}
		close(start)
		runtime.Gosched()
		<-c.Close()
		// Not Sum: an Add that is being refused is in it for a moment.
		if n := held.Load(); n != 0 {
			t.Errorf("%d at zero", n)
		}
		all.Wait()
		if n := c.Sum(); n != 0 {
			t.Errorf("%d at the end", n)
		}
	}
}

func TestGauge(t *testing.T) {
	var g Gauge
	if g.Reached() != nil {
		t.Error("not zero")
	}
	g.Add(2)
	zero := g.Reached()
	g.Add(-2)
	<-zero
	if g.Count() != 0 || g.Reached() != nil {
		t.Error(g.Count())
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	g.Add(-1)
}
