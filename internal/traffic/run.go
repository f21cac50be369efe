package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// ErrEnded is returned by WaitSteady if the clients have all ended.
var ErrEnded = errors.New("traffic: the clients have ended")

// A Run is a load that is under way. Its methods may be called concurrently.
type Run struct {
	// Immutable after Start.
	load       Load
	prefix     string // of the ids, so that no two runs share one
	began      time.Time
	ctx        context.Context // ends: connections are cut
	abort      context.CancelFunc
	flow       context.Context // ends: no new requests
	halt       context.CancelFunc
	transports []*http.Transport
	resent     atomic.Int64  // see Result.Resent
	done       chan struct{} // no values sent; closed when the last client has ended

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	res     Result
	begun   int
	ended   bool
}

// Clients returns how many clients there are.
func (r *Run) Clients() int { return r.load.Clients }

// WaitSteady blocks until n requests have been answered since Start, so that
// what the caller does next comes in full flow. It returns ErrEnded if that can
// no longer be.
func (r *Run) WaitSteady(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ; r.res.Answered < n; r.changed.Wait() {
		if r.ended {
			return fmt.Errorf("%w: %v", ErrEnded, &r.res)
		}
	}
	return nil
}

// WaitMore is WaitSteady for n more requests than have been answered by now.
func (r *Run) WaitMore(n int) error {
	r.mu.Lock()
	n += r.res.Answered
	r.mu.Unlock()
	return r.WaitSteady(n)
}

// Done returns a channel that is closed when the last client has ended: by
// itself, by Stop, or by the end of Start's context.
func (r *Run) Done() <-chan struct{} { return r.done }

// Stop lets each client finish the request that it is at, waits until all have,
// and returns what happened. A second call returns the same.
func (r *Run) Stop() *Result {
	r.halt()
	<-r.done
	return &r.res // it is not written to any more
}

// Progress returns the counts so far, without the samples.
func (r *Run) Progress() (sent, answered, refused, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.res.Sent, r.res.Answered, r.res.RefusedCount(), r.res.LostCount()
}

func (r *Run) finish() {
	r.mu.Lock()
	r.res.Ended, r.ended = time.Now(), true
	r.res.Resent = int(r.resent.Load())
	r.mu.Unlock()
	r.changed.Broadcast()
	r.abort()
	close(r.done)
}

// A client makes one request after another. Only its own goroutine calls it.
type client interface {
	// do makes the request with that id; err is nil if it was answered.
	do(id string) (Outcome, error)

	// rest thinks for d, or until flow ends, and reports whether the server
	// ended the connection meanwhile.
	rest(flow context.Context, d time.Duration) bool

	close()
}

// client is the life of client n.
func (r *Run) client(n int) {
	c := r.newClient(n)
	defer c.close()
	var every time.Duration
	if r.load.Rate > 0 {
		every = time.Duration(float64(r.load.Clients) / r.load.Rate * float64(time.Second))
		// Spread over the interval, or they would all send at once.
		pause(r.flow, every*time.Duration(n)/time.Duration(r.load.Clients))
	}
	for seq := 0; r.begin(); seq++ {
		id := fmt.Sprintf("%s-%d-%d", r.prefix, n, seq)
		start := time.Now()
		out, err := c.do(id)
		if out != Answered && r.ctx.Err() != nil {
			out = Aborted
		}
		r.record(id, start, out, err)
		switch {
		case out == Aborted, out == Refused && r.load.Redial == 0:
			return
		case out == Refused:
			pause(r.flow, r.load.Redial)
			continue
		}
		think := r.load.Kind.think
		if think != forever {
			think = max(think, every-time.Since(start))
		}
		if think > 0 && c.rest(r.flow, think) {
			r.mu.Lock()
			r.res.Closed++
			r.mu.Unlock()
		}
	}
}

func (r *Run) newClient(n int) client {
	switch r.load.Kind.proto {
	case http2, grpc:
		return &h2Client{load: &r.load, ctx: r.ctx, transport: r.transports[n%len(r.transports)], saw: r.saw}
	case websocket:
		return &wsClient{line: r.newLine()}
	case eventStream:
		return &sseClient{line: r.newLine()}
	default:
		return &h1Client{line: r.newLine()}
	}
}

func (r *Run) newLine() line { return line{load: &r.load, ctx: r.ctx, connect: r.dial, saw: r.saw} }

// saw notes what a complete response was like.
func (r *Run) saw(s response) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.Statuses[s.status]++
	r.res.Longest = max(r.res.Longest, s.over)
}

// dial makes a connection, and notes whether its SYN had to be sent again.
func (r *Run) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err == nil && synResent(nc) {
		r.resent.Add(1)
	}
	return nc, err
}

// begin reports whether there is another request to make.
func (r *Run) begin() bool {
	if r.flow.Err() != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.load.Limit > 0 && r.begun >= r.load.Limit {
		return false
	}
	r.begun++
	return true
}

func (r *Run) record(id string, start time.Time, out Outcome, err error) {
	s := Sample{Start: start.Sub(r.began), End: time.Since(r.began), Outcome: out}
	if out != Answered {
		s.ID, s.Cause = id, causeOf(err)
	}
	r.mu.Lock()
	r.res.add(s, err)
	r.mu.Unlock()
	r.changed.Broadcast()
	if r.load.Observe != nil {
		r.load.Observe(s)
	}
}

// pause sleeps for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
