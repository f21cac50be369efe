package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"thousands": thousands,
	"short":     short,
	"causes":    causes,
	"total":     sum,
}).Parse(pageText))

// trackW is the width of a track's coordinates. Tracks are stretched to what the
// screen has; their text stands beside them and keeps its size.
const trackW = 1000

// html returns the page for -html: one file that needs nothing else.
func (r *Report) html() ([]byte, error) {
	sc := r.scale(500)
	sc.w = trackW
	var panels []panel
	for _, s := range r.Subjects {
		panels = append(panels, panel{s, sc, r.Via == "" && !r.Replace})
	}
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		*Report
		Panels   []panel
		Headline string
	}{r, panels, r.headline()})
	return b.Bytes(), err
}

// A panel is a subject's part of the page.
type panel struct {
	*Subject
	sc   scale
	ends bool // see picture
}

// A mark is something at a place of the time scale.
type mark struct {
	X     float64 // percent of the width
	Label string
	Left  bool // the label stands left of the place
}

func (p panel) at(ms float64) float64 { return p.sc.x(ms) / trackW * 100 }

// Track returns a lane's bars, the signal and the exit.
func (p panel) Track(l *Lane) template.HTML {
	out := p.sc.bars(l, 0, 24)
	if last := p.sc.x(p.Subject.Exit.Max); p.ends && p.Subject.Exit.Max < p.sc.to {
		out += fmt.Sprintf(`<rect class="gone" x="%.0f" width="%.0f" height="24"/>`, last, trackW-last)
	}
	if x := p.sc.x(p.Subject.Exit.Median); p.Subject.Exit.Median <= p.sc.to {
		out += fmt.Sprintf(`<line class="exit" x1="%.0f" x2="%.0f" y2="24"/>`, x, x)
	}
	x := p.sc.x(0)
	return template.HTML(out + fmt.Sprintf(`<line class="sig" x1="%.0f" x2="%.0f" y2="24"/>`, x, x))
}

func (p panel) Signal() mark { return mark{X: p.at(0), Label: p.Subject.Stops[0].Signal} }

func (p panel) ExitMark() mark {
	x := p.at(p.Subject.Exit.Median)
	return mark{x, p.sc.exitLabel(p.Subject, thousands(int(math.Round(p.Subject.Exit.Median)))+" ms"), x > 57}
}

func (p panel) Ticks() (marks []mark) {
	for _, t := range p.sc.ticks(5) {
		if x := p.at(t.at); x > 3 && x < 97 {
			marks = append(marks, mark{X: x, Label: t.label})
		}
	}
	return marks
}

// What follows is for the page too.
func (l *Lane) LostCount() int           { return l.lost() }
func (s *Subject) LostCount() int        { return s.lost() }
func (s *Subject) SentCount() int        { return s.sent() }
func (s *Subject) SkippedOnes() []string { return s.skipped() }
func (s *Subject) Remarks() []string     { return s.remarks() }
func (s *Subject) Summary() string       { return s.summary() }
func (s *Subject) FirstLosses() []Loss   { return s.firstLosses() }
