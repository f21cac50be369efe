package main

import (
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/redcon"
)

// A server is a small Redis: redcon speaks the protocol, and a map holds the
// data. It knows PING, ECHO, GET, SET, INCR, DEL and QUIT.
type server struct {
	// work is how long a command that changes something takes between its
	// execution and its answer, as where it is written to a disk.
	work time.Duration

	pings atomic.Int64

	mu   sync.Mutex // guards data
	data map[string]string
}

func newServer(work time.Duration) *server {
	return &server{work: work, data: make(map[string]string)}
}

// serve serves what l accepts, and returns when l.Accept fails. redcon then closes
// all connections. With a graceful.Listener that is when the shutdown is over and
// none is left; with a plain listener it may be in the middle of a command.
func (s *server) serve(l net.Listener) error {
	return redcon.Serve(l, s.handle,
		func(redcon.Conn) bool { return true },
		func(redcon.Conn, error) {})
}

func (s *server) handle(c redcon.Conn, cmd redcon.Command) {
	name := strings.ToUpper(string(cmd.Args[0]))
	if want := arguments[name]; want != 0 && len(cmd.Args) != want {
		c.WriteError("ERR wrong number of arguments for '" + strings.ToLower(name) + "' command")
		return
	}
	switch name {
	case "PING":
		s.pings.Add(1)
		c.WriteString("PONG")
	case "QUIT":
		c.WriteString("OK")
		c.Close()
	case "ECHO":
		c.WriteBulk(cmd.Args[1])
	case "GET":
		if v, ok := s.get(string(cmd.Args[1])); ok {
			c.WriteBulkString(v)
		} else {
			c.WriteNull()
		}
	case "SET":
		s.set(string(cmd.Args[1]), string(cmd.Args[2]))
		c.WriteString("OK")
	case "INCR":
		n, err := s.incr(string(cmd.Args[1]))
		if err != nil {
			c.WriteError("ERR value is not an integer or out of range")
			return
		}
		c.WriteInt64(n)
	case "DEL":
		c.WriteInt(s.del(string(cmd.Args[1])))
	default:
		c.WriteError("ERR unknown command '" + string(cmd.Args[0]) + "'")
	}
}

// arguments is how many each command has, with its name.
var arguments = map[string]int{"ECHO": 2, "GET": 2, "SET": 3, "INCR": 2, "DEL": 2}

func (s *server) get(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.data[key]
	return v, ok
}

func (s *server) set(key, value string) {
	s.mu.Lock()
	s.data[key] = value
	s.mu.Unlock()
	time.Sleep(s.work)
}

func (s *server) incr(key string) (int64, error) {
	s.mu.Lock()
	n, err := strconv.ParseInt("0"+s.data[key], 10, 64)
	if err == nil {
		n++
		s.data[key] = strconv.FormatInt(n, 10)
	}
	s.mu.Unlock()
	time.Sleep(s.work)
	return n, err
}

func (s *server) del(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.data[key]; !ok {
		return 0
	}
	delete(s.data, key)
	return 1
}
