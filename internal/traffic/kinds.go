package traffic

import "time"

// A Kind is one way in which clients use a server. The variables of this file
// are all there are; with Load.TLS each of them goes over TLS.
type Kind struct {
	Name  string // one word, for flags and tables
	About string // one line, for people

	proto  proto
	fresh  bool          // a new connection for each request
	split  time.Duration // pause in the middle of the header
	think  time.Duration // pause after each response; forever: until the end
	upload time.Duration // how long the body takes to send
	chunks bool          // the header does not say how long the body is (HTTP/1)
	stream time.Duration // how long the response is asked to take
	expect bool          // sends Expect: 100-continue and waits for it
	once   bool          // the body cannot be replayed (HTTP/2)
	ping   bool          // pings instead of messages (WebSocket)
}

type proto int

const (
	http1 proto = iota
	http2
	websocket
	eventStream
	grpc
)

const (
	forever  = 1<<63 - 1
	pieces   = 5   // that a slow body is sent in, in both directions
	bodySize = 256 // bytes of a body that is sent at once
)

var (
	KeepAlive = Kind{Name: "keepalive", About: "busy keep-alive connections, POST with a body"}
	NewConn   = Kind{Name: "newconn", About: "a new connection for each request", fresh: true}

	HalfNew5   = Kind{Name: "half-new-5ms", About: "header in two halves, 5 ms apart, new connection", fresh: true, split: 5 * time.Millisecond}
	HalfNew50  = Kind{Name: "half-new-50ms", About: "header in two halves, 50 ms apart, new connection", fresh: true, split: 50 * time.Millisecond}
	HalfKept5  = Kind{Name: "half-kept-5ms", About: "header in two halves, 5 ms apart, kept-alive", split: 5 * time.Millisecond}
	HalfKept50 = Kind{Name: "half-kept-50ms", About: "header in two halves, 50 ms apart, kept-alive", split: 50 * time.Millisecond}

	Think10  = Kind{Name: "think-10ms", About: "kept-alive, 10 ms between requests", think: 10 * time.Millisecond}
	Think100 = Kind{Name: "think-100ms", About: "kept-alive, 100 ms between requests", think: 100 * time.Millisecond}

	Upload  = Kind{Name: "upload", About: "a body that takes 100 ms to send", upload: 100 * time.Millisecond}
	Stream  = Kind{Name: "stream", About: "a response that takes 100 ms to come", stream: 100 * time.Millisecond}
	Chunked = Kind{Name: "chunked", About: "a body of a length that is not said, in two chunks", chunks: true}
	Expect  = Kind{Name: "expect", About: "Expect: 100-continue before the body", expect: true}

	// HTTP2 is HTTP/2 over TLS, or in the clear (h2c) without Load.TLS.
	HTTP2       = Kind{Name: "http2", About: "HTTP/2, bodies that can be replayed", proto: http2}
	HTTP2Once   = Kind{Name: "http2-once", About: "HTTP/2, bodies that cannot be replayed", proto: http2, once: true}
	HTTP2Upload = Kind{Name: "http2-upload", About: "HTTP/2, a body that takes 100 ms to send", proto: http2, upload: 100 * time.Millisecond}
	HTTP2Stream = Kind{Name: "http2-stream", About: "HTTP/2, a response that takes 100 ms to come", proto: http2, stream: 100 * time.Millisecond}

	// WebSocket sends a text message and waits for its echo. A close frame with
	// the code 1000, 1001 or 1012, or without one, is a farewell: a message that
	// crosses it is the client's to repeat, and counts as refused. The message
	// "bye" is one too; the server goes on echoing then until the client closes.
	WebSocket = Kind{Name: "websocket", About: "WebSocket messages and their echo, 10 ms apart", proto: websocket, think: 10 * time.Millisecond}

	// WebSocketPing sends a ping and waits for its pong, which every WebSocket
	// server has to send.
	WebSocketPing = Kind{Name: "websocket-ping", About: "WebSocket pings and their pongs, 10 ms apart", proto: websocket, think: 10 * time.Millisecond, ping: true}

	// SSE keeps a stream of server-sent events open; each 100 ms of it count as
	// a request. A stream that the server ends between two events is ended in
	// order, and is opened again, as a browser does.
	SSE = Kind{Name: "sse", About: "server-sent events: a stream that stays open, counted every 100 ms", proto: eventStream, think: time.Millisecond}

	// GRPC calls grpc.health.v1.Health/Check. GRPCStream sends five requests,
	// 20 ms apart, on one stream of grpc.reflection.v1.ServerReflection.
	GRPC       = Kind{Name: "grpc", About: "gRPC, unary: grpc.health.v1.Health/Check", proto: grpc}
	GRPCStream = Kind{Name: "grpc-stream", About: "gRPC, a stream of 100 ms: grpc.reflection.v1.ServerReflection", proto: grpc, upload: 100 * time.Millisecond}

	// Idle makes one request and then keeps its connection. When the server
	// ends it, it makes one request more.
	Idle = Kind{Name: "idle", About: "connections that are kept and not used", think: forever}
)

// Kinds returns every kind but SSE, which needs a handler that ends its streams
// when the server drains, in the order in which a report shows them.
func Kinds() []Kind {
	return []Kind{
		KeepAlive, NewConn, HalfNew5, HalfNew50, HalfKept5, HalfKept50, Think10, Think100,
		Upload, Stream, Chunked, Expect, HTTP2, HTTP2Once, HTTP2Upload, HTTP2Stream, WebSocket, WebSocketPing,
		GRPC, GRPCStream, Idle,
	}
}

// KindByName returns the kind of that name and reports whether there is one.
func KindByName(name string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

func (k Kind) String() string { return k.Name }

// HTTP2 reports whether k speaks HTTP/2, as gRPC does.
func (k Kind) HTTP2() bool { return k.proto == http2 || k.proto == grpc }

// GRPC reports whether k speaks gRPC.
func (k Kind) GRPC() bool { return k.proto == grpc }

// EventStream reports whether k listens to server-sent events.
func (k Kind) EventStream() bool { return k.proto == eventStream }

// HasBody reports whether k is about the bodies of its requests, so that it is
// nothing for a resource that takes none.
func (k Kind) HasBody() bool { return k.proto != grpc && (k.upload > 0 || k.chunks || k.expect) }

// Downloads reports whether k is about responses that take a while.
func (k Kind) Downloads() bool { return k.stream > 0 }

// WebSocket reports whether k speaks WebSocket.
func (k Kind) WebSocket() bool { return k.proto == websocket }
