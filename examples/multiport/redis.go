package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// serveRedis is a plain accept loop; it needs no change for a graceful.Listener.
// It returns when Accept returns an error, after the last connection.
func serveRedis(l net.Listener, s *store) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serveConn(c, s)
		}()
	}
}

// serveConn answers commands until the connection ends or a command is
// malformed.
func serveConn(c net.Conn, s *store) {
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		args, err := readCommand(r)
		if err != nil {
			if errors.Is(err, errProtocol) {
				fmt.Fprintf(w, "-ERR %v\r\n", err)
				w.Flush()
			}
			return
		}
		io.WriteString(w, answer(args, s))
		// Commands that came together are answered together.
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}

func answer(args []string, s *store) string {
	name := strings.ToUpper(args[0])
	if want := map[string]int{"GET": 2, "SET": 3, "INCR": 2}[name]; want != 0 && len(args) != want {
		return fmt.Sprintf("-ERR wrong number of arguments for '%s' command\r\n", strings.ToLower(name))
	}
	switch name {
	case "PING":
		return "+PONG\r\n"
	case "GET":
		v, ok := s.get(args[1])
		if !ok {
			return "$-1\r\n"
		}
		return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
	case "SET":
		s.set(args[1], args[2])
		return "+OK\r\n"
	case "INCR":
		n, err := s.incr(args[1])
		if err != nil {
			return fmt.Sprintf("-ERR %v\r\n", err)
		}
		return fmt.Sprintf(":%d\r\n", n)
	}
	return fmt.Sprintf("-ERR unknown command %q\r\n", args[0])
}

var errProtocol = errors.New("protocol error")

// readCommand reads a command with its arguments, at least one word: an array
// of bulk strings, or a line of words as a person types it.
func readCommand(r *bufio.Reader) ([]string, error) {
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		count, isArray := strings.CutPrefix(line, "*")
		if !isArray {
			if words := strings.Fields(line); len(words) > 0 {
				return words, nil
			}
			continue
		}
		n, err := strconv.Atoi(count)
		if err != nil || n > 1000 {
			return nil, fmt.Errorf("%w: invalid multibulk length", errProtocol)
		}
		var args []string
		for range n {
			arg, err := readBulk(r)
			if err != nil {
				return nil, err
			}
			args = append(args, arg)
		}
		if len(args) > 0 {
			return args, nil
		}
	}
}

func readBulk(r *bufio.Reader) (string, error) {
	line, err := readLine(r)
	if err != nil {
		return "", err
	}
	length, ok := strings.CutPrefix(line, "$")
	n, err := strconv.Atoi(length)
	if !ok || err != nil || n < 0 || n > 1<<20 {
		return "", fmt.Errorf("%w: invalid bulk length", errProtocol)
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// readLine reads a line, which has to fit into r's buffer.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("%w: too big a line", errProtocol)
	}
	return strings.TrimRight(string(line), "\r\n"), err
}
