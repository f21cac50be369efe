// Command release publishes the modules of the checkout to a directory that the
// go command takes as a module proxy: what a tag would publish, before there is
// one. docs/releasing.md says what it is for.
//
//	go run ./internal/release -o /tmp/proxy
//	GOPROXY=file:///tmp/proxy,https://proxy.golang.org GONOSUMDB=github.com/seed-121bbccf/graceful \
//		go install github.com/seed-121bbccf/graceful/cmd/draincheck@latest
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	out := flag.String("o", "", "the `directory` that becomes the module proxy")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	modules, err := publish(".", *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
	for _, m := range modules {
		fmt.Printf("%v\t%d bytes\n", m.Version, m.Size)
	}
}
