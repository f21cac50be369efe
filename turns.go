package graceful

import "sync"

// turns derives a connection's state from its Reads and Writes alone, for
// protocols that nobody here speaks: it is idle while it waits in Read and no
// byte has been read since the last Write began, and in use otherwise. A
// protocol for which that is wrong says so with Busy.
//
// farewell, if not nil, is called at the first idle moment at which parting
// reports true, once, on a goroutine of its own. Until it returns the
// connection is in use.
type turns struct {
	farewell func()      // immutable
	parting  func() bool // immutable; nil without farewell

	mu      sync.Mutex // guards what follows, and the order of states
	reading bool       // a Read is waiting, or the last one brought nothing
	asked   bool       // bytes were read since the last Write began
	writing int        // Writes under way
	busy    int        // calls of Busy not yet done
	said    bool       // farewell was called
}

func (t *turns) enterRead(c *conn) {
	t.mu.Lock()
	t.reading = true
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) received(c *conn) {
	t.mu.Lock()
	t.reading, t.asked = false, true
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) beginWrite(c *conn) {
	t.mu.Lock()
	t.asked = false
	t.writing++
	t.settleLocked(c)
	t.mu.Unlock()
}

func (t *turns) endWrite(c *conn) {
	t.mu.Lock()
	t.writing--
	t.settleLocked(c)
	t.mu.Unlock()
}

// hold keeps the connection in use until the function that it returns is
// called, once or more often.
func (t *turns) hold(c *conn) (done func()) {
	t.mu.Lock()
	t.busy++
	t.settleLocked(c)
	t.mu.Unlock()
	var once sync.Once
	return func() { once.Do(func() { t.letGo(c) }) }
}

func (t *turns) letGo(c *conn) {
	t.mu.Lock()
	t.busy--
	t.settleLocked(c)
	t.mu.Unlock()
}

// part says farewell if the connection is idle. Otherwise it says it itself
// when it comes to be.
func (t *turns) part(c *conn) {
	t.mu.Lock()
	t.settleLocked(c)
	t.mu.Unlock()
}

// settleLocked moves the connection to where it belongs now. The manager may
// be told with mu held: it takes no lock.
func (t *turns) settleLocked(c *conn) {
	is := c.load().state()
	inUse := t.asked || t.writing > 0 || t.busy > 0
	if !inUse && t.reading && t.farewell != nil && !t.said && is != connClosed && t.parting() &&
		pending(c.raw) == 0 { // bytes there are a command that is about to be read
		t.said, inUse = true, true
		t.busy++
		go func() {
			defer t.letGo(c)
			t.farewell()
		}()
	}
	switch {
	case is == connClosed:
	case inUse:
		if is != connActive {
			c.setState(connActive)
		}
	case t.reading:
		if is == connActive {
			c.setState(connIdle)
		}
	}
}
