package traffic

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// An h1Client speaks HTTP/1.1.
type h1Client struct {
	line
	began, sent time.Time // when the request's first and last bytes were out
}

// errUnsent means that a kept-alive connection failed before a single byte of
// the next request had gone into it.
var errUnsent = errors.New("nothing was sent")

func (c *h1Client) do(id string) (Outcome, error) {
	deadline := time.Now().Add(c.load.Timeout)
	if c.conn != nil && c.br.Buffered() > 0 {
		c.close()
		return Lost, &failure{causeDoubled, errors.New("bytes after the previous response")}
	}
	if c.over() {
		c.close()
	}
	for {
		if err := c.dial(deadline); err != nil {
			return Refused, err
		}
		kept := c.used
		c.conn.SetDeadline(deadline)
		resp, err := c.exchange(id, deadline)
		if kept && errors.Is(err, errUnsent) {
			c.close()
			continue // not a retry: the request was not sent yet
		}
		if err != nil || resp.Close || c.load.Kind.fresh {
			c.close()
		}
		if err != nil {
			return Lost, c.excuse(err, c.began)
		}
		c.used, c.quiet = true, c.sent
		return Answered, nil
	}
}

// exchange sends the request and reads its response, to the last byte of both.
func (c *h1Client) exchange(id string, deadline time.Time) (*http.Response, error) {
	k := c.load.Kind
	head, body := c.message(id)
	sendErr := c.sendHead(head)
	if errors.Is(sendErr, errUnsent) {
		return nil, sendErr
	}
	var resp *http.Response
	if sendErr == nil && k.expect {
		var err error
		if resp, err = c.await(deadline); err != nil {
			return nil, err
		}
	}
	if sendErr == nil && resp == nil {
		sendErr = c.sendBody(body, k.upload)
	}
	for resp == nil || resp.StatusCode == http.StatusContinue {
		// Even if sending failed: the server may have answered early.
		var err error
		if resp, err = c.response(c.load.Method); err != nil {
			return nil, errors.Join(err, sendErr)
		}
	}
	if k.chunks {
		body = bodyFor(id, k.upload)
	}
	saw, err := c.load.finish(resp, id, body)
	c.saw(saw)
	return resp, err
}

// message returns the request's header and its body as it is sent.
func (c *h1Client) message(id string) (head, body string) {
	k := c.load.Kind
	if c.load.Method != "GET" {
		body = bodyFor(id, k.upload)
	}
	var h strings.Builder
	fmt.Fprintf(&h, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: graceful-traffic\r\n%s: %s\r\n", c.load.Method, c.load.target(), c.load.Addr, IDHeader, id)
	switch {
	case k.chunks:
		h.WriteString("Transfer-Encoding: chunked\r\n")
		body = chunk(body[:len(body)/2]) + chunk(body[len(body)/2:]) + chunk("")
	case body != "":
		fmt.Fprintf(&h, "Content-Length: %d\r\n", len(body))
	}
	if k.expect {
		h.WriteString("Expect: 100-continue\r\n")
	}
	if k.fresh {
		h.WriteString("Connection: close\r\n")
	}
	h.WriteString("\r\n")
	return h.String(), body
}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func (c *h1Client) sendHead(head string) error {
	first, second := head, ""
	if c.load.Kind.split > 0 {
		first, second = head[:len(head)/2], head[len(head)/2:]
	}
	if n, err := io.WriteString(c.conn, first); err != nil {
		if n == 0 {
			return fmt.Errorf("%w: %w", errUnsent, err)
		}
		c.began = time.Now()
		return err
	}
	c.began = time.Now()
	if second == "" {
		return nil
	}
	time.Sleep(c.load.Kind.split)
	_, err := io.WriteString(c.conn, second)
	return err
}

// sendBody notes when the last byte was out, before it pauses behind it.
func (c *h1Client) sendBody(body string, over time.Duration) error {
	c.sent = time.Now()
	if over == 0 {
		_, err := io.WriteString(c.conn, body)
		return err
	}
	for size := (len(body) + pieces - 1) / pieces; body != ""; {
		n := min(size, len(body))
		if _, err := io.WriteString(c.conn, body[:n]); err != nil {
			return err
		}
		c.sent = time.Now()
		body = body[n:]
		time.Sleep(over / pieces)
	}
	return nil
}

// await waits for 100 Continue, at most a second, as RFC 9110 10.1.1 asks of
// clients, and returns nil if the body is to be sent, or else the final
// response.
func (c *h1Client) await(deadline time.Time) (*http.Response, error) {
	c.conn.SetReadDeadline(time.Now().Add(time.Second))
	resp, err := c.response(c.load.Method)
	c.conn.SetReadDeadline(deadline)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	if err != nil || resp.StatusCode != http.StatusContinue {
		return resp, err
	}
	return nil, nil
}

func truncatedUnlessTimeout(err error) string {
	if cause := causeOf(err); cause == "timeout" {
		return cause
	}
	return "truncated"
}
