package traffic

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// An h2Client speaks HTTP/2 through a transport that it may share.
type h2Client struct {
	load      *Load
	ctx       context.Context
	transport *http.Transport
	saw       func(response)
}

// newTransports returns as many transports as the load has connections, which
// speak nothing but HTTP/2, and a function that closes their connections.
func (r *Run) newTransports() ([]*http.Transport, func()) {
	l := &r.load
	ts := make([]*http.Transport, l.Conns)
	for i := range ts {
		p := new(http.Protocols)
		ts[i] = &http.Transport{Protocols: p, DisableCompression: true, DialContext: r.dial, MaxResponseHeaderBytes: maxHeader}
		if l.Any && l.Kind.stream > 0 {
			ts[i].HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: downloadBuffer}
		}
		if l.TLS != nil {
			p.SetHTTP2(true)
			ts[i].TLSClientConfig = tlsFor(l)
		} else {
			p.SetUnencryptedHTTP2(true)
		}
	}
	return ts, func() {
		for _, t := range ts {
			t.CloseIdleConnections()
		}
	}
}

func (c *h2Client) do(id string) (Outcome, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.load.Timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	resp, body, err := c.roundTrip(ctx, id)
	if err != nil {
		var oe *net.OpError
		switch {
		case !sent.Load():
			return Refused, notSent(err)
		case errors.As(err, &oe) && oe.Op == "dial":
			// The transport only dials again for a request that the server
			// said, by GOAWAY or REFUSED_STREAM, it had not touched.
			return Refused, &failure{causeReplay, err}
		}
		return Lost, err
	}
	defer resp.Body.Close()
	saw, err := c.finish(resp, id, body)
	c.saw(saw)
	if err != nil {
		return Lost, err
	}
	return Answered, nil
}

func (c *h2Client) finish(resp *http.Response, id, body string) (response, error) {
	if c.load.Kind.proto == grpc {
		return finishGRPC(resp)
	}
	return c.load.finish(resp, id, body)
}

func (c *h2Client) roundTrip(ctx context.Context, id string) (resp *http.Response, body string, err error) {
	path := c.load.target()
	switch {
	case c.load.Kind.proto == grpc:
		path, body = c.load.grpcCall()
	case c.load.Method != "GET":
		body = bodyFor(id, c.load.Kind.upload)
	}
	target := "http://" + c.load.Addr + path
	if c.load.TLS != nil {
		target = "https://" + c.load.Addr + path
	}
	req, err := http.NewRequestWithContext(ctx, c.load.Method, target, c.reader(body))
	if err != nil {
		return nil, "", err
	}
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(c.reader(body)), nil }
	if c.load.Kind.once {
		req.GetBody = nil
	}
	if body == "" {
		req.Body, req.GetBody = nil, nil
	}
	req.Header.Set(IDHeader, id)
	if c.load.Kind.proto == grpc {
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
	}
	resp, err = c.transport.RoundTrip(req)
	return resp, body, err
}

// reader returns body as the client sends it: at once, or piece by piece.
func (c *h2Client) reader(body string) io.Reader {
	r := io.Reader(strings.NewReader(body))
	if slow := c.load.Kind.upload; slow > 0 {
		r = &slowReader{r: r, size: (len(body) + pieces - 1) / pieces, every: slow / pieces}
	}
	return r
}

func (c *h2Client) rest(flow context.Context, d time.Duration) bool {
	pause(flow, d)
	return false
}

func (c *h2Client) close() {}

// notSent gives err, which came before the first byte of the request, a cause
// of its own if it came after the connection.
func notSent(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if cause := causeOf(err); cause != "refused" && cause != "timeout" && cause != "no local port" {
		return &failure{"handshake", err}
	}
	return err
}

type slowReader struct {
	r     io.Reader
	size  int
	every time.Duration
}

func (s *slowReader) Read(p []byte) (int, error) {
	time.Sleep(s.every)
	return s.r.Read(p[:min(len(p), s.size)])
}
