package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/seed-121bbccf/graceful/internal/traffic"
	"golang.org/x/term"
)

// progress shows how far the check is, if there is a terminal to show it on.
type progress struct {
	bar    *progressbar.ProgressBar // nil: no terminal
	rounds int                      // of each subject
	done   int                      // rounds, of all subjects
}

func newProgress(w io.Writer, c *config) *progress {
	p := &progress{rounds: c.rounds}
	f, ok := w.(*os.File)
	if !ok || c.verbose || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.bar = progressbar.NewOptions(c.rounds*len(c.subjects),
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "━", SaucerHead: "━", SaucerPadding: "─", BarStart: "", BarEnd: ""}),
	)
	return p
}

// follow shows round n of found, with what runs have counted so far, until the
// function that it returns is called: then that round is over.
func (p *progress) follow(found *Subject, n int, runs []*traffic.Run) (over func()) {
	if p.bar == nil {
		return func() {}
	}
	sent0, lost0 := found.sent(), found.lost()
	show := func() {
		sent, lost := sent0, lost0
		for _, r := range runs {
			if r != nil {
				s, _, _, l := r.Progress()
				sent, lost = sent+s, lost+l
			}
		}
		p.bar.Describe(fmt.Sprintf("%s: stop %d of %d, %s of %s requests lost", clip(found.Name, 30), n+1, p.rounds, thousands(lost), thousands(sent)))
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			show()
			select {
			case <-tick.C:
			case <-done:
				tick.Stop()
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		p.done++
		p.bar.Set(p.done)
	}
}

func (p *progress) end() {
	if p.bar != nil {
		p.bar.Finish()
	}
}
