package graceful

import (
	"strings"
	"testing"
)

// TestBeyond: whichever pieces a request comes in, what is read behind it is
// seen.
func TestBeyond(t *testing.T) {
	const get, post = "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
	for _, tt := range []struct {
		text string
		body int64
		want bool
	}{
		{get, 0, true},
		{strings.ReplaceAll(get, "\r", ""), 0, true},
		{"GET / HTTP/1.1\nHost: h\r\n\n", 0, true},
		{post + "body", 4, true},
		{post + "\n\r\n\n", 4, true},
		{post + "body", -1, false}, // chunked
		{get + "G", 0, false},
		{get + get, 0, false},
		{get + post, 0, false},
		{post + "body" + get, 4, false},
	} {
		for i := range len(tt.text) + 1 {
			for j := i; j <= len(tt.text); j++ {
				var b beyond
				for _, p := range []string{tt.text[:i], tt.text[i:j], tt.text[j:]} {
					b.head([]byte(p))
				}
				if b.exact() {
					t.Fatalf("%q: exact before it is served", tt.text)
				}
				if b.serve(tt.body); b.exact() != tt.want {
					t.Fatalf("%q, cut at %d and %d: %+v", tt.text, i, j, b)
				}
				b.head([]byte(get))
				if b.serve(0); b.exact() != tt.want { // for good
					t.Fatalf("%q, cut at %d and %d, and another: %+v", tt.text, i, j, b)
				}
			}
		}
	}
}
