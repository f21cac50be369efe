// Package sendfile knows what the kernel can copy to a socket by itself.
package sendfile

import (
	"io"
	"io/fs"
)

// IsFile reports whether r is a regular file, or part of one, so that reading
// from it does not wait for another process. io.Copy hides the *os.File in a
// type of os's own, which has its Stat method.
func IsFile(r io.Reader) bool {
	if l, ok := r.(*io.LimitedReader); ok {
		r = l.R
	}
	f, ok := r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}
