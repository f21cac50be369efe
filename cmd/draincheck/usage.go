package main

import (
	"flag"
	"fmt"
	"io"
)

const usage = `Usage:
  draincheck [flags]                          the demonstration: net/http beside this library
  draincheck [flags] -- command [arguments]   starts the command; {port} in its arguments, and
                                              PORT in its environment, is the port to serve on;
                                              {tlsport}, if there, is one more, for TLS
  draincheck [flags] -url URL -pid N          a server that something else runs
  draincheck [flags] -url URL -stop-command "..."
  draincheck results [flags]                  makes this library's docs/results.md, for hours
                                              (draincheck results -h)

The exit status is 0 if nothing was lost, 1 if something was or the check could not be
made, and 2 for wrong usage. Manual: ` + manual + `
`

// manual is where the documentation is read.
const manual = "https://github.com/seed-121bbccf/graceful/blob/main/docs/draincheck.md"

// flagGroups are the flags in the order in which the usage shows them.
var flagGroups = []struct {
	title string
	names []string
}{
	{"What to run", []string{"url", "pid", "stop-command", "rounds", "timeout", "version"}},
	{"Traffic", []string{"traffic", "clients", "rate", "warm", "window", "method", "path", "upload-path", "download-path", "ws-path", "sse-path"}},
	{"Deploy", []string{"signal", "grace", "replace", "via", "health"}},
	{"Verdict", []string{"max-lost", "max-lost-percent", "compare"}},
	{"Output", []string{"json", "junit", "github", "html", "svg", "v"}},
}

func writeUsage(w io.Writer, fs *flag.FlagSet) {
	io.WriteString(w, usage)
	for _, g := range flagGroups {
		fmt.Fprintf(w, "\n%s:\n", g.title)
		group := flag.NewFlagSet("", flag.ContinueOnError)
		group.SetOutput(w)
		for _, name := range g.names {
			f := fs.Lookup(name)
			group.Var(f.Value, f.Name, f.Usage)
			group.Lookup(name).DefValue = f.DefValue
		}
		group.PrintDefaults()
	}
}
