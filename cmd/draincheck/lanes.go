package main

import (
	"fmt"
	"strings"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A lane is a kind of traffic, as the table and the picture show it.
type lane struct {
	Name  string
	kind  traffic.Kind
	tls   bool
	extra bool // only if asked for by name
}

// lanes are all of them, in the order in which they are shown.
var lanes = []lane{
	{Name: "keep-alive", kind: traffic.KeepAlive},
	{Name: "new-conn", kind: traffic.NewConn},
	{Name: "think-10ms", kind: traffic.Think10},
	{Name: "think-100ms", kind: traffic.Think100},
	{Name: "half-header", kind: traffic.HalfKept5},
	{Name: "half-header-new", kind: traffic.HalfNew50},
	{Name: "upload", kind: traffic.Upload},
	{Name: "download", kind: traffic.Stream},
	{Name: "expect-100", kind: traffic.Expect},
	{Name: "tls", kind: traffic.KeepAlive, tls: true},
	{Name: "tls-new-conn", kind: traffic.NewConn, tls: true},
	{Name: "http2", kind: traffic.HTTP2, tls: true},
	{Name: "http2-download", kind: traffic.HTTP2Stream, tls: true},
	{Name: "http2-once", kind: traffic.HTTP2Once, tls: true, extra: true},
	{Name: "h2c", kind: traffic.HTTP2},
	{Name: "websocket", kind: traffic.WebSocket},
	{Name: "idle", kind: traffic.Idle},
}

// about describes the lane in one line.
func (l lane) about() string {
	s := l.kind.About
	switch {
	case l.kind.HTTP2() && !l.tls:
		s += ", in the clear"
	case l.tls:
		s += ", over TLS"
	}
	return s
}

func laneUsage() string {
	var b strings.Builder
	for _, l := range lanes {
		mark := ""
		if l.extra {
			mark = " (not part of all)"
		}
		fmt.Fprintf(&b, "  %-16s %s%s\n", l.Name, l.about(), mark)
	}
	return strings.TrimRight(b.String(), "\n")
}
