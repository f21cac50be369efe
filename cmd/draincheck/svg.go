package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The picture: a panel for each subject, a row for each kind of traffic, time
// from left to right. What was answered is a green curve of bars, what was
// refused an amber one below half height, and every loss a red stroke from top
// to bottom, which nobody overlooks.
const (
	labelW  = 128.0 // the names of the rows, left of the first panel
	panelW  = 500.0 // the bars of one panel
	countW  = 62.0  // the losses of each row, right of the bars
	panelS  = 14.0  // between panels
	headH   = 116.0 // title, verdict and the names of the moments
	rowH    = 24.0
	rowS    = 5.0
	axisH   = 26.0
	footH   = 36.0
	minBarW = 2.5

	maxHover = 30 // bars of losses in a row that have a text of their own
)

const svgStyle = `
  text{font:12px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#24292f}
  .paper{fill:#fff}.row{fill:#f3f5f7}.h{font-size:15px;font-weight:600}.v{font-size:21px;font-weight:700}
  .dim{fill:#6a737d}.small{font-size:11px}.num{font-variant-numeric:tabular-nums;font-weight:600}
  .ok{fill:#1a7f37}.bad{fill:#cf222e}.ans{fill:#4ac26b}.ref{fill:#f0d59a}.lost{fill:#e5222e}
  .sig{stroke:#24292f;stroke-width:1.5}.mom{stroke:#57606a;stroke-width:1;stroke-dasharray:4 3}.axis{stroke:#d0d7de}
  @media (prefers-color-scheme:dark){
  text{fill:#e6edf3}.paper{fill:#0d1117}.row{fill:#161b22}.dim{fill:#8b949e}.ok{fill:#3fb950}.bad{fill:#ff6a69}
  .ans{fill:#2ea043}.ref{fill:#5c4510}.lost{fill:#ff5a57}.sig{stroke:#e6edf3}.mom{stroke:#8b949e}.axis{stroke:#30363d}}`

// svg returns the picture, for -svg and the page.
func (r *Report) svg() []byte {
	rows := r.rows()
	p := &picture{from: -300, to: r.lastMoment() + 120}
	p.bin = binMS * int(math.Max(1, math.Ceil(minBarW*(p.to-p.from)/panelW/binMS)))
	across := min(len(r.Subjects), 2)
	down := (len(r.Subjects) + 1) / 2
	each := headH + float64(len(rows))*(rowH+rowS) + axisH
	width := labelW + float64(across)*(panelW+countW+panelS)
	height := float64(down)*each + footH
	p.f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="%s">`,
		width, height, width, height, html.EscapeString(r.headline()))
	p.f("<style>%s</style>", svgStyle)
	p.f(`<rect class="paper" width="%.0f" height="%.0f" rx="8"/>`, width, height)
	for i, s := range r.Subjects {
		p.x0 = labelW + float64(i%2)*(panelW+countW+panelS)
		p.y0 = float64(i/2) * each
		if i%2 == 0 {
			for i, name := range rows {
				p.f(`<text class="small" x="%.0f" y="%.1f" text-anchor="end">%s</text>`, labelW-10, p.y(i)+rowH*0.66, html.EscapeString(name))
			}
		}
		p.panel(s, rows)
	}
	p.legend(height-12, width)
	p.f("</svg>\n")
	return []byte(p.String())
}

// rows returns the names of the kinds of traffic that any subject had.
func (r *Report) rows() []string {
	var names []string
	for i, l := range r.Subjects[0].Lanes {
		for _, s := range r.Subjects {
			if s.Lanes[i].Skipped == "" {
				names = append(names, l.Name)
				break
			}
		}
	}
	return names
}

// lastMoment returns the latest of the subjects' exits, as far as the picture
// goes: one that hangs would squeeze the others.
func (r *Report) lastMoment() float64 {
	last := 200.0
	for _, s := range r.Subjects {
		last = max(last, s.Exit.Median)
	}
	return min(last, 2500)
}

// headline says what the picture shows, in one sentence.
func (r *Report) headline() string {
	var parts []string
	for _, s := range r.Subjects {
		parts = append(parts, fmt.Sprintf("%s: %s of %s requests lost", s.Name, thousands(s.lost()), thousands(s.sent())))
	}
	return strings.Join(parts, "; ")
}

// A picture is an SVG file in the making.
type picture struct {
	strings.Builder
	from, to float64 // milliseconds, after the signal
	bin      int     // width of a bar, in milliseconds
	x0, y0   float64 // the panel's bars' left edge, and its top
}

func (p *picture) f(format string, args ...any) { fmt.Fprintf(&p.Builder, format+"\n", args...) }

func (p *picture) y(row int) float64 { return p.y0 + headH + float64(row)*(rowH+rowS) }

func (p *picture) x(ms float64) float64 { return p.x0 + panelW*(ms-p.from)/(p.to-p.from) }

func (p *picture) panel(s *Subject, rows []string) {
	class := "ok"
	if s.lost() > 0 {
		class = "bad"
	}
	p.f(`<text class="h" x="%.1f" y="%.1f">%s</text>`, p.x0, p.y0+26, html.EscapeString(clip(s.Name, 60)))
	p.f(`<text class="v %s" x="%.1f" y="%.1f">%s lost</text>`, class, p.x0, p.y0+52, thousands(s.lost()))
	p.f(`<text class="dim" x="%.1f" y="%.1f" text-anchor="end">of %s requests, %d stops</text>`, p.x0+panelW, p.y0+52, thousands(s.sent()), len(s.Stops))
	for i, name := range rows {
		for _, l := range s.Lanes {
			if l.Name == name {
				p.lane(l, p.y(i))
			}
		}
	}
	bottom := p.y(len(rows))
	p.moments(s, bottom)
	p.axis(bottom)
}

// lane draws one row.
func (p *picture) lane(l *Lane, y float64) {
	p.f(`<rect class="row" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, p.x0, y, panelW, rowH)
	if l.Skipped != "" {
		p.f(`<text class="small dim" x="%.1f" y="%.1f">skipped</text>`, p.x0+panelW+8, y+rowH*0.68)
		return
	}
	bars := p.rebin(l.Timeline)
	most := 1
	for _, b := range bars {
		most = max(most, b.Answered)
	}
	w := p.x(float64(p.bin)) - p.x(0)
	// One path for all bars of an outcome: a file of a tenth of the size.
	path := func(class string, height func(Bin) float64) {
		var d strings.Builder
		for _, b := range bars {
			if h := height(b); h > 0 {
				fmt.Fprintf(&d, "M%.1f %.1fv-%.1fh%.1fv%.1f", p.x(float64(b.MS)), y+rowH, h, w, h)
			}
		}
		if d.Len() > 0 {
			p.f(`<path class="%s" d="%s"/>`, class, d.String())
		}
	}
	path("ref", func(b Bin) float64 { return rowH * 0.2 * float64(min(b.Refused, 1)) })
	path("ans", func(b Bin) float64 {
		if b.Answered == 0 {
			return 0
		}
		return rowH * (0.12 + 0.88*float64(b.Answered)/float64(most))
	})
	// The losses on top. A few of them have their number under the pointer.
	lossy := 0
	for _, b := range bars {
		if b.Lost > 0 {
			lossy++
		}
	}
	if lossy > maxHover {
		path("lost", func(b Bin) float64 { return rowH * float64(min(b.Lost, 1)) })
	}
	for _, b := range bars {
		if b.Lost > 0 && lossy <= maxHover {
			p.f(`<rect class="lost" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s: %d lost, %d ms after the signal</title></rect>`,
				p.x(float64(b.MS)), y, math.Max(w, 3), rowH, html.EscapeString(l.Name), b.Lost, b.MS)
		}
	}
	class := "ok"
	if l.lost() > 0 {
		class = "bad"
	}
	p.f(`<text class="small num %s" x="%.1f" y="%.1f">%s lost</text>`, class, p.x0+panelW+8, y+rowH*0.68, thousands(l.lost()))
}

// rebin puts the report's bins together to bars.
func (p *picture) rebin(bins []Bin) []Bin {
	var bars []Bin
	for _, b := range bins {
		if float64(b.MS) < p.from || float64(b.MS) >= p.to {
			continue
		}
		at := int(math.Floor(float64(b.MS)/float64(p.bin))) * p.bin
		if n := len(bars); n == 0 || bars[n-1].MS != at {
			bars = append(bars, Bin{MS: at})
		}
		last := &bars[len(bars)-1]
		last.Answered += b.Answered
		last.Refused += b.Refused
		last.Lost += b.Lost
	}
	return bars
}

// moments marks the signal, the listener's close and the exit, each with its
// name on a line of its own above the rows.
func (p *picture) moments(s *Subject, bottom float64) {
	mark := func(ms float64, class, label string, line int) {
		x, y := p.x(ms), p.y0+headH-44+float64(line)*14
		anchor, dx := "start", 5.0
		if x > p.x0+panelW*0.6 {
			anchor, dx = "end", -5
		}
		p.f(`<line class="%s" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, class, x, x, y-8, bottom)
		p.f(`<text class="small" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x+dx, y, anchor, label)
	}
	if len(s.Stops) == 0 {
		return
	}
	closed := s.Closed.Median
	exit := s.Exit.Median
	mark(0, "sig", html.EscapeString(s.Stops[0].Signal), 0)
	mark(min(closed, p.to), "mom", fmt.Sprintf("listener closed, %.0f ms", closed), 1)
	mark(min(exit, p.to), "sig", fmt.Sprintf("exit, %.0f ms", exit), 2)
}

// axis draws the time below the rows.
func (p *picture) axis(bottom float64) {
	p.f(`<line class="axis" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, p.x0, p.x0+panelW, bottom, bottom)
	step := 100.0
	for _, step = range []float64{100, 200, 500, 1000, 2000, 5000, 10_000} {
		if (p.to-p.from)/step <= 8 {
			break
		}
	}
	for t := math.Ceil(p.from/step) * step; t <= p.to; t += step {
		label := fmt.Sprintf("%.0f ms", t+0) // -0 is 0 too
		if step >= 1000 {
			label = fmt.Sprintf("%.0f s", t/1000)
		}
		p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`, p.x(t), bottom+15, label)
	}
}

func (p *picture) legend(y, width float64) {
	x := labelW
	for _, e := range []struct{ class, text string }{
		{"ans", "answered"},
		{"ref", "refused: nobody listens, nothing was sent (no loss)"},
		{"lost", "lost: sent, in part or in full, and never answered"},
	} {
		p.f(`<rect class="%s" x="%.1f" y="%.1f" width="12" height="12" rx="2"/><text class="small" x="%.1f" y="%.1f">%s</text>`, e.class, x, y-10, x+18, y, e.text)
		x += 40 + 6.1*float64(len(e.text))
	}
	p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="end">all stops laid over each other</text>`, width-panelS, y)
}

// thousands returns n with commas.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
