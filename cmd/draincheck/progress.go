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
	bar  *progressbar.ProgressBar // nil: no terminal
	done int                      // stops, of all subjects
}

// newProgress is for that many stops; quiet, if something else writes there.
func newProgress(w io.Writer, stops int, quiet bool) *progress {
	p := &progress{}
	f, ok := w.(*os.File)
	if !ok || quiet || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.bar = progressbar.NewOptions(stops,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "━", SaucerHead: "━", SaucerPadding: "─", BarStart: "", BarEnd: ""}),
	)
	return p
}

// follow shows the next of found's stops, with what runs have counted so far,
// until the function that it returns is called: then that stop is over.
func (p *progress) follow(found *Subject, stops int, runs []*traffic.Run) (over func()) {
	if p.bar == nil {
		return func() {}
	}
	n, sent0, lost0 := len(found.Stops)+1, found.sent(), found.lost()
	show := func() {
		sent, lost := sent0, lost0
		for _, r := range runs {
			if r != nil {
				s, _, _, l := r.Progress()
				sent, lost = sent+s, lost+l
			}
		}
		p.bar.Describe(fmt.Sprintf("%s: stop %d of %d, %s of %s requests lost", clip(found.Name, 30), n, stops, thousands(lost), thousands(sent)))
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
