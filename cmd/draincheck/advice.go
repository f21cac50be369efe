package main

import (
	"cmp"
	"slices"
	"strings"
)

// An Advice says what causes of losses mean, and what to change.
type Advice struct {
	Causes  []string `json:"causes"`
	Kinds   []string `json:"kinds"` // of traffic, which lost by it
	Lost    int      `json:"lost"`
	Meaning string   `json:"meaning"`
	Change  string   `json:"change"` // in the server, or the balancer
	Link    string   `json:"link"`
}

// remedies are what is known of causes. The first that fits counts. Each has a
// heading of its own in docs/draincheck.md.
var remedies = []struct {
	anchor          string
	fits            func(cause string, l lane, via bool) bool
	meaning, change string
}{
	{"killed", causeIs(causeKilled),
		"the server had not exited within -grace, and was killed with these requests in it",
		"find what it waits for: often connections that clients keep, which have to be told Connection: close, or a task without an end; give the stop a time limit of its own, below that of the supervisor"},
	{"paused", causeIs("paused"),
		"the client had paused for longer than the server's quiet window (-window), and spoke when its connection was being closed",
		"let the server keep idle connections for longer than its clients pause, or its clients close theirs earlier"},
	{"websocket", ofLane(func(l lane) bool { return l.kind.WebSocket() }),
		"the WebSocket ended without a close frame that is a farewell, and a message was on its way",
		"send a close frame with the code 1001 (or 1012) when the shutdown begins, and exit when the client has answered it; net/http's Shutdown does not wait for WebSockets"},
	{"event-stream", ofLane(func(l lane) bool { return l.kind.EventStream() }),
		"the event stream was cut, in an event or without the end of its encoding",
		"return from the stream's handler when the shutdown begins, so that the server can end it in order; browsers reconnect by themselves"},
	{"grpc", func(cause string, l lane, via bool) bool { return l.kind.GRPC() || strings.HasPrefix(cause, "grpc ") },
		"the server ended calls that had begun",
		"call GracefulStop, not Stop, and Stop only when the time is up"},
	{"goaway", causeIs("GOAWAY"),
		"HTTP/2's last GOAWAY left out streams that clients had already begun",
		"announce the end first, by a GOAWAY that names the stream 2^31-1, and say the last one a round trip later (RFC 9113, 6.8)"},
	{"balancer", func(cause string, l lane, via bool) bool { return via && strings.HasPrefix(cause, "status 50") },
		"the balancer answered for a server that was gone, or closed the connection which it used again",
		"serve on after the signal, while the health check fails, for longer than the balancer takes to notice; start the successor first; let the balancer repeat what is safe to repeat"},
	{"refusing", causeIs("status 503", "status 429"),
		"the server turned down requests that had reached it",
		"answer all that comes until the listener is closed; a health check is the place to say no"},
	{"failing", func(cause string, l lane, via bool) bool { return strings.HasPrefix(cause, "status 5") },
		"the handler failed while the server was being stopped",
		"close databases, queues and caches after the last request, not when the signal comes"},
	{"truncated", causeIs("truncated"),
		"the response was cut off: the server closed the connection, or exited, while it was being sent",
		"wait for requests in progress before the exit, for as long as the longest takes"},
	{"timeout", causeIs("timeout"),
		"no response came, and the connection stayed open",
		"answer or close what has been accepted; see that no worker stops before its queue is empty"},
	{"queue", func(cause string, l lane, via bool) bool {
		return l.opens() && slices.Contains([]string{"EOF", "reset", "handshake", "TLS alert"}, cause)
	},
		"the connection was closed before its first request was answered: it waited in the accept queue, or was taken from it and closed",
		"accept what the queue holds before the listener is closed, and answer the first request of each connection; a successor that binds the port first (-replace) leaves the queue empty"},
	{"keep-alive", causeIs("EOF", "reset"),
		"the server closed a kept-alive connection that it had not announced, while the next request was on its way",
		"say Connection: close in responses once the shutdown has begun, and close a connection only after such a response, or when it has been idle for longer than clients pause"},
	{"wrong", causeIs("wrong", "doubled"),
		"the answer was complete, and not the one to this request",
		"look for responses, or connections, that are shared between requests"},
	{"long-header", causeIs("long header"),
		"the response's header did not end within 1 MiB",
		"look at what writes headers"},
	{"other", func(string, lane, bool) bool { return true },
		"the request was sent and not answered; the first error is in the JSON report",
		"run draincheck with -v to see what the server writes"},
}

func causeIs(causes ...string) func(string, lane, bool) bool {
	return func(cause string, _ lane, _ bool) bool { return slices.Contains(causes, cause) }
}

func ofLane(is func(lane) bool) func(string, lane, bool) bool {
	return func(_ string, l lane, _ bool) bool { return is(l) }
}

// advise says what to do about s's losses, the most frequent cause first.
func (s *Subject) advise() []Advice {
	var all []Advice
	for _, l := range s.Lanes {
		for _, cause := range byCount(l.Lost) {
			a := adviceFor(cause, laneNamed(l.Name), s.via)
			i := slices.IndexFunc(all, func(b Advice) bool { return b.Link == a.Link })
			if i < 0 {
				i = len(all)
				all = append(all, a)
			}
			all[i].Lost += l.Lost[cause]
			all[i].Causes = addTo(all[i].Causes, cause)
			all[i].Kinds = addTo(all[i].Kinds, l.Name)
		}
	}
	slices.SortStableFunc(all, func(a, b Advice) int { return cmp.Compare(b.Lost, a.Lost) })
	return all
}

func adviceFor(cause string, l lane, via bool) Advice {
	for _, r := range remedies {
		if r.fits(cause, l, via) {
			return Advice{Meaning: r.meaning, Change: r.change, Link: manual + "#" + r.anchor}
		}
	}
	panic("unreachable: the last remedy fits all")
}

func addTo(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// String returns the advice in a sentence.
func (a Advice) String() string {
	return strings.Join(a.Causes, ", ") + " on " + strings.Join(a.Kinds, ", ") + ": " + a.Meaning + ". " + strings.ToUpper(a.Change[:1]) + a.Change[1:] + "."
}
