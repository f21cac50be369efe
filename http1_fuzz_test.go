package graceful_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

const (
	fuzzTimeout = 3 * time.Second
	fuzzGrace   = 100 * time.Millisecond // more than the client ever pauses
)

// FuzzBytesAroundStop sends a client's bytes, cut in pieces with pauses in
// between, while the server is stopped before one of them, and looks whether
//
//   - what came back is a sequence of whole answers, and each the right one;
//   - every whole request that was sent got one, but for those behind an
//     answer that said close;
//   - the shutdown was over in time, and at once if no half request was left.
//
// It runs in virtual time, in which a hang is found to be one at once. A cut is
// the length of a piece less one in its low five bits, and the pause after it,
// in units of 10 ms, in the others.
func FuzzBytesAroundStop(f *testing.F) {
	const (
		get     = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
		post    = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello there"
		chunked = "PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	)
	for _, data := range []string{
		"", get, post, chunked,
		get + get, post + get, chunked + post + get, get + get + get + get,
		get[:7], post[:len(post)-3], chunked[:len(chunked)-4], get + post[:20],
		"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + get,
		"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get,
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + get,
		"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + get,
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.1\r\n\r\n", "nonsense\r\n\r\n", "\r\n\r\n" + get, "\x16\x03\x01\x00\x05hello",
	} {
		for _, stop := range []int{0, 1, len(data) / 2, len(data) - 1, len(data)} {
			f.Add([]byte(data), []byte{0x46, 0x20, 0x1f, 0x9f}, uint16(max(stop, 0)))
			f.Add([]byte(data), []byte{0x1f, 0x1f, 0x1f, 0x1f}, uint16(max(stop, 0)))
		}
	}
	f.Fuzz(func(t *testing.T, data, cuts []byte, stop uint16) {
		if len(data) > 4096 || len(cuts) > 32 {
			t.Skip("larger than it need be")
		}
		synctest.Test(t, func(t *testing.T) {
			fuzzStop(t, data, cuts, int(stop)%(len(data)+1))
		})
	})
}

func fuzzStop(t *testing.T, data, cuts []byte, stop int) {
	// An answer of the handler's, and what it is the answer to.
	type answer struct{ method, body string }
	var answers []answer // written by the handlers of one connection, in turn
	var running atomic.Int32
	handler := func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Add(-1)
		body, err := io.ReadAll(r.Body)
		time.Sleep(7 * time.Millisecond)
		a := answer{r.Method, fmt.Sprintf("%s %s %q %v", r.Method, r.RequestURI, body, err != nil)}
		answers = append(answers, a)
		half := len(a.body) / 2
		io.WriteString(w, a.body[:half])
		if r.ContentLength > 5 {
			w.(http.Flusher).Flush()
			time.Sleep(7 * time.Millisecond)
		}
		io.WriteString(w, a.body[half:])
	}
	l := newVirtListener()
	srv := &graceful.Server{
		Server: &http.Server{
			Handler:                      http.HandlerFunc(handler),
			DisableGeneralOptionsHandler: true, // it is the handler that is counted on
			ErrorLog:                     log.New(io.Discard, "", 0),
		},
		Timeout:          fuzzTimeout,
		IdleGrace:        fuzzGrace,
		NoSignalHandling: true,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()

	nc, err := l.connectPipe()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&got, nc)
	}()

	var stopped time.Time
	shut := make(chan error, 1)
	sent := sendInPieces(nc, data, cuts, stop, func() {
		stopped = time.Now()
		go func() { shut <- srv.Shutdown(context.Background()) }()
	})
	err = <-shut
	took := time.Since(stopped)
	if err := <-served; err != nil {
		t.Error("Serve:", err)
	}
	<-read
	nc.Close()
	if n := running.Load(); n > 0 && len(srv.Report().Killed) == 0 {
		t.Errorf("%d handlers are running after the end\n%v", n, srv.Report())
	}
	time.Sleep(time.Second) // for handlers that were killed

	whole, rest := wholeRequests(data[:sent])
	report := srv.Report()
	switch {
	case took > fuzzTimeout:
		t.Errorf("the shutdown took %v\n%v", took, report)
	case err != nil && !errors.Is(err, graceful.ErrKilled):
		t.Error("Shutdown:", err)
	case err != nil && rest == 0:
		t.Errorf("there was nobody to kill: %v\n%v", err, report)
	}

	br := bufio.NewReader(&got)
	n, closing := 0, false
	for {
		if _, err := br.Peek(1); err == io.EOF {
			break
		}
		method := "GET"
		if n < len(answers) {
			method = answers[n].method
		}
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
		}
		if err != nil {
			if len(report.Killed) == 0 {
				t.Errorf("answer %d is not whole: %v", n, err)
			}
			break
		}
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		if closing {
			t.Errorf("answer %d comes after one that said close", n)
		}
		closing = resp.Close
		switch {
		case n >= len(answers):
			if resp.StatusCode < 400 {
				t.Errorf("answer %d is nobody's: %v %q", n, resp.Status, body)
			}
		case method != "HEAD" && string(body) != answers[n].body:
			t.Errorf("answer %d is %q; want %q", n, body, answers[n].body)
		}
		n++
	}
	if n < whole && !closing {
		t.Errorf("%d whole requests, %d answers, and none of them said close\n%v", whole, n, report)
	}
}

// sendInPieces sends data to nc and returns how much of it was taken. Before
// the byte at the index stop it calls f.
func sendInPieces(nc net.Conn, data, cuts []byte, stop int, f func()) (sent int) {
	called := false
	call := func() {
		called = true
		f()
		if stop%2 == 0 {
			synctest.Wait() // the stop comes first, and else at the same time
		}
	}
	defer func() {
		if !called {
			call()
		}
	}()
	for i := 0; sent < len(data); i++ {
		n, pause := len(data), time.Duration(0)
		if i < len(cuts) {
			n = int(cuts[i]&0x1f) + 1
			pause = time.Duration(cuts[i]>>5) * 10 * time.Millisecond
		}
		end := min(sent+n, len(data))
		if sent == stop && !called {
			call()
		}
		if sent < stop && stop < end {
			end = stop
		}
		n, err := nc.Write(data[sent:end])
		sent += n
		if err != nil {
			return sent
		}
		time.Sleep(pause)
	}
	return sent
}

// wholeRequests returns how many whole requests data begins with, and how many
// bytes come after them.
func wholeRequests(data []byte) (n, rest int) {
	data = slices.Clone(data)
	r := bytes.NewReader(data)
	br := bufio.NewReader(r)
	for {
		rest = r.Len() + br.Buffered()
		req, err := http.ReadRequest(br)
		if err != nil {
			return n, rest
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return n, rest
		}
		n++
	}
}
