package main

import (
	"fmt"
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far the check is, if there is a terminal to show it on.
type progress struct {
	bar   *progressbar.ProgressBar // nil: no terminal
	quiet bool
	done  int
}

func newProgress(w io.Writer, rounds int) *progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{bar: progressbar.NewOptions(rounds,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(24),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "━", SaucerHead: "━", SaucerPadding: "─", BarStart: "", BarEnd: ""}),
	)}
}

// round says that the n-th round of a subject begins, or that it has had all.
func (p *progress) round(name string, n int, found *Subject) {
	if p.bar == nil || p.quiet {
		return
	}
	p.bar.Describe(fmt.Sprintf("%.30s: stop %d, %d requests so far, %d lost", name, n+1, found.sent(), found.lost()))
	if n > 0 {
		p.done++
		p.bar.Set(p.done)
	}
}

func (p *progress) end() {
	if p.bar != nil {
		p.bar.Finish()
	}
}
