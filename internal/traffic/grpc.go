package traffic

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What is needed of gRPC over HTTP/2: a message is a byte that says whether it
// is compressed, its length in four bytes, and itself; the response's trailer
// has the status. So the gRPC kinds go through http.Transport as the other
// HTTP/2 kinds do, and need no module. The module interop tests them against
// google.golang.org/grpc.

const (
	grpcCheck   = "/grpc.health.v1.Health/Check"
	grpcReflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

	// maxMessage bounds, in bytes, a message that is believed.
	maxMessage = 16 << 20
)

// grpcMessage returns the message as it is sent.
func grpcMessage(payload string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(payload)))) + payload
}

// grpcCall returns the path of the method that l calls, and all messages that it
// sends there.
func (l *Load) grpcCall() (path, body string) {
	if l.Kind.upload > 0 {
		const listServices = "\x3a\x01*" // ServerReflectionRequest.list_services = "*"
		return grpcReflect, strings.Repeat(grpcMessage(listServices), pieces)
	}
	return grpcCheck, grpcMessage("") // HealthCheckRequest of the server as a whole
}

// grpcStatuses are the names of the statuses that tell something of a server's
// end, or of what it serves.
var grpcStatuses = map[int]string{
	1: "CANCELLED", 2: "UNKNOWN", 4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
}

// finishGRPC reads the rest of resp and returns an error unless it is complete
// and its status is an answer.
func finishGRPC(resp *http.Response) (response, error) {
	saw := response{status: resp.StatusCode}
	began := time.Now()
	n, err := countMessages(resp.Body)
	saw.bytes, saw.over = n, time.Since(began)
	if err != nil {
		return saw, &failure{truncatedUnlessTimeout(err), err}
	}
	if resp.StatusCode != http.StatusOK {
		return saw, &failure{fmt.Sprintf("status %d", resp.StatusCode), errors.New("not gRPC")}
	}
	text := resp.Trailer.Get("Grpc-Status")
	if text == "" {
		text = resp.Header.Get("Grpc-Status") // a response without messages
	}
	status, err := strconv.Atoi(text)
	switch {
	case err != nil:
		return saw, &failure{"no grpc-status", errors.New("the response ended without a status")}
	case status == 0, status == 5: // OK; NOT_FOUND is an answer too
		return saw, nil
	}
	name := grpcStatuses[status]
	if name == "" {
		name = fmt.Sprint("status ", status)
	}
	message := resp.Trailer.Get("Grpc-Message") + resp.Header.Get("Grpc-Message")
	return saw, &failure{"grpc " + name, fmt.Errorf("%.*q", shownBody, message)}
}

// countMessages reads messages to the end and returns how many bytes they had.
func countMessages(r io.Reader) (n int64, err error) {
	br := bufio.NewReader(r)
	for {
		size, err := messageSize(br)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		m, err := io.CopyN(io.Discard, br, size)
		if n += m; err != nil {
			return n, unexpected(err)
		}
	}
}

// messageSize reads what is in front of a message; io.EOF says that there is
// none.
func messageSize(r io.Reader) (int64, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	size := int64(binary.BigEndian.Uint32(head[1:]))
	if size > maxMessage {
		return 0, &failure{causeWrong, fmt.Errorf("a gRPC message of %d bytes", size)}
	}
	return size, nil
}

// serveGRPC answers a call of any method: with one message for each that comes,
// and the status OK.
func (h *Handler) serveGRPC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(IDHeader, r.Header.Get(IDHeader))
	for {
		size, err := messageSize(r.Body)
		if err == io.EOF {
			break
		}
		if err == nil {
			_, err = io.CopyN(io.Discard, r.Body, size)
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, grpcMessage("\x08\x01")) // HealthCheckResponse.status = SERVING
		http.NewResponseController(w).Flush()
	}
	h.execute(r.Header.Get(IDHeader))
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}
