package main

import (
	"fmt"
	"os"
	"strings"
)

// children returns the processes that this one has started and that still run,
// with a space before each.
func children() string {
	var b strings.Builder
	for _, pid := range family(os.Getpid())[1:] {
		fmt.Fprint(&b, " ", pid)
	}
	return b.String()
}
