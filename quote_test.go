package graceful

import (
	"strings"
	"testing"
)

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":                        `""`,
		"GET /path":               `"GET /path"`,
		"/\n2026 \x1b[2J\"\\":     `"/\n2026 \x1b[2J\"\\"`,
		"/é\u202e\u2028\xff":      `"/é\u202e\u2028\xff"`,
		strings.Repeat("x", 256):  `"` + strings.Repeat("x", 256) + `"`,
		strings.Repeat("x", 257):  `"` + strings.Repeat("x", 256) + `"...`,
		strings.Repeat("é", 1000): `"` + strings.Repeat("é", 128) + `"...`,
	} {
		if got := quote(s); got != want {
			t.Errorf("%.20q: %s, want %s", s, got, want)
		}
	}
}
