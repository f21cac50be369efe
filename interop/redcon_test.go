package interop

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidwall/redcon"

	"github.com/seed-121bbccf/graceful"
)

// TestRedcon: RESP has no farewell that clients know, and these never pause. So
// a connection can end while the client's next command is on the wire. What is
// promised is that no command is carried out without an answer, and that an
// answer means that it was carried out: saying again what had no answer is safe.
func TestRedcon(t *testing.T) {
	var mu sync.Mutex
	carried := map[string]int{}
	handle := func(c redcon.Conn, cmd redcon.Command) {
		mu.Lock()
		carried[string(cmd.Args[1])]++
		mu.Unlock()
		c.WriteString("OK")
	}
	const pipelined = 4
	var again atomic.Int64
	l := play(t, func() server {
		l := graceful.NewListener(listen(t))
		l.IdleGrace = grace
		g := newGroup()
		g.Add("redis", l, func() error { return redcon.Serve(l, handle, nil, nil) })
		return start(t, l.Addr().String(), g)
	}, func(l *load, n int) { again.Add(int64(respClient(l, n, pipelined))) })
	l.wantNoLoss()
	mu.Lock()
	defer mu.Unlock()
	for key, times := range carried {
		if times != 1 {
			t.Errorf("%s was carried out %d times", key, times)
		}
	}
	if len(carried) != l.done {
		t.Errorf("%d commands were carried out, %d answered", len(carried), l.done)
	}
	t.Logf("%d commands had to be said again", again.Load())
	// Each stop ends each connection once.
	if most := (stops + 1) * clients * pipelined; int(again.Load()) > most {
		t.Errorf("%d commands had to be said again, want at most %d", again.Load(), most)
	}
}

// respClient says up to pipelined SETs at once, each of a key of its own, and
// returns how many it had to say again.
func respClient(l *load, n, pipelined int) (again int) {
	for i := 0; !l.ended(); {
		nc, err := l.dial()
		if err != nil {
			l.exchange(err)
			return again
		}
		for batch := 1; !l.ended(); batch = 1 + batch%pipelined {
			answered, err := setKeys(nc, n, i, batch)
			i += answered
			for range answered {
				l.exchange(nil)
			}
			if err != nil {
				again += batch - answered
				break
			}
		}
		nc.Close()
	}
	return again
}

// setKeys says n SETs of client c at once and returns how many were answered.
func setKeys(nc net.Conn, c, first, n int) (answered int, err error) {
	var b strings.Builder
	for i := range n {
		key := message(c, first+i)
		fmt.Fprintf(&b, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$1\r\n1\r\n", len(key), key)
	}
	if _, err := nc.Write([]byte(b.String())); err != nil {
		return 0, err
	}
	for r := bufio.NewReader(nc); answered < n; answered++ {
		if line, err := r.ReadString('\n'); err != nil {
			return answered, err
		} else if line != "+OK\r\n" {
			return answered, fmt.Errorf("answer %q", line)
		}
	}
	return answered, nil
}
