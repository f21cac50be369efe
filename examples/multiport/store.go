package main

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
)

// A store is what both servers serve. Every change goes to the journal as
// well.
type store struct {
	changes chan string // to the journal; never closed

	mu   sync.Mutex // guards data
	data map[string]string
}

func newStore() *store {
	return &store{changes: make(chan string, 1000), data: make(map[string]string)}
}

func (s *store) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.data)
}

func (s *store) get(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.data[key]
	return v, ok
}

func (s *store) set(key, value string) {
	s.mu.Lock()
	s.data[key] = value
	s.mu.Unlock()
	s.changes <- fmt.Sprintf("%q %q", key, value)
}

var errNoNumber = errors.New("value is not an integer or out of range")

func (s *store) incr(key string) (int64, error) {
	s.mu.Lock()
	var n int64
	if v, ok := s.data[key]; ok {
		var err error
		if n, err = strconv.ParseInt(v, 10, 64); err != nil || n == 1<<63-1 {
			s.mu.Unlock()
			return 0, errNoNumber
		}
	}
	n++
	v := strconv.FormatInt(n, 10)
	s.data[key] = v
	s.mu.Unlock()
	s.changes <- fmt.Sprintf("%q %q", key, v)
	return n, nil
}
