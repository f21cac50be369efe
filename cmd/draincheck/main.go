// Command draincheck shows what stopping a server loses.
//
//	draincheck                                # net/http and this library, side by side
//	draincheck -- ./my-server -port {port}    # yours: starts it, loads it, stops it, counts
//	draincheck -via haproxy -- ./my-server -port {port}
//	draincheck -url http://127.0.0.1:8080 -pid 4711
//	draincheck results                        # makes this repository's docs/results.md
//
// It puts load of several kinds on the server, sends it SIGTERM in the middle,
// waits for its exit, and counts. A request is lost if any of its bytes were
// sent and no complete response came back. A refused new connection is not a
// loss. Nothing is retried.
//
// The exit status is 0 if nothing was lost, 1 if something was or the check
// could not be made, and 2 for wrong usage. For the demonstration, net/http's
// losses do not count.
package main

// The way through the files: flags say what to check; deploy (process, balancer)
// starts it; probe finds out which kinds of traffic (lanes) it takes; check puts
// the load on and stops it; report keeps what happened; verdict and advice say
// what that means; table, html, svg, junit and github show it. contenders are
// the servers that this program is itself, and results has them compared, others
// with them.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		stop() // the server under test has its own way with signals
		os.Exit(serveMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == otherCommand {
		os.Exit(otherMain(os.Args[2:]))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const (
	exitLost  = 1
	exitUsage = 2
)

// run is the whole command; it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if args, ok := resultsArgs(args); ok {
		return resultsMain(ctx, args, stderr)
	}
	c, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "draincheck:", err)
		fmt.Fprintln(stderr, `Run "draincheck -h" for what there is.`)
		return exitUsage
	case c.version:
		fmt.Fprintln(stdout, versionLine())
		return 0
	}
	var before *Report
	if c.compare != "" {
		if before, err = loadReport(c.compare); err != nil {
			fmt.Fprintln(stderr, "draincheck: -compare:", err)
			return exitUsage
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.total, fmt.Errorf("the check took longer than %v (-timeout)", c.total))
	defer cancel()
	rep, err := c.check(ctx, stderr)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
			if errors.Is(cause, context.Canceled) {
				err = errors.New("interrupted")
			}
		}
		fmt.Fprintln(stderr, "draincheck:", err)
		var u usageError
		if errors.As(err, &u) {
			return exitUsage
		}
		return exitLost
	}
	people := stdout
	if c.json == "-" {
		people = stderr // standard output is the JSON's
	}
	rep.writeTable(people)
	if before != nil {
		for _, line := range rep.since(before) {
			fmt.Fprintln(people, line)
		}
	}
	if c.github {
		rep.writeAnnotations(people)
	}
	if err := c.writeFiles(rep, stdout); err != nil {
		fmt.Fprintln(stderr, "draincheck:", err)
		return exitLost
	}
	if !rep.Verdict.Passed {
		return exitLost
	}
	return 0
}

// resultsArgs reports whether args are those of draincheck results, whose name
// may stand before its flags or behind them, and returns the flags.
func resultsArgs(args []string) ([]string, bool) {
	switch n := len(args); {
	case n > 0 && args[0] == resultsCommand:
		return args[1:], true
	case n > 1 && args[n-1] == resultsCommand && strings.HasPrefix(args[0], "-") && !slices.Contains(args, "--"):
		return args[:n-1], true
	}
	return nil, false
}

// A usageError is the caller's to mend, found while checking.
type usageError struct{ error }
