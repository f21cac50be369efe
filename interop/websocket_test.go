package interop

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/seed-121bbccf/graceful"
)

// A socket is a WebSocket of whatever library.
type socket interface {
	read() (string, error)
	write(string) error

	// leave says that nothing more will be sent and waits until the other
	// side has said so too: the closing handshake.
	leave() error

	// left reports whether err, which read returned, is the other side's leave.
	left(err error) bool
}

// farewell is what the server sends on each connection when it is going to stop.
// WebSocket's own Close frame would be too early: after it the server may not
// answer what the client has sent in the meantime.
const farewell = "please leave"

// webSockets is a server of echoing WebSockets in a group. WaitHijacked makes
// the shutdown wait until their clients have left.
func webSockets(t *testing.T, upgrade func(http.ResponseWriter, *http.Request) (socket, error)) server {
	srv := &graceful.Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := upgrade(w, r)
			if err != nil {
				t.Error(err)
				return
			}
			var mu sync.Mutex // guards writing
			end := make(chan struct{})
			defer close(end)
			go func() {
				select {
				case <-graceful.Draining(r.Context()):
					mu.Lock()
					defer mu.Unlock()
					s.write(farewell)
				case <-end:
				}
			}()
			for {
				m, err := s.read()
				if err != nil {
					if !s.left(err) {
						t.Errorf("the server's end: %v", err)
					}
					return
				}
				mu.Lock()
				err = s.write(m)
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})},
		WaitHijacked: true,
		IdleGrace:    grace,
	}
	l := listen(t)
	g := newGroup()
	g.Add("web", srv, func() error { return srv.Serve(l) })
	return start(t, l.Addr().String(), g)
}

// webSocketClient exchanges messages until the server asks it to leave, and then
// dials again.
func webSocketClient(dial func(l *load) (socket, error)) func(l *load, n int) {
	return func(l *load, n int) {
		for i := 0; !l.ended(); {
			s, err := dial(l)
			if err != nil {
				l.exchange(fmt.Errorf("handshake: %w", err))
				return
			}
			for asked := false; !asked && !l.ended(); i++ {
				asked, err = echo(s, message(n, i))
				l.exchange(err)
			}
			if err := s.leave(); err != nil {
				l.exchange(fmt.Errorf("closing handshake: %w", err))
			}
		}
	}
}

// echo sends a message and waits for it to come back. It reports whether the
// server's farewell came.
func echo(s socket, m string) (asked bool, err error) {
	if err := s.write(m); err != nil {
		return true, err
	}
	for {
		got, err := s.read()
		switch {
		case err != nil:
			return true, err
		case got == farewell:
			asked = true
		case got == m:
			return asked, nil
		default:
			return true, errors.New("got " + got)
		}
	}
}
