package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	eventStreamType = "text/event-stream"

	// listenFor is how long an event stream is listened to for one request.
	listenFor = 100 * time.Millisecond

	// reopen is after how long a stream that was ended is opened again.
	reopen = 50 * time.Millisecond
)

// An sseClient listens to an event stream.
type sseClient struct {
	line
	ended chan error // of the open stream: receives why its reader ended; nil is in order
}

func (c *sseClient) do(id string) (Outcome, error) {
	deadline := time.Now().Add(c.load.Timeout)
	if c.ended == nil {
		if err := c.dial(deadline); err != nil {
			return Refused, err
		}
		if err := c.open(id, deadline); err != nil {
			c.close()
			return Lost, err
		}
	}
	t := time.NewTimer(listenFor)
	defer t.Stop()
	select {
	case <-t.C:
		return Answered, nil
	case err := <-c.ended:
		c.ended = nil
		c.line.close()
		if err != nil {
			return Lost, err
		}
		return Answered, nil
	}
}

// open asks for the stream, and has it read until it ends.
func (c *sseClient) open(id string, deadline time.Time) error {
	c.conn.SetDeadline(deadline)
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: graceful-traffic\r\nAccept: %s\r\nCache-Control: no-cache\r\n%s: %s\r\n\r\n",
		c.load.Path, c.load.Addr, eventStreamType, IDHeader, id); err != nil {
		return err
	}
	resp, err := c.response("GET")
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return &failure{fmt.Sprintf("status %d", resp.StatusCode), errors.New("no event stream")}
	case !strings.HasPrefix(resp.Header.Get("Content-Type"), eventStreamType):
		return &failure{causeWrong, fmt.Errorf("no event stream: its type is %.*q", shownBody, resp.Header.Get("Content-Type"))}
	}
	c.conn.SetDeadline(time.Time{})
	want := ""
	if !c.load.Any {
		want = "data: " + id
	}
	c.ended = make(chan error, 1)
	go func(ended chan<- error) { ended <- listen(resp, want) }(c.ended)
	return nil
}

// listen reads events until the stream ends, and returns nil if that came
// between two of them. Each line that is not empty has to begin with want.
func listen(resp *http.Response, want string) error {
	br := bufio.NewReaderSize(resp.Body, 4096)
	between, newLine := true, true
	for {
		text, err := br.ReadSlice('\n')
		if len(text) > 0 {
			empty := strings.Trim(string(text), "\r\n") == ""
			between = newLine && empty
			if newLine && !empty && !strings.HasPrefix(string(text), want) {
				return &failure{causeWrong, fmt.Errorf("an event of another stream: %.*q", shownBody, text)}
			}
			newLine = text[len(text)-1] == '\n'
		}
		switch {
		case err == nil, err == bufio.ErrBufferFull: // the rest of a long line is not kept
		case err == io.EOF && (between || resp.ContentLength >= 0 || len(resp.TransferEncoding) > 0):
			return nil
		case err == io.EOF:
			return &failure{"truncated", io.ErrUnexpectedEOF}
		default:
			return &failure{truncatedUnlessTimeout(err), err}
		}
	}
}

// rest implements client. An open stream is read meanwhile.
func (c *sseClient) rest(flow context.Context, d time.Duration) bool {
	closed := c.ended == nil
	if closed {
		d = max(d, reopen)
	}
	pause(flow, d)
	return closed
}

func (c *sseClient) close() {
	c.line.close()
	if c.ended != nil {
		<-c.ended
		c.ended = nil
	}
}

// serveEvents sends an event every 20 ms, until the client goes or the server
// drains.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	var draining <-chan struct{}
	if h.Draining != nil {
		draining = h.Draining(r.Context())
	}
	id := r.Header.Get(IDHeader)
	h.execute(id)
	w.Header().Set("Content-Type", eventStreamType)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		fmt.Fprintf(w, "data: %s %d\n\n", id, i)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-draining:
			return
		case <-r.Context().Done():
			return
		}
	}
}
