package graceful

import "time"

// A connState is where a tracked connection stands.
//
//	        first byte            request             response
//	new ───────────────▶ receiving ───────▶ active ─────────────▶ idle
//	 │                       ▲                 │                   │ │
//	 │                       └─────────────────┼── first byte ─────┘ │
//	 └──▶ ending ◀─────────────────────────────┼─────────────────────┘
//	         │  (bytes turned up: receiving)   └──▶ hijacked
//	         ▼
//	      closed   (from every state)
type connState uint8

const (
	// connNew: accepted, and has said nothing. Goes to receiving, ending
	// and closed; to active where the bytes are not seen (see besideConn).
	connNew connState = iota

	// connReceiving: some bytes have come, no whole request yet. A
	// connection leaves it for active, or closed.
	connReceiving

	// connActive: a request is in progress. Goes to idle, hijacked, closed.
	connActive

	// connIdle: the last response is out and nothing has come since. Goes to
	// receiving, ending, closed; to active where the bytes are not seen.
	connIdle

	// connEnding: was new or idle, and has been told to end: its Read comes
	// back, looks once more, and goes to receiving or closed.
	connEnding

	// connHijacked: its protocol is no longer ours. Goes to closed.
	connHijacked

	// connClosed is terminal.
	connClosed

	connStates = iota
)

var connStateNames = [connStates]string{
	"new", "receiving", "active", "idle", "ending", "hijacked", "closed",
}

func (s connState) String() string { return connStateNames[s] }

// A connWord is a connection's state (the low three bits) and since when it
// is in it (nanoseconds since the manager's start, in the rest), in one word,
// so that both change together. A connection that was receiving is active since
// its request began to come, which saves one look at the clock.
type connWord uint64

const connStateBits = 3

func (w connWord) state() connState { return connState(w & (1<<connStateBits - 1)) }

// as returns the word for the state s since the same time.
func (w connWord) as(s connState) uint64 {
	return uint64(w)&^(1<<connStateBits-1) | uint64(s)
}

func (w connWord) since() time.Duration { return time.Duration(w >> connStateBits) }

// What else there is to know about a connection; bits of conn.flags.
const (
	// flagWrote: something was written since the connection became active.
	flagWrote = 1 << iota

	// flagAhead: while the connection was active, bytes were read that
	// belong to what comes after.
	flagAhead

	// flagGuess: that a connection is receiving is a guess, because
	// encryption hides what the bytes are.
	flagGuess

	// flagFarewell: the peer is told that this answer is the last.
	flagFarewell

	// flagStreams: a protocol with streams of its own and a farewell of its
	// own (HTTP/2). What it reads between requests is not a request.
	flagStreams

	// flagLayered: it has flagStreams, and the layer that speaks the protocol
	// ends it when it is idle.
	flagLayered

	// flagTLS: encrypted by a layer above; what is read are records.
	flagTLS

	// flagBeside: nothing was wrapped; the bytes are not seen.
	flagBeside

	// flagSpoken: there has been a request on the connection.
	flagSpoken

	// flagShaken: its TLS handshake is over. Found out during the drain.
	flagShaken

	// flagProbed: somebody is finding it out.
	flagProbed

	// flagGiveBack: the byte that was read ahead is to be read again.
	flagGiveBack

	// flagUnclosed: Close has left it open.
	flagUnclosed

	// flagVague: there was a request that did not say how long its body is, or
	// one behind which more was read. What is read behind the next is not known.
	flagVague

	// flagInHandler: the request in progress has come to its handler, which
	// has not returned. Without flagStreams.
	flagInHandler

	// flagReported: that request is being read for a report.
	flagReported

	// flagDisowned: the next Close is net/http's, of a connection that it has
	// no more.
	flagDisowned

	// flagReleased: the slot in the limit was given back.
	flagReleased
)
