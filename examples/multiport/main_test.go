//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const childEnv = "GRACEFUL_EXAMPLE_MULTIPORT"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A program is the example as a child process.
type program struct {
	*exec.Cmd
	http, redis, journal string
	out                  *strings.Builder // what it prints
	log                  chan string      // what it logs in the end
}

func startProgram(t *testing.T) *program {
	t.Helper()
	p := &program{
		journal: filepath.Join(t.TempDir(), "journal"),
		out:     new(strings.Builder),
		log:     make(chan string, 1),
	}
	p.Cmd = exec.Command(os.Args[0], "-http", "127.0.0.1:0", "-redis", "127.0.0.1:0", "-journal", p.journal)
	p.Env = append(os.Environ(), childEnv+"=1")
	p.Stdout = p.out
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill() })
	log := bufio.NewReader(stderr)
	line, err := log.ReadString('\n')
	if _, serr := fmt.Sscanf(line, "HTTP on %s Redis on %s", &p.http, &p.redis); err != nil || serr != nil {
		t.Fatalf("the program said %q, %v", line, err)
	}
	p.http = strings.TrimSuffix(p.http, ",")
	go func() {
		rest, _ := io.ReadAll(log)
		p.log <- string(rest)
	}()
	return p
}

// A counter is a client that increments a key of its own until no server takes
// its connections any more.
type counter struct {
	key   string
	acked int
	wrong []string
}

func (c *counter) told(n int) {
	if n != c.acked+1 {
		c.wrong = append(c.wrong, fmt.Sprintf("%s: told %d after %d", c.key, n, c.acked))
	}
	c.acked = n
}

// overHTTP sends requests that can't be sent again: each has to be answered,
// or its connection to be refused.
func (c *counter) overHTTP(addr string, pause time.Duration) {
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	last := time.Now() // that it was answered
	for {
		resp, err := client.Post("http://"+addr+"/"+c.key, "text/plain", io.MultiReader(strings.NewReader("x")))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err != nil && time.Since(last) > quiet {
			// On a machine with too much to do this process stood still for
			// longer than the server's quiet window, which then ends its
			// connection. Nothing was carried out: it says it again, and the
			// journal tells in the end.
			last = time.Now()
			continue
		}
		if err != nil {
			c.wrong = append(c.wrong, err.Error())
			return
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		n, perr := strconv.Atoi(strings.TrimSpace(string(body)))
		if err != nil || perr != nil {
			c.wrong = append(c.wrong, fmt.Sprintf("%s: %s %q, %v", c.key, resp.Status, body, err))
			return
		}
		c.told(n)
		last = time.Now()
		time.Sleep(pause)
	}
}

// quiet is a little less than the quiet window of both servers.
const quiet = 450 * time.Millisecond

// overRedis may see its connection end between two commands. What was not
// answered then must not have been carried out: it says it again, and the
// journal tells in the end.
func (c *counter) overRedis(addr string, pause time.Duration) {
	for {
		nc, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err != nil {
			c.wrong = append(c.wrong, err.Error())
			return
		}
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(nc)
		for {
			if _, err = fmt.Fprintf(nc, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(c.key), c.key); err != nil {
				break
			}
			var line string
			if line, err = r.ReadString('\n'); err != nil {
				if line != "" || errors.Is(err, os.ErrDeadlineExceeded) {
					c.wrong = append(c.wrong, fmt.Sprintf("%s: cut: %q, %v", c.key, line, err))
				}
				break
			}
			n, perr := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, ":")))
			if perr != nil {
				c.wrong = append(c.wrong, fmt.Sprintf("%s: %q", c.key, line))
				return
			}
			c.told(n)
			time.Sleep(pause)
		}
		nc.Close()
	}
}

// Under load on both ports, SIGTERM loses nothing: what was acknowledged is in
// the journal, and nothing else is.
func TestStopUnderLoad(t *testing.T) {
	p := startProgram(t)
	var counters []*counter
	var clients sync.WaitGroup
	for i := range 16 {
		c := &counter{key: fmt.Sprint("key", i)}
		counters = append(counters, c)
		pause := time.Duration(i/2) * time.Millisecond
		clients.Go(func() {
			if i%2 == 0 {
				c.overHTTP(p.http, pause)
			} else {
				c.overRedis(p.redis, pause)
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // of load
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	clients.Wait()
	log := <-p.log
	if err := p.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}

	written := make(map[string]int)
	data, err := os.ReadFile(p.journal)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var key, value string
		if _, err := fmt.Sscanf(line, "%q %q", &key, &value); err != nil {
			t.Errorf("journal: %q: %v", line, err)
		}
		written[key]++
	}
	total := 0
	for _, c := range counters {
		for _, w := range c.wrong {
			t.Error(w)
		}
		if c.acked == 0 || written[c.key] != c.acked {
			t.Errorf("%s: %d in the journal, %d acknowledged", c.key, written[c.key], c.acked)
		}
		total += c.acked
	}
	for _, want := range []string{
		`shutdown at .*: signal terminated; took .* of 20s`,
		`server +http +\S+ +done +\d+ in flight, \d+ idle at the start`,
		`server +redis +\S+ +done +\d+ in flight, \d+ idle at the start`,
		`worker +journal +\S+ +done`,
		`worker +summary +\S+ +done`,
		`cleanup +journal's file +\S+ +done`,
	} {
		if !regexp.MustCompile(want).MatchString(p.out.String()) {
			t.Errorf("the report lacks %s", want)
		}
	}
	t.Logf("%d acknowledged\n%s", total, p.out)
}

func TestRedisCommands(t *testing.T) {
	s := newStore()
	go func() {
		for range s.changes {
		}
	}()
	defer close(s.changes)
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveConn(server, s)
		server.Close()
	}()
	r := bufio.NewReader(client)
	for _, step := range []struct{ say, want string }{
		{"PING\r\n", "+PONG\r\n"},
		{"\r\nping\n", "+PONG\r\n"},
		{"*1\r\n$4\r\nPING\r\n", "+PONG\r\n"},
		{"*0\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\nx\r\ny\r\n", "+OK\r\n"},
		{"GET a\r\n", "$4\r\nx\r\ny\r\n"},
		{"GET b\r\n", "$-1\r\n"},
		{"INCR a\r\n", "-ERR value is not an integer or out of range\r\n"},
		{"INCR b\r\nINCR b\r\nGET b\r\n", ":1\r\n:2\r\n$1\r\n2\r\n"},
		{"SET b\r\n", "-ERR wrong number of arguments for 'set' command\r\n"},
		{"FLY\r\n", "-ERR unknown command \"FLY\"\r\n"},
		{"*x\r\n", "-ERR protocol error: invalid multibulk length\r\n"},
	} {
		if _, err := io.WriteString(client, step.say); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(step.want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != step.want {
			t.Errorf("%q: %q, %v, want %q", step.say, got, err, step.want)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after a protocol error: %v", err)
	}
	<-done
	client.Close()
}
