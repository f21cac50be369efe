package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
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
	for _, s := range r.Subjects {
		s.writeTable(w)
	}
	for _, s := range r.Subjects {
		verdict := text.FgGreen
		if s.lost() > 0 {
			verdict = text.FgRed
		}
		fmt.Fprintf(w, "%s  %s\n", verdict.Sprintf("%7d lost", s.lost()), s.summary())
	}
}

// summary is what there is to say of s in a line.
func (s *Subject) summary() string {
	killed, statuses := 0, map[string]int{}
	for _, st := range s.Stops {
		if st.Killed {
			killed++
		}
		statuses["status "+st.Status]++
	}
	out := fmt.Sprintf("of %s requests in %d stops of %s; exit after %.0f ms (median), %s",
		thousands(s.sent()), len(s.Stops), s.Name, s.median(func(st Stop) float64 { return st.Exit }), strings.Join(byCount(statuses), ", "))
	if n := s.lostBefore(); n > 0 {
		out += fmt.Sprintf("; %d of the lost before any stop: -rate may be too much for it", n)
	}
	if killed > 0 {
		out += fmt.Sprintf("; killed after -grace in %d", killed)
	}
	return out
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
	t.AppendHeader(table.Row{"traffic", "sent", "answered", "refused", "lost", "before p50", "p99", "max", "stop p50", "p99", "max", "lost by cause"})
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
			l.Name, l.Sent, l.Answered, l.refused(), lost,
			short(l.Before.P50), short(l.Before.P99), short(l.Before.Max),
			short(l.During.P50), short(l.During.P99), short(l.During.Max), causes(l.Lost),
		})
		sent, answered, refused = sent+l.Sent, answered+l.Answered, refused+l.refused()
	}
	t.AppendFooter(table.Row{"all", sent, answered, refused, s.lost()})
	t.Render()
	for _, k := range s.skipped() {
		fmt.Fprintf(w, " skipped: %s\n", k)
	}
	for i, l := range s.Losses {
		if i == 10 {
			fmt.Fprintf(w, " ... and more, which -json has\n")
			break
		}
		fmt.Fprintf(w, " lost at %v\n", l)
	}
	fmt.Fprintln(w)
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

// writeFiles writes what -json, -html and -svg ask for.
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
