// Package traffic puts load on a server and counts exactly what became of it:
// what was answered, what was refused, and what was lost.
//
// A request is lost if any of its bytes were sent and no complete, correct
// response came back. A refused new connection is not a loss; neither is a
// kept-alive connection that the server ended and whose end had reached the
// client's kernel before the client sent anything more: it looks. Nothing is retried: HTTP/1 and WebSocket are
// spoken over a plain net.Conn, so that no pool can hide a loss. Only the
// HTTP/2 kinds, gRPC among them, go through http.Transport, which replays what a
// GOAWAY leaves out if the body allows it.
//
//	h := &traffic.Handler{}
//	srv := &http.Server{Handler: h}
//	go srv.Serve(ln)
//
//	load := traffic.Load{Addr: ln.Addr().String(), Kind: traffic.KeepAlive}
//	run, err := load.Start(ctx)
//	err = run.WaitSteady(1000) // in full flow
//	srv.Shutdown(ctx)
//	res := run.Stop()
//	if res.LostCount() > 0 {
//		t.Error(res, h.Unacknowledged(res))
//	}
package traffic

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// A Load describes the clients, what they do and how often. Its zero value
// but for Addr and Kind is usable.
type Load struct {
	Addr string // host:port of the server
	Kind Kind   // what each client does
	TLS  *tls.Config

	// Clients is how many there are at once; 0 means 64.
	Clients int

	// Conns is how many connections the clients of an HTTP/2 kind share; 0
	// means 1. The other kinds have one connection for each client.
	Conns int

	// Rate is how many requests per second all clients together may begin; 0
	// means as many as they can.
	Rate float64

	// Limit ends the run after that many requests; 0 means when it is stopped.
	Limit int

	// Timeout is how long a request may take, dialling included, before it is
	// lost; 0 means 10 s.
	Timeout time.Duration

	// Redial is how long a client that was refused waits before it dials
	// again; 0 means that it ends.
	Redial time.Duration

	// Work is how long Handler is asked to work on each request.
	Work time.Duration

	// Window is the quiet window that the server grants its idle connections.
	// A request that was lost on a connection that may have been quiet for
	// longer, as far as its client can know, is counted as lost for that
	// cause, "paused": the server could not know of it, and on a machine with
	// too much to do clients pause for longer than they are told to. 0 means
	// that nothing excuses a loss.
	Window time.Duration

	// Deaf clients do not notice that the server has ended their connection:
	// they send into it. Without it they listen while they think, and look
	// before they send, as http.Transport, HAProxy and nginx do.
	Deaf bool

	// Any accepts every complete response below status 500: for servers that
	// do not serve Handler. Method and Path are for them too; empty means POST
	// and "/".
	Any    bool
	Method string
	Path   string

	// Observe, if not nil, is called with each sample as it comes, by the
	// client's own goroutine: possibly many at once.
	Observe func(Sample)
}

// Start begins the load in the background. It returns an error only if l makes
// no sense. The run lasts until Stop, Limit, or until every client was refused;
// the end of ctx cuts it off at once.
func (l Load) Start(ctx context.Context) (*Run, error) {
	if err := l.complete(); err != nil {
		return nil, fmt.Errorf("traffic: %w", err)
	}
	var nonce [4]byte
	rand.Read(nonce[:])
	r := &Run{load: l, prefix: hex.EncodeToString(nonce[:]), began: time.Now(), done: make(chan struct{})}
	r.res = Result{Kind: l.Kind, Clients: l.Clients, Began: r.began, Statuses: map[int]int{}, Refused: map[string]int{}, Lost: map[string]int{}, Errors: map[string]string{}}
	r.changed.L = &r.mu
	r.ctx, r.abort = context.WithCancel(ctx)
	r.flow, r.halt = context.WithCancel(r.ctx)
	var wg sync.WaitGroup
	finish := func() {}
	if l.Kind.HTTP2() {
		r.transports, finish = r.newTransports()
	}
	for n := range l.Clients {
		wg.Go(func() { r.client(n) })
	}
	go func() {
		wg.Wait()
		finish()
		r.finish()
	}()
	return r, nil
}

// complete fills in what is zero, and says what makes no sense.
func (l *Load) complete() error {
	if _, _, err := net.SplitHostPort(l.Addr); err != nil {
		return fmt.Errorf("the server's address %q: %w", l.Addr, err)
	}
	switch {
	case l.Kind.Name == "":
		return errors.New("no kind of traffic given")
	case l.Clients < 0, l.Conns < 0, l.Limit < 0, l.Rate < 0:
		return errors.New("a negative number of clients, connections or requests")
	case l.Timeout < 0, l.Redial < 0, l.Work < 0:
		return errors.New("a negative duration")
	case l.Path != "" && !strings.HasPrefix(l.Path, "/"):
		return fmt.Errorf("the path %q does not begin with a slash", l.Path)
	}
	if l.Clients == 0 {
		l.Clients = 64
	}
	if l.Conns == 0 {
		l.Conns = 1
	}
	l.Conns = min(l.Conns, l.Clients)
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	switch {
	case l.Kind.proto == eventStream:
		l.Method = "GET"
	case l.Method == "" || l.Kind.upload > 0 || l.Kind.expect || l.Kind.chunks || l.Kind.proto == grpc:
		l.Method = "POST"
	}
	if l.Path == "" {
		l.Path = "/"
	}
	return nil
}

// target returns the path and query that ask Handler for what l wants.
func (l *Load) target() string {
	var q []string
	if l.Work > 0 {
		q = append(q, "work="+l.Work.String())
	}
	if l.Kind.stream > 0 {
		q = append(q, fmt.Sprintf("pieces=%d&every=%s", pieces, l.Kind.stream/pieces))
	}
	if l.Any || len(q) == 0 {
		return l.Path
	}
	sep := "?"
	if strings.Contains(l.Path, "?") {
		sep = "&"
	}
	return l.Path + sep + strings.Join(q, "&")
}
