package main

import (
	"bytes"
	_ "embed"
	"html/template"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"thousands": thousands,
	"short":     short,
	"causes":    causes,
	"total":     sum,
}).Parse(pageText))

// html returns the page for -html: one file that needs nothing else.
func (r *Report) html() ([]byte, error) {
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		*Report
		Picture  template.HTML
		Headline string
	}{r, template.HTML(r.svg()), r.headline()})
	return b.Bytes(), err
}

// LostCount, SentCount and the like are for the page.
func (l *Lane) LostCount() int           { return l.lost() }
func (s *Subject) LostCount() int        { return s.lost() }
func (s *Subject) SentCount() int        { return s.sent() }
func (s *Subject) SkippedOnes() []string { return s.skipped() }
