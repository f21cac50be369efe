package graceful

import (
	"context"
	"net/http"
	"time"
)

// Stop begins the shutdown as a signal does and returns at once; StopChan and
// the return of Serve tell of its end. timeout takes the place of the Timeout
// field; 0 waits without end for requests in progress. It panics if timeout is
// negative.
//
// When a shutdown is under way already, Stop can only shorten it: what is left
// of it becomes timeout, if that is less. Before Serve, Stop makes every later
// Serve return at once.
func (s *Server) Stop(timeout time.Duration) {
	if timeout < 0 {
		panic("graceful: Stop with a negative timeout")
	}
	s.init()
	go s.life.ask("Stop", &timeout)
}

// StopChan returns the channel that is closed when the shutdown is over.
func (s *Server) StopChan() <-chan struct{} {
	s.init()
	return s.life.stopped
}

// Shutdown shuts the server down and returns when that is over. It does not
// ask BeforeShutdown. If ctx ends first, it closes what is left and returns
// ctx's error. If Timeout, another's Close or a second signal ended it, the
// error wraps ErrKilled and the report names what was closed; it is nil if
// nothing had to be.
//
// Further calls, also concurrent ones, wait for the same shutdown, each no
// longer than its ctx. Unlike http.Server's, it returns after Serve's last
// connection is gone, with no more delay than that.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.life.order("Shutdown", nil)
	return s.life.wait(ctx)
}

// Close closes all listeners and connections, hijacked ones only with
// WaitHijacked, and returns when that is done. It does not wait for handlers.
// The request contexts' cause is ErrKilled. It returns the first error of
// closing a listener.
func (s *Server) Close() error {
	s.init()
	s.life.kill("Close")
	<-s.life.stopped
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	return s.life.closeErr
}

// RegisterOnShutdown adds a function to call, on a goroutine of its own, when
// draining begins. Those of the http.Server are called then, too. A function
// that is added later is called at once.
func (s *Server) RegisterOnShutdown(f func()) {
	s.init()
	s.side.mu.Lock()
	late := s.side.drainBegun
	if !late {
		s.side.onShutdown = append(s.side.onShutdown, f)
	}
	s.side.mu.Unlock()
	if late {
		go f()
	}
}

// SetKeepAlivesEnabled is http.Server's. Disabling keep-alives closes idle
// connections on the spot, and with them requests on their way: a shutdown
// doesn't need it.
func (s *Server) SetKeepAlivesEnabled(v bool) {
	s.side.mu.Lock()
	defer s.side.mu.Unlock()
	s.side.noKeepAlives = !v
	if s.side.hs != nil {
		s.side.hs.SetKeepAlivesEnabled(v)
		s.side.http2.setKeepAlivesEnabled(v)
	}
}

// Phase returns where the server stands.
func (s *Server) Phase() Phase { return s.life.Phase() }

// Stats counts the open connections. It takes time in proportion to them.
func (s *Server) Stats() Stats {
	s.init()
	return s.life.stats()
}

// Report says what the shutdown has done so far; after the end of it, what it
// did.
func (s *Server) Report() Report {
	s.init()
	return s.life.currentReport()
}

// ReadyHandler returns a handler for readiness probes, which this server or
// another may serve: it answers 200 while the server serves, and 503 from the
// first moment of the shutdown on. With Health set it is that one's
// ReadyHandler.
func (s *Server) ReadyHandler() http.Handler {
	s.init()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.health().ReadyHandler().ServeHTTP(w, r)
	})
}

// health returns Health, or one that knows of the shutdown only.
func (s *Server) health() *Health {
	if s.Health != nil {
		return s.Health
	}
	return &s.side.health
}
