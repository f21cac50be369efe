package graceful_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// A diffResponse is a response on the wire.
type diffResponse struct {
	status int
	head   string // without Date and Connection
	body   string
	close  bool
	framed bool // its end does not depend on the connection's
	whole  bool
}

func (r diffResponse) interim() bool { return r.status/100 == 1 && r.status != 101 }

func (r diffResponse) String() string {
	s := fmt.Sprintf("%q %q", r.head, r.body)
	if len(s) > 700 {
		s = s[:500] + " ... " + s[len(s)-200:]
	}
	return fmt.Sprintf("%s close=%v whole=%v", s, r.close, r.whole)
}

// same reports whether r is as good an answer as the reference's.
func (r diffResponse) same(want diffResponse) bool {
	return r.head == want.head && r.body == want.body && r.whole == want.whole
}

// parseDiff splits what a server has sent into responses. What is no response
// becomes one that no other is the same as.
func parseDiff(b []byte) []diffResponse {
	var rs []diffResponse
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte("\r\n\r\n"))
		if !ok {
			return append(rs, diffResponse{status: 999, head: string(b), framed: true})
		}
		var r diffResponse
		method := ""
		length := -1
		chunked := false
		var kept []string
		keepAlive := false
		for i, line := range strings.Split(string(head), "\r\n") {
			if i == 0 {
				fmt.Sscanf(line, "HTTP/1.%d %d", new(int), &r.status)
				kept = append(kept, line)
				continue
			}
			k, v, _ := strings.Cut(line, ": ")
			switch strings.ToLower(k) {
			case "date":
				continue
			case "connection":
				r.close = r.close || v == "close"
				keepAlive = keepAlive || v == "keep-alive"
				continue
			case "x-method":
				method = v
			case "content-length":
				length, _ = strconv.Atoi(v)
			case "transfer-encoding":
				chunked = v == "chunked"
			}
			kept = append(kept, line)
		}
		r.head = strings.Join(kept, "\n")
		r.framed, r.whole = true, true
		b = rest
		switch {
		case r.interim() || method == "HEAD" || r.status == 204 || r.status == 304:
		case chunked:
			n := diffChunkedLen(b)
			if r.whole = n >= 0; !r.whole {
				n = len(b)
			}
			r.body, b = string(b[:n]), b[n:]
		case length >= 0:
			r.whole = len(b) >= length
			length = min(length, len(b))
			r.body, b = string(b[:length]), b[length:]
		default:
			r.framed = false
			r.body, b = string(b), nil
		}
		rs = append(rs, r)
	}
	return rs
}

// diffChunkedLen returns the length of the chunked body that b begins with,
// trailers included; -1 if it is not whole.
func diffChunkedLen(b []byte) int {
	at := 0
	line := func() string {
		i := bytes.Index(b[at:], []byte("\r\n"))
		if i < 0 {
			return "-"
		}
		s := string(b[at : at+i])
		at += i + 2
		return s
	}
	for {
		n, err := strconv.ParseInt(line(), 16, 32)
		if err != nil {
			return -1
		}
		if n == 0 {
			for {
				switch line() {
				case "":
					return at
				case "-":
					return -1
				}
			}
		}
		if at += int(n); at > len(b) || line() != "" {
			return -1
		}
	}
}
