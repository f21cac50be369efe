package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// slowEnough is how long a response has to come for, so that it is a download: a
// stop is to meet it in the middle.
const slowEnough = 50 * time.Millisecond

// A probe finds out, with one request of each, which kinds of traffic a server
// takes, and how.
type probe struct {
	c     *config
	s     subject
	d     deployment
	found *Subject

	plain, secure error // why HTTP/1.1 is not spoken, in the clear and over TLS
}

// probe finds out which kinds of traffic s takes, and skips the others.
func (c *config) probe(ctx context.Context, s subject, d deployment, found *Subject) error {
	p := &probe{c: c, s: s, d: d, found: found}
	p.plain = p.speaks(ctx, false)
	if p.plain != nil || slices.ContainsFunc(c.lanes, func(l lane) bool { return l.tls }) {
		p.secure = p.speaks(ctx, true)
	}
	served := false
	for i, l := range c.lanes {
		err := p.lane(ctx, l, found.Lanes[i])
		if err != nil {
			found.Lanes[i].Skipped = err.Error()
		}
		served = served || err == nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !served {
		return usageError{fmt.Errorf("the server takes none of the kinds of traffic (%s: %s)", found.Lanes[0].Name, found.Lanes[0].Skipped)}
	}
	return nil
}

// speaks returns why the server does not answer HTTP/1.1 in the clear, or over
// TLS.
func (p *probe) speaks(ctx context.Context, tls bool) error {
	_, err := p.try(ctx, lane{kind: traffic.KeepAlive, tls: tls}, &Lane{any: true})
	return err
}

// lane returns why the server does not take l. Otherwise found says whether its
// answers are those of traffic.Handler, so that they can be checked to the last
// byte, and whether it wants TLS where l has none.
func (p *probe) lane(ctx context.Context, l lane, found *Lane) error {
	if l.tls && p.secure != nil {
		return p.secure
	}
	found.tls = !l.tls && p.plain != nil && p.secure == nil
	if res, err := p.try(ctx, l, found); err == nil || !p.s.any {
		found.saw(res)
		return err
	}
	found.any = true
	if l.kind.GRPC() {
		return p.grpc(ctx, l, found)
	}
	if p.c.method == "GET" {
		// Requests that need no body have none.
		if l.kind == traffic.HTTP2Once {
			return errors.New("without bodies (-method) it is http2")
		}
		found.About = strings.NewReplacer(", POST with a body", "", ", bodies that can be replayed", "").Replace(found.About)
	}
	path, by := p.c.pathOf(l)
	res, err := p.try(ctx, l, found)
	switch {
	case err != nil && l.kind.WebSocket():
		// A server that does not echo answers pings, as RFC 6455 wants it.
		found.kind = traffic.WebSocketPing
		if _, err := p.try(ctx, l, found); err != nil {
			return fmt.Errorf("no WebSocket at %s (%s): %w", path, by, err)
		}
		found.About = traffic.WebSocketPing.About
		p.found.note("the server does not echo messages: %s sends pings", l.Name)
		return nil
	case err != nil && l.kind.EventStream():
		return fmt.Errorf("no event stream at %s (%s)", path, by)
	case err != nil:
		return err
	}
	for status := range res.Statuses {
		if l.kind.HasBody() && status >= 400 {
			return fmt.Errorf("POST %s answers %d (%s)", path, status, by)
		}
	}
	if l.kind.Downloads() {
		if res.Longest < slowEnough {
			return fmt.Errorf("the response to %s %s comes within %d ms (%s names one that takes a while, or has more than 1 MiB)",
				p.c.method, path, res.Longest.Milliseconds(), by)
		}
		found.About = strings.Replace(found.About, "100 ms", fmt.Sprintf("%d ms", res.Longest.Milliseconds()), 1)
	}
	found.saw(res)
	return nil
}

// grpc returns why the server does not take the gRPC call.
func (p *probe) grpc(ctx context.Context, l lane, found *Lane) error {
	_, err := p.try(ctx, l, found)
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "UNIMPLEMENTED") && l.kind == traffic.GRPC:
		return errors.New("the service grpc.health.v1.Health is not registered")
	case strings.Contains(err.Error(), "UNIMPLEMENTED"):
		return errors.New("the service grpc.reflection.v1.ServerReflection is not registered")
	}
	return errors.New("no gRPC")
}

// try makes one request of l and returns what happened, or why it was not
// answered.
func (p *probe) try(ctx context.Context, l lane, found *Lane) (*traffic.Result, error) {
	load, err := p.c.load(p.d, l, found)
	if err != nil {
		return nil, err
	}
	load.Clients, load.Limit, load.Rate, load.Redial, load.Timeout = 1, 1, 0, 0, 5*time.Second
	if load.Kind.Name == traffic.Idle.Name {
		load.Kind = traffic.KeepAlive
	}
	run, err := load.Start(ctx)
	if err != nil {
		return nil, err
	}
	<-run.Done()
	res := run.Stop()
	if res.Answered > 0 {
		return res, nil
	}
	for cause, text := range res.Errors {
		if strings.HasPrefix(cause, "status ") || strings.HasPrefix(cause, "grpc ") {
			return res, fmt.Errorf("not served (%s)", cause)
		}
		return res, fmt.Errorf("not served (%.80s)", text)
	}
	return res, errors.New("not served")
}

// saw notes the status with which the server answers the lane's requests.
func (l *Lane) saw(res *traffic.Result) {
	if res == nil {
		return
	}
	for status := range res.Statuses {
		l.Status = status
	}
}
