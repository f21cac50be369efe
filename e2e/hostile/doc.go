// Package hostile holds a test that attacks servers with clients that mean ill or
// are broken, in every phase of a shutdown: one server of this library, and beside
// it, under the same attack, one of net/http. It compares how long they take to
// stop, what memory they need and what they lose of well-behaved clients.
package hostile
