package deadline

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// A deadlineRequest is a request, its context and its writer in one allocation:
// what WithContext returns is copied here, and so never leaves the stack. It
// is not used again: a handler's goroutines may keep any of them.
type deadlineRequest struct {
	now time.Time     // when it came
	r   *http.Request // as it came
	req http.Request  // as the handler sees it
	ctx requestContext
	top guarded

	connEnd time.Time // when the connection's deadlines are
	major   int       // of the protocol

	mu        sync.Mutex // guards what follows
	committed bool       // the status is on its way
	hijacked  bool       // the connection is the handler's
}

// end ends the context, and hands what the handler's request has come to
// have to the request that came.
func (x *deadlineRequest) end() {
	HandBack(x.r, &x.req)
	x.ctx.requestOver()
}

// limitConn sets the deadlines of the connection to connEnd, or with lifted back
// to what they were. It does not put off those of the server. net/http takes
// them away before the next request. Where they cannot be set, the context has
// to do.
func (x *deadlineRequest) limitConn(lifted bool) {
	rc := http.NewResponseController(x.top.w)
	set := func(set func(time.Time) error, servers time.Time) {
		switch {
		case !servers.IsZero() && !x.connEnd.Before(servers):
		case lifted:
			set(servers)
		default:
			set(x.connEnd)
		}
	}
	write, read := x.serverDeadlines()
	set(rc.SetWriteDeadline, write)
	// Without a body the server reads only to learn whether the client is
	// still there, and would take a passed deadline for a client that is not.
	if hasBody(x.r) {
		set(rc.SetReadDeadline, read)
	}
}

// serverDeadlines returns what net/http has set the connection's deadlines to,
// or nearly so; zero if it has set none.
func (x *deadlineRequest) serverDeadlines() (write, read time.Time) {
	if srv, _ := x.r.Context().Value(http.ServerContextKey).(*http.Server); srv != nil {
		if srv.WriteTimeout > 0 {
			write = x.now.Add(srv.WriteTimeout)
		}
		if srv.ReadTimeout > 0 {
			read = x.now.Add(srv.ReadTimeout)
		}
	}
	return write, read
}

// The methods of a gate: all calls pass, and two of them lift the deadline.

func (x *deadlineRequest) header(w http.ResponseWriter) http.Header { return w.Header() }

func (x *deadlineRequest) enter(w http.ResponseWriter, call callKind) verdict {
	x.mu.Lock()
	defer x.mu.Unlock()
	v := judge(call, x.committed, x.hijacked)
	if v != pass || !call.commits() || x.committed {
		return v
	}
	x.committed = true
	if isEventStream(w.Header()) && x.ctx.lift() {
		x.limitConn(true)
	}
	return v
}

func (x *deadlineRequest) leave(err error) error { return err }

func (x *deadlineRequest) control(w http.ResponseWriter, do func(*http.ResponseController) error) error {
	return do(http.NewResponseController(w))
}

func (x *deadlineRequest) hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := w.(http.Hijacker).Hijack() // takes the connection's deadlines away
	if err == nil {
		x.mu.Lock()
		x.hijacked = true
		x.mu.Unlock()
		x.ctx.lift()
	}
	return conn, buf, err
}

func (x *deadlineRequest) noted() (context.Context, int) { return x.ctx.parent, x.major }
