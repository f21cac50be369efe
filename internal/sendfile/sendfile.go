// Package sendfile recognizes the files that the kernel can copy to a socket.
package sendfile

import (
	"io"
	"io/fs"
)

// IsFile reports whether r is a regular file, or an io.LimitedReader of one.
// Reading from such a file does not wait for another process. IsFile looks for a
// Stat method, because io.Copy passes an *os.File as an unexported type of package
// os, which has that method.
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
