package graceful

import (
	"context"
	"net/http"
)

// httpProtocol is a Server as its lifecycle sees it.
type httpProtocol Server

func (p *httpProtocol) server() *Server { return (*Server)(p) }

func (p *httpProtocol) logf(format string, args ...any) { p.server().logf(format, args...) }

func (p *httpProtocol) config() lifeConfig {
	s := p.server()
	return lifeConfig{
		delay:   s.ShutdownDelay,
		timeout: s.Timeout,
		rules: drainRules{
			grace:        s.idleGrace(),
			half:         halfSpoken,
			waitHijacked: s.WaitHijacked,
			settled:      s.shutHTTP,
		},
	}
}

func (p *httpProtocol) beforeShutdown() bool {
	return p.BeforeShutdown == nil || p.BeforeShutdown()
}

func (p *httpProtocol) beginDelay() {
	p.Interrupted = true
	p.server().health().Shutdown()
}

// finishRequests refuses new requests until those in progress are answered.
func (p *httpProtocol) finishRequests(ctx context.Context) <-chan struct{} {
	f := p.side.inflight
	if f == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.WaitContext(ctx)
	}()
	return done
}

// beginDrain runs the functions that wait for it: those of the caller's
// http.Server with its Shutdown, which has nothing else to do, since it serves
// nothing.
func (p *httpProtocol) beginDrain() {
	s := p.server()
	_ = s.prepare() // if nothing was served; what is wrong, Serve will say
	s.side.mu.Lock()
	s.side.drainBegun = true
	hooks := s.side.onShutdown
	s.side.onShutdown = nil
	s.side.mu.Unlock()
	if s.ShutdownInitiated != nil {
		go s.ShutdownInitiated()
	}
	for _, f := range hooks {
		go f()
	}
	shutNow(s.Server)
	s.side.http2.finish()
}

// shutHTTP says net/http's last word: answers that have not begun yet say
// close, and HTTP/2 connections are told to leave. It would lose a request
// that is being read, which is why it waits until there can be none.
func (s *Server) shutHTTP() {
	m := s.life.manager()
	m.sweeping.Store(true)
	shutNow(s.side.hs)
	m.sweeping.Store(false)
}

// shutNow calls hs.Shutdown without waiting for its connections.
func shutNow(hs *http.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	hs.Shutdown(ctx)
}

func (p *httpProtocol) beginKill() {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	for _, cancel := range s.side.cancels {
		cancel(ErrKilled)
	}
}

func (p *httpProtocol) requests(info any) []string {
	h, _ := info.(*httpConn)
	if h == nil {
		return nil
	}
	var list []string
	for _, l := range h.requests() {
		list = append(list, l.method+" "+l.target)
	}
	return list
}

func (p *httpProtocol) streams() int { return int(p.streamCount.Load()) }

// finish lets go of the base contexts, but for hijacked connections' sake: the
// handlers of those that were left may still use them.
func (p *httpProtocol) finish(left int) string {
	s := p.server()
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	if left == 0 && !s.side.lostSight.Load() {
		for _, cancel := range s.side.cancels {
			cancel(http.ErrServerClosed)
		}
	}
	switch {
	case s.side.http2 != nil:
		return "GOAWAY in two steps"
	case s.side.http2Plain != "":
		return "as by net/http: " + s.side.http2Plain
	}
	return ""
}
