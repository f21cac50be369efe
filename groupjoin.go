package graceful

import (
	"context"
	"errors"
	"fmt"
)

func (s *Server) joinGroup() {
	s.init()
	s.life.join()
}

func (s *Server) startInGroup() (wait func() error, err error) {
	tl, err := s.bind(context.Background())
	if err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go func() { end <- s.run(tl) }()
	return func() error { return <-end }, nil
}

func (s *Server) beginDelay() {
	s.init()
	s.life.beginHeld("Group")
}

func (s *Server) isReady() bool {
	return s.Phase() == PhaseServing && s.health().startup(context.Background()) == nil
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

func (l *Listener) isReady() bool { return l.Phase() == PhaseServing }

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
