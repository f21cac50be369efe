package graceful

import (
	"fmt"
	"net"
	"sync"
	"testing/synctest"
	"time"
)

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
	var tr *turns
	if p.turns {
		tr = new(turns)
	}
	a.nc, a.c = track(p.m, a.fake, p.limit, tr)
	return a
}

func (a *actor) String() string { return fmt.Sprintf("#%d", a.id) }

// startReader reads as the server of a protocol does that waits for what comes
// next: until the end if states are reported, for one turn if not.
func (a *actor) startReader() { a.read(4096, a.c.turns == nil) }

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
	if a.c.turns == nil && a.c.load().state() != connHijacked {
		a.c.gone()
	}
}

func (a *actor) beginWrite() {
	a.fake.blockWrites()
	go a.nc.Write([]byte("answer"))
	synctest.Wait()
}
