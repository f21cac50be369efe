package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A tally is what a set of clients has seen.
type tally struct {
	answered  int      // commands with their answer
	refused   int      // connections that nobody took
	ends      int      // connections that ended between two commands
	cut       int      // answers of which a part came
	unknown   int      // answers that are none
	doubled   int      // INCRs carried out without an answer, and so said again
	lost      int      // INCRs answered and not carried out
	hung      int      // commands that took more than a few seconds
	incidents []string // the first of them
}

func (t *tally) note(format string, args ...any) {
	if len(t.incidents) < 10 {
		t.incidents = append(t.incidents, fmt.Sprintf(format, args...))
	}
}

func (t *tally) add(o tally) {
	t.answered += o.answered
	t.refused += o.refused
	t.ends += o.ends
	t.cut += o.cut
	t.unknown += o.unknown
	t.doubled += o.doubled
	t.lost += o.lost
	t.hung += o.hung
	for _, s := range o.incidents {
		t.note("%s", s)
	}
}

// wrong is how many commands went wrong.
func (t *tally) wrong() int { return t.cut + t.unknown + t.doubled + t.lost + t.hung }

func (t *tally) String() string {
	return fmt.Sprintf("%d commands; carried out and never acknowledged %d, acknowledged and not carried out %d, answers cut %d, nonsense %d, hung %d; ends between commands %d, refused %d",
		t.answered, t.doubled, t.lost, t.cut, t.unknown, t.hung, t.ends, t.refused)
}

// An incrementer counts in a key of its own, so that it knows what the next
// answer has to be, and checks every answer. When its connection ends it makes
// a new one and says again what had no answer: right if nothing is carried out
// without one, and seen if not.
type incrementer struct {
	tally
	addr  string
	key   string
	depth int           // commands at once
	pause time.Duration // between two
	acked int64
}

// patience is how long a client waits for an answer. It is many times what the
// server takes, and longer than anything should be held up.
const patience = 10 * time.Second

func (c *incrementer) run(stop <-chan struct{}) {
	command := fmt.Sprintf("*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(c.key), c.key)
	unanswered := 0
	for {
		nc, err := net.DialTimeout("tcp", c.addr, patience)
		if err != nil {
			c.refused++
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			continue
		}
		for err == nil {
			if unanswered == 0 {
				select {
				case <-stop:
					nc.Close()
					return
				default:
				}
				unanswered = c.depth
			}
			nc.SetDeadline(time.Now().Add(patience))
			unanswered, err = c.ask(nc, command, unanswered)
			time.Sleep(c.pause)
		}
		nc.Close()
	}
}

// ask says the command n times and reads n answers. It returns how many there
// were not, and how the connection ended, if it did.
func (c *incrementer) ask(nc net.Conn, command string, n int) (int, error) {
	if _, err := io.WriteString(nc, strings.Repeat(command, n)); err != nil {
		return n, c.ended("", err)
	}
	r := bufio.NewReader(nc)
	for n > 0 {
		line, err := r.ReadString('\n')
		if err != nil {
			return n, c.ended(line, err)
		}
		got, perr := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(line, ":"), "\r\n"), 10, 64)
		switch {
		case perr != nil || line[0] != ':':
			c.unknown++
			c.note("%s: %q", c.key, line)
			return n, errors.New("not an answer")
		case got > c.acked+1:
			c.doubled += int(got - c.acked - 1)
			c.note("%s: told %d after %d", c.key, got, c.acked)
		case got <= c.acked:
			c.lost += int(c.acked + 1 - got)
			c.note("%s: told %d after %d", c.key, got, c.acked)
		}
		c.acked = got
		c.answered++
		n--
	}
	return 0, nil
}

func (c *incrementer) ended(part string, err error) error {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		c.hung++
		c.note("%s: %v", c.key, err)
	case part != "":
		c.cut++
		c.note("%s: %q, %v", c.key, part, err)
	default:
		c.ends++
	}
	return err
}

// increment runs clients against addr while during runs, and compares what
// they were told with what s has.
func increment(t *testing.T, s *server, addr string, clients int, during func()) *tally {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	all := make([]*incrementer, clients)
	for i := range all {
		c := &incrementer{addr: addr, key: fmt.Sprint("own", i), depth: 1, pause: time.Duration(i%4) * time.Millisecond}
		if i%4 == 3 {
			c.depth = 16
		}
		all[i] = c
		wg.Go(func() { c.run(stop) })
	}
	during()
	close(stop)
	wg.Wait()
	sum := new(tally)
	for _, c := range all {
		v, _ := s.get(c.key)
		n, _ := strconv.ParseInt(v, 10, 64)
		switch {
		case n > c.acked:
			c.doubled += int(n - c.acked)
			c.note("%s: is %d at the end, told %d", c.key, n, c.acked)
		case n < c.acked:
			c.lost += int(c.acked - n)
			c.note("%s: is %d at the end, told %d", c.key, n, c.acked)
		}
		sum.add(c.tally)
	}
	return sum
}
