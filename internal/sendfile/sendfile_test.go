package sendfile

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIsFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	for _, tt := range []struct {
		name string
		r    io.Reader
		want bool
	}{
		{"file", f, true},
		{"part of a file", io.LimitReader(f, 1), true},
		{"pipe", pr, false},
		{"string", strings.NewReader("x"), false},
		{"part of a string", io.LimitReader(strings.NewReader("x"), 1), false},
		{"hidden file", struct{ io.Reader }{f}, false},
	} {
		if got := IsFile(tt.r); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
