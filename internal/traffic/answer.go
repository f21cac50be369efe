package traffic

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"time"
)

// IDHeader carries a request's id, in both directions.
const IDHeader = "X-Traffic-Id"

// maxBody is the largest response, in bytes, that a client reads.
const maxBody = 64 << 20

// bodyFor returns the body of the request with that id. It begins with the id,
// so that Handler can tell when it is handed another request's body.
func bodyFor(id string, slow time.Duration) string {
	size := bodySize
	if slow > 0 {
		size *= pieces
	}
	body := id + " "
	return body + strings.Repeat("x", size-len(body))
}

// answerTo returns what Handler answers to that body: the sum is proof that all
// of it arrived.
func answerTo(id, body string) string {
	return fmt.Sprintf("%s %d %08x\n", id, len(body), crc32.ChecksumIEEE([]byte(body)))
}

// piece returns the i-th piece of a streamed answer.
func piece(id string, i int) string {
	return fmt.Sprintf("%s %d %s\n", id, i, strings.Repeat("y", bodySize))
}

// check returns an error unless the complete response is the one that the
// request with that id and body has to get.
func (l *Load) check(id, body string, status int, h http.Header, got []byte) error {
	if status >= 500 || !l.Any && status != http.StatusOK {
		return &failure{fmt.Sprintf("status %d", status), fmt.Errorf("%.200q", got)}
	}
	if l.Any {
		return nil
	}
	if other := h.Get(IDHeader); other != id {
		return &failure{causeWrong, fmt.Errorf("the answer to %q came for %q", other, id)}
	}
	want := answerTo(id, body)
	if l.Kind.stream > 0 {
		var b strings.Builder
		for i := range pieces {
			b.WriteString(piece(id, i))
		}
		want = b.String() + want
	}
	if string(got) != want {
		return &failure{causeWrong, errors.New("the answer is not what was sent: " + fmt.Sprintf("%.200q", got))}
	}
	return nil
}
