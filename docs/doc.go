// Package docs is the documentation. It is a module of its own so that the library's
// zip file, which everybody who uses the library downloads, has none of it.
package docs
