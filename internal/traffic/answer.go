package traffic

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"
)

// IDHeader carries a request's id, in both directions.
const IDHeader = "X-Traffic-Id"

// maxBody is the largest request, in bytes, that Handler reads.
const maxBody = 64 << 20

// shownBody is how much of a body, in bytes, an error shows.
const shownBody = 200

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

// A response is what a client saw of a complete one.
type response struct {
	status int
	bytes  int64
	over   time.Duration // from its header to its last byte
}

// finish reads the rest of resp and returns an error unless all of it came, and
// is what the request with that id and body has to get. What does not fit is
// read and not kept.
func (l *Load) finish(resp *http.Response, id, body string) (response, error) {
	want := ""
	if !l.Any {
		want = l.answer(id, body)
	}
	saw := response{status: resp.StatusCode}
	began := time.Now()
	in := io.Reader(resp.Body)
	if l.Any && l.Kind.stream > 0 {
		in = &pacedReader{r: in, budget: l.Kind.stream}
	}
	got, err := io.ReadAll(io.LimitReader(in, int64(max(len(want)+1, shownBody))))
	saw.bytes = int64(len(got))
	if err == nil {
		var more int64
		more, err = io.Copy(io.Discard, in)
		saw.bytes += more
	}
	saw.over = time.Since(began)
	if err != nil {
		return saw, &failure{truncatedUnlessTimeout(err), err}
	}
	if resp.StatusCode >= 500 || !l.Any && resp.StatusCode != http.StatusOK {
		return saw, &failure{fmt.Sprintf("status %d", resp.StatusCode), fmt.Errorf("%.*q", shownBody, got)}
	}
	if l.Any {
		return saw, nil
	}
	if other := resp.Header.Get(IDHeader); other != id {
		return saw, &failure{causeWrong, fmt.Errorf("the answer to %.*q came for %q", shownBody, other, id)}
	}
	if string(got) != want {
		return saw, &failure{causeWrong, fmt.Errorf("the answer is not what was sent: %.*q", shownBody, got)}
	}
	return saw, nil
}

// answer returns what Handler's body has to be.
func (l *Load) answer(id, body string) string {
	want := answerTo(id, body)
	if l.Kind.stream > 0 {
		var b strings.Builder
		for i := range pieces {
			b.WriteString(piece(id, i))
		}
		want = b.String() + want
	}
	return want
}

// A pacedReader takes 100 ms (its budget at the beginning) for the first MiB, as
// a client over a network would, so that the server is in the middle of a large
// response for a while.
type pacedReader struct {
	r      io.Reader
	budget time.Duration // for what is still to come
}

// largeBody is from how many bytes on a response's download takes all of its
// 100 ms, however fast the server: much more than downloadBuffer.
const (
	largeBody      = 1 << 20
	downloadBuffer = 64 << 10
)

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), downloadBuffer)])
	if d := time.Duration(n) * (100 * time.Millisecond) / largeBody; d > 0 && p.budget > 0 {
		time.Sleep(d)
		p.budget -= d
	}
	return n, err
}
