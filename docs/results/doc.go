// Package results holds what "draincheck results" found: pictures and numbers.
// It is a module of its own so that the library's zip file has none of it.
package results
