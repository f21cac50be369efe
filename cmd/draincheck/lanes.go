package main

import (
	"fmt"
	"strings"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A lane is a kind of traffic, as the table and the picture show it.
type lane struct {
	Name    string // for flags, tables and JSON
	title   string // of its row in the picture; "" folds it into "other kinds" unless it lost
	kind    traffic.Kind
	tls     bool
	extra   bool // only if asked for by name
	foreign bool // not part of the demonstration and the results
}

// lanes are all of them, in the order in which they are shown.
var lanes = []lane{
	{Name: "keep-alive", title: "keep-alive", kind: traffic.KeepAlive},
	{Name: "new-conn", title: "new connections", kind: traffic.NewConn},
	{Name: "think-10ms", kind: traffic.Think10},
	{Name: "think-100ms", kind: traffic.Think100},
	{Name: "half-header", kind: traffic.HalfKept5},
	{Name: "half-header-new", kind: traffic.HalfNew50},
	{Name: "upload", title: "uploads", kind: traffic.Upload},
	{Name: "download", title: "downloads", kind: traffic.Stream},
	{Name: "expect-100", kind: traffic.Expect},
	{Name: "tls", kind: traffic.KeepAlive, tls: true},
	{Name: "tls-new-conn", kind: traffic.NewConn, tls: true},
	{Name: "http2", kind: traffic.HTTP2, tls: true},
	{Name: "http2-download", kind: traffic.HTTP2Stream, tls: true},
	{Name: "http2-once", kind: traffic.HTTP2Once, tls: true, extra: true},
	{Name: "h2c", kind: traffic.HTTP2},
	{Name: "websocket", title: "WebSocket", kind: traffic.WebSocket},
	{Name: "sse", kind: traffic.SSE, foreign: true},
	{Name: "grpc", kind: traffic.GRPC, foreign: true},
	{Name: "grpc-stream", kind: traffic.GRPCStream, foreign: true},
	{Name: "idle", kind: traffic.Idle},
}

// about describes the lane in one line.
func (l lane) about() string {
	s := l.kind.About
	switch {
	case l.tls:
		s += ", over TLS"
	case l.kind.HTTP2():
		s += ", in the clear"
	}
	return s
}

// opens reports whether each request of l opens a connection.
func (l lane) opens() bool {
	return l.kind == traffic.NewConn || l.kind == traffic.HalfNew50
}

// laneNamed returns the lane of that name; the zero lane if there is none.
func laneNamed(name string) lane {
	for _, l := range lanes {
		if l.Name == name {
			return l
		}
	}
	return lane{}
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
