package deadline

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// A deadlineRequest is a request, its context and its ResponseWriter in one
// allocation. It is not reused, since goroutines of the handler may keep any of
// them.
type deadlineRequest struct {
	now time.Time     // when Serve was called
	r   *http.Request // the outer handler's request
	req http.Request  // the handler's request
	ctx requestContext
	top guarded

	connEnd time.Time // the connection's deadlines
	major   int       // the protocol's major version

	mu        sync.Mutex // guards what follows
	committed bool       // the status was written
	hijacked  bool       // the handler has hijacked the connection
}

// end ends the context, and copies the handler's pattern and forms to the outer
// handler's request.
func (x *deadlineRequest) end() {
	HandBack(x.r, &x.req)
	x.ctx.requestOver()
}

// limitConn sets the deadlines of the connection to connEnd, or with lifted back
// to the server's. It does not replace an earlier deadline of the server's.
// net/http removes the deadlines before the next request. If they cannot be set,
// only the context ends.
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
	// Without a body net/http reads only to find out whether the client has
	// disconnected, and would take a timeout for that.
	if hasBody(x.r) {
		set(rc.SetReadDeadline, read)
	}
}

// serverDeadlines returns the deadlines that net/http has set on the connection,
// approximately, since they count from x.now. They are zero if it has set none.
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

// The methods of gate. The deadline does not stop any call. The first write of an
// event stream, and a hijack, lift it.

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
	conn, buf, err := w.(http.Hijacker).Hijack() // removes the connection's deadlines
	if err == nil {
		x.mu.Lock()
		x.hijacked = true
		x.mu.Unlock()
		x.ctx.lift()
	}
	return conn, buf, err
}

func (x *deadlineRequest) requestInfo() (context.Context, int) { return x.ctx.parent, x.major }
