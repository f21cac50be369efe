package bench

import (
	"net"
	"sync"
	"testing"
)

// A network is what connections are made of.
type network struct {
	name   string
	listen func(testing.TB) net.Listener
}

var networks = []network{
	{"tcp", func(tb testing.TB) net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		return l
	}},
	{"mem", func(testing.TB) net.Listener { return newMemListener() }},
}

// A memListener accepts one end of a net.Pipe for each dial.
type memListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr{} }

// dial returns the client's end once the other was accepted.
func (l *memListener) dial() net.Conn {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
	case <-l.closed:
		client.Close()
	}
	return client
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "memory" }
