package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// writeTable writes the report for a terminal.
func (r *Report) writeTable(w io.Writer) {
	f, ok := w.(*os.File)
	color := ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
	if color {
		text.EnableColors()
	} else {
		text.DisableColors()
	}
	r.writeVerdict(w)
	fmt.Fprintln(w)
	for _, s := range r.Subjects {
		s.writeTable(w)
	}
	fmt.Fprintln(w, "Times are of answers: before the signal, and from it on. refused: nothing was sent, or the server")
	fmt.Fprintln(w, "handed it back; that is no loss.")
	fmt.Fprintln(w)
	r.writeVerdict(w)
}

func (r *Report) writeVerdict(w io.Writer) {
	color := text.FgGreen
	if !r.Verdict.Passed {
		color = text.FgRed
	}
	fmt.Fprintln(w, color.Sprint(r.Verdict))
}

// summary is what there is to say of s's stops, in a line.
func (s *Subject) summary() string {
	statuses := map[string]int{}
	for _, st := range s.Stops {
		statuses["status "+st.Status]++
	}
	signal := ""
	if len(s.Stops) > 0 {
		signal = " after " + s.Stops[0].Signal
	}
	out := fmt.Sprintf("listener closed %v, exit %v%s; %s", s.Closed, s.Exit, signal, strings.Join(byCount(statuses), ", "))
	if n := s.killed(); n > 0 {
		out += fmt.Sprintf("; killed after -grace in %d of %s, by which it lost %s", n, count(len(s.Stops), "stop"), thousands(s.lostByKill()))
	}
	return out
}

// remarks are what else there is to know of the check of s.
func (s *Subject) remarks() []string {
	all := append([]string(nil), s.Notes...)
	if n := s.unheeded(); n > 0 {
		all = append(all, fmt.Sprintf("in %d of %s the signal itself ended the server: it has no handler for %s", n, count(len(s.Stops), "stop"), s.Stops[0].Signal))
	}
	if n := s.lostBefore(); n > 0 {
		all = append(all, fmt.Sprintf("%s of the lost were lost before any stop: -rate may be too much for it", thousands(n)))
	}
	odd, names := 0, []string{}
	for _, l := range s.Lanes {
		if l.Skipped == "" && (l.Status >= 300 || l.Status > 0 && l.Status < 200) {
			odd, names = l.Status, append(names, l.Name)
		}
	}
	if odd > 0 {
		all = append(all, fmt.Sprintf("the answers to %s have the status %d: -path names a resource that is there", strings.Join(names, ", "), odd))
	}
	waited := 0
	for _, l := range s.Lanes {
		waited += l.Resent
	}
	if waited > 0 {
		all = append(all, fmt.Sprintf("%s waited for a second or longer, because the server's accept queue was full: a larger backlog, or a lower -rate", count(waited, "connection")))
	}
	left := map[string]int{}
	for _, st := range s.Stops {
		for _, name := range st.Left {
			name, _, _ = strings.Cut(name, " ")
			left[name]++
		}
	}
	for _, name := range byCount(left) {
		all = append(all, fmt.Sprintf("processes named %s outlived the server in its stops, %d in all, and were killed", name, left[name]))
	}
	return all
}

func (s *Subject) writeTable(w io.Writer) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetTitle(s.Name)
	style := table.StyleLight
	style.Options = table.Options{SeparateHeader: true, DrawBorder: false}
	style.Title.Colors = text.Colors{text.Bold}
	style.Format.Header = text.FormatDefault
	style.Format.Footer = text.FormatDefault
	t.SetStyle(style)
	t.AppendHeader(table.Row{"traffic", "lost", "sent", "answered", "refused", "before: p50", "p99", "max", "stop: p50", "p99", "max", "lost by cause"})
	var configs []table.ColumnConfig
	for i := 2; i <= 11; i++ {
		configs = append(configs, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight, AlignFooter: text.AlignRight})
	}
	t.SetColumnConfigs(configs)
	sent, answered, refused := 0, 0, 0
	for _, l := range s.Lanes {
		if l.Skipped != "" {
			continue
		}
		lost := text.FgGreen.Sprint(0)
		if l.lost() > 0 {
			lost = text.FgRed.Sprint(l.lost())
		}
		t.AppendRow(table.Row{
			l.Name, lost, l.Sent, l.Answered, l.refused(),
			short(l.Before.P50), short(l.Before.P99), short(l.Before.Max),
			short(l.During.P50), short(l.During.P99), short(l.During.Max), causes(l.Lost),
		})
		sent, answered, refused = sent+l.Sent, answered+l.Answered, refused+l.refused()
	}
	t.AppendFooter(table.Row{"all", s.lost(), sent, answered, refused})
	t.Render()
	fmt.Fprintf(w, " %s\n", s.summary())
	for _, k := range s.skipped() {
		fmt.Fprintf(w, " skipped: %s\n", k)
	}
	for _, remark := range s.remarks() {
		fmt.Fprintf(w, " note: %s\n", remark)
	}
	for _, l := range s.firstLosses() {
		fmt.Fprintf(w, " first lost: %v\n", l)
	}
	if !s.Foreign {
		for _, a := range s.Advice {
			fmt.Fprintf(w, " %s\n   %s\n", a, a.Link)
		}
	}
	fmt.Fprintln(w)
}

// firstLosses returns the first loss of each kind and cause.
func (s *Subject) firstLosses() (first []Loss) {
	for _, l := range s.Losses {
		if !slices.ContainsFunc(first, func(f Loss) bool { return f.Kind == l.Kind && f.Cause == l.Cause }) {
			first = append(first, l)
		}
	}
	return first
}

// short returns milliseconds for a table; 0 is that of nothing at all.
func short(ms float64) string {
	if ms == 0 {
		return "–"
	}
	if ms < 10 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// causes returns "12 EOF, 3 reset".
func causes(m map[string]int) string {
	var parts []string
	for _, c := range byCount(m) {
		parts = append(parts, fmt.Sprintf("%d %s", m[c], c))
	}
	return strings.Join(parts, ", ")
}

// writeFiles writes what -json, -junit, -html and -svg ask for.
func (c *config) writeFiles(r *Report, stdout io.Writer) error {
	if c.json != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := writeFile(c.json, append(b, '\n'), stdout); err != nil {
			return err
		}
	}
	if c.junit != "" {
		b, err := r.junit()
		if err == nil {
			err = writeFile(c.junit, b, stdout)
		}
		if err != nil {
			return err
		}
	}
	if c.svg != "" {
		if err := writeFile(c.svg, r.svg(), stdout); err != nil {
			return err
		}
	}
	if c.html != "" {
		b, err := r.html()
		if err != nil {
			return err
		}
		return writeFile(c.html, b, stdout)
	}
	return nil
}

func writeFile(name string, b []byte, stdout io.Writer) error {
	if name == "-" {
		_, err := stdout.Write(b)
		return err
	}
	return os.WriteFile(name, b, 0o644)
}
