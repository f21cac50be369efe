package main

import (
	"fmt"
	"io"
	"strings"
)

// writeAnnotations writes the losses as workflow commands of GitHub Actions: an
// error for each kind of traffic that lost, or a warning if that is allowed.
func (r *Report) writeAnnotations(w io.Writer) {
	level := "error"
	if r.Verdict.Passed {
		level = "warning"
	}
	for _, s := range r.Subjects {
		if s.Foreign {
			continue
		}
		for _, l := range s.Lanes {
			if l.lost() == 0 {
				continue
			}
			title := fmt.Sprintf("draincheck: %s lost %s", l.Name, share(l.lost(), l.Sent))
			text := append([]string{causes(l.Lost) + " (" + s.Name + ")"}, s.adviceOn(l.Name)...)
			fmt.Fprintf(w, "::%s title=%s::%s\n", level, escapeProperty(title), escapeData(strings.Join(text, "\n")))
		}
	}
	if r.Verdict.Passed {
		level = "notice"
	}
	fmt.Fprintf(w, "::%s title=draincheck::%s\n", level, escapeData(r.Verdict.String()))
}

// What a workflow command's text and its properties must not have is written as
// in a URL.
var (
	escapeData     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace
	escapeProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace
)
