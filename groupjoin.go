package graceful

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

func (s *Server) joinGroup() {
	s.init()
	s.life.join()
}

func (s *Server) startInGroup() (wait func() error, err error) {
	tl, config, err := s.bind(context.Background())
	if err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go func() { end <- s.run(tl, config) }()
	return func() error { return <-end }, nil
}

func (s *Server) beginDelay() {
	s.init()
	s.life.beginHeld("Group")
}

func (s *Server) unready(ctx context.Context) string {
	s.init()
	// As if the probe had come by this server: a probe that comes by another
	// one, which is shutting down, says nothing of this one's Health.
	ctx = context.WithValue(ctx, drainingKey{}, (<-chan struct{})(s.life.draining))
	return strings.Join(s.health().failing(ctx), ", ")
}

func (s *Server) groupSummary() string { return s.life.summary() }

func (l *Listener) joinGroup() {
	l.init()
	l.life.join()
}

func (l *Listener) startInGroup() (wait func() error, err error) {
	return nil, errors.New("graceful: a Listener can't serve by itself: give Group.Add the function that serves on it")
}

func (l *Listener) beginDelay() {
	l.init()
	l.life.beginHeld("Group")
}

func (l *Listener) unready(context.Context) string {
	if l.Phase() != PhaseServing {
		return "shutdown"
	}
	return ""
}

func (l *Listener) groupSummary() string { return l.life.summary() }

// summary says in a few words what there is, or what became of it.
func (lc *lifecycle) summary() string {
	if lc.Phase() < PhaseDraining {
		s := lc.stats()
		return fmt.Sprintf("%d in flight, %d idle", s.Active+s.Receiving, s.Idle+s.New)
	}
	r := lc.currentReport()
	line := fmt.Sprintf("%d in flight, %d idle at the start", r.Start.Active+r.Start.Receiving, r.Start.Idle+r.Start.New)
	if len(r.Killed) > 0 {
		line += fmt.Sprintf(", %d killed", len(r.Killed))
	}
	return line
}
