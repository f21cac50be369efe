package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"unicode/utf8"
)

// The picture: a panel for each subject, a row for each kind of traffic that a
// reader knows or that lost, time from left to right. It is as wide as GitHub
// shows pictures, so that its text has the size that is written here.
const (
	pictureW = 830.0
	edge     = 14.0          // around everything
	labelW   = 120.0         // the names of the rows, left of the first panel
	countW   = 60.0          // the losses of each row, right of the bars
	panelS   = 16.0          // between panels
	titleH   = 40.0          // the headline
	momentsH = 40.0          // the names of the moments
	headH    = 46 + momentsH // and above them a panel's name and its losses
	rowH     = 26.0
	rowS     = 6.0
	axisH    = 28.0
	footH    = 30.0
	charW    = 7.0 // of the small text, in the widest font that is usual
)

const svgStyle = `
  text{font:13px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2328}
  .paper{fill:#fff}.row{fill:#f0f2f5}.title{font-size:16px;font-weight:600}.h{font-size:14px;font-weight:600}.v{font-size:20px;font-weight:700}
  .dim{fill:#59636e}.small{font-size:12px}.num{font-weight:600}
  .ok{fill:#1a7f37}.bad{fill:#cf222e}.ans{fill:#4ac26b}.ref{fill:#eac54f}.lost{fill:#e5222e}.gone{fill:#fff;opacity:.55}
  .sig{stroke:#1f2328;stroke-width:2}.flag{fill:#1f2328}.exit{stroke:#0969da;stroke-width:2;stroke-dasharray:5 3}.exitt{fill:#0969da}.axis{stroke:#d1d9e0}
  @media (prefers-color-scheme:dark){
  text{fill:#f0f6fc}.paper{fill:#0d1117}.row{fill:#1b222c}.dim{fill:#9198a1}.ok{fill:#3fb950}.bad{fill:#ff7b72}
  .ans{fill:#2ea043}.ref{fill:#d29922}.lost{fill:#ff5a57}.gone{fill:#0d1117}.sig{stroke:#f0f6fc}.flag{fill:#f0f6fc}.exit{stroke:#58a6ff}.exitt{fill:#58a6ff}.axis{stroke:#3d444d}}`

// svg returns the picture, for -svg and the results.
func (r *Report) svg() []byte {
	rows := r.rows()
	across := min(len(r.Subjects), 2)
	down := (len(r.Subjects) + 1) / 2
	head := headH
	if len(r.Subjects) == 1 {
		head = momentsH // the headline has the rest
	}
	each := head + float64(len(rows))*(rowH+rowS) + axisH
	height := titleH + float64(down)*each + footH
	barsW := (pictureW-2*edge-labelW-float64(across-1)*panelS)/float64(across) - countW
	p := &picture{scale: r.scale(barsW), head: head, ends: r.Via == "" && !r.Replace}
	p.f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="%s">`,
		pictureW, height, pictureW, height, html.EscapeString(r.headline()))
	p.f("<style>%s</style>", svgStyle)
	p.f(`<rect class="paper" width="%.0f" height="%.0f" rx="8"/>`, pictureW, height)
	p.f(`<text class="title" x="%.0f" y="28">%s</text>`, edge, html.EscapeString(clip(r.headline(), 96)))
	for i, s := range r.Subjects {
		p.x0 = edge + labelW + float64(i%2)*(barsW+countW+panelS)
		p.y0 = titleH + float64(i/2)*each
		if i%2 == 0 {
			for i, row := range rows {
				p.f(`<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`, edge+labelW-10, p.y(i)+rowH*0.67, html.EscapeString(row.title))
			}
		}
		p.panel(s, rows)
	}
	p.legend(height-12, r)
	p.f("</svg>\n")
	return []byte(p.String())
}

// A row of the picture is one kind of traffic, or several that are folded.
type row struct {
	title string
	lanes []int // of each subject
}

// rows returns the kinds of traffic that have a title, or that were lost where
// there is one subject, and one row for all others.
func (r *Report) rows() []row {
	var rows []row
	var others row
	for i, l := range r.Subjects[0].Lanes {
		shown, lost := false, false
		for _, s := range r.Subjects {
			shown = shown || s.Lanes[i].Skipped == ""
			lost = len(r.Subjects) == 1 && s.Lanes[i].lost() > 0
		}
		title := laneNamed(l.Name).title
		switch {
		case !shown:
		case title != "":
			rows = append(rows, row{title, []int{i}})
		case lost:
			rows = append(rows, row{l.Name, []int{i}})
		default:
			others.lanes = append(others.lanes, i)
		}
	}
	if len(others.lanes) == 1 {
		rows = append(rows, row{r.Subjects[0].Lanes[others.lanes[0]].Name, others.lanes})
	} else if len(others.lanes) > 0 {
		rows = append(rows, row{count(len(others.lanes), "other kind"), others.lanes})
	}
	return rows
}

// fold returns what happened to a row's kinds of traffic, as if they were one.
func (s *Subject) fold(w row) *Lane {
	if len(w.lanes) == 1 {
		return s.Lanes[w.lanes[0]]
	}
	all := &Lane{Lost: map[string]int{}, Skipped: "all"}
	bins := map[int]Bin{}
	for _, i := range w.lanes {
		l := s.Lanes[i]
		if l.Skipped != "" {
			continue
		}
		all.Skipped = ""
		for cause, n := range l.Lost {
			all.Lost[cause] += n
		}
		for _, b := range l.Timeline {
			sum := bins[b.MS]
			bins[b.MS] = Bin{b.MS, sum.Answered + b.Answered, sum.Refused + b.Refused, sum.Lost + b.Lost}
		}
	}
	all.Timeline = sortedBins(bins)
	return all
}

// headline says what the picture shows, in one sentence.
func (r *Report) headline() string {
	var parts []string
	for _, s := range r.Subjects {
		parts = append(parts, fmt.Sprintf("%s lost %s of %s requests", clip(s.Name, 40), thousands(s.lost()), thousands(s.sent())))
	}
	if len(parts) == 1 {
		return parts[0] + " in " + count(len(r.Subjects[0].Stops), "stop")
	}
	if len(parts) > 2 {
		return "What stops cost, under load: requests lost"
	}
	return strings.Join(parts, ", ")
}

// A scale is where a moment is drawn.
type scale struct {
	from, to float64 // milliseconds, after the signal
	bin      int     // width of a bar, in milliseconds
	x0, w    float64
}

// longestShown is how far the picture goes, in milliseconds: a server that hangs
// would squeeze the others.
const longestShown = 2500

// scale returns one on which r's stops fit into the width.
func (r *Report) scale(w float64) scale {
	const minBarW = 3
	last := 200.0
	for _, s := range r.Subjects {
		last = max(last, s.Exit.Median)
	}
	sc := scale{from: -300, to: min(last, longestShown) + 120, w: w}
	sc.bin = binMS * int(math.Max(1, math.Ceil(minBarW*(sc.to-sc.from)/w/binMS)))
	return sc
}

func (sc scale) x(ms float64) float64 {
	return sc.x0 + sc.w*(min(max(ms, sc.from), sc.to)-sc.from)/(sc.to-sc.from)
}

// bars draws a lane's outcomes over a track from y on, h high. What was answered
// is a curve of bars, what was refused a line at the bottom, and every loss a
// stroke from top to bottom. All bars of an outcome are one path, in whole
// pixels, and neighbours share an outline: the file has a tenth of the size.
func (sc scale) bars(l *Lane, y, h float64) string {
	var out strings.Builder
	bars := sc.rebin(l.Timeline)
	most := 1
	for _, b := range bars {
		most = max(most, b.Answered)
	}
	path := func(class string, height func(Bin) float64) {
		var d strings.Builder
		end := math.Inf(-1) // of the bar before
		last := 0.0
		for _, b := range bars {
			bh := math.Round(height(b))
			if bh == 0 {
				continue
			}
			from, to := math.Round(sc.x(float64(b.MS))), math.Round(sc.x(float64(b.MS+sc.bin)))
			switch {
			case from != end && d.Len() > 0:
				fmt.Fprintf(&d, "H%.0fV%.0fz", end, y+h)
				fallthrough
			case from != end:
				fmt.Fprintf(&d, "M%.0f %.0fV%.0f", from, y+h, y+h-bh)
			case bh != last:
				fmt.Fprintf(&d, "H%.0fV%.0f", from, y+h-bh)
			}
			end, last = to, bh
		}
		if d.Len() > 0 {
			fmt.Fprintf(&out, `<path class="%s" d="%sH%.0fV%.0fz"/>`, class, d.String(), end, y+h)
		}
	}
	path("ref", func(b Bin) float64 { return h * 0.2 * float64(min(b.Refused, 1)) })
	path("ans", func(b Bin) float64 {
		if b.Answered == 0 {
			return 0
		}
		return h * (0.12 + 0.88*float64(b.Answered)/float64(most))
	})
	path("lost", func(b Bin) float64 { return h * float64(min(b.Lost, 1)) })
	return out.String()
}

// rebin puts the report's bins together to bars.
func (sc scale) rebin(bins []Bin) []Bin {
	var bars []Bin
	for _, b := range bins {
		if float64(b.MS) < sc.from || float64(b.MS) >= sc.to {
			continue
		}
		at := int(math.Floor(float64(b.MS)/float64(sc.bin))) * sc.bin
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

// A tick is a place on the axis.
type tick struct {
	at    float64 // milliseconds, after the signal
	label string
}

func (sc scale) ticks(most int) (ticks []tick) {
	step := 100.0
	for _, step = range []float64{100, 200, 500, 1000, 2000, 5000, 10_000} {
		if (sc.to-sc.from)/step <= float64(most) {
			break
		}
	}
	for t := math.Ceil(sc.from/step) * step; t <= sc.to; t += step {
		label := fmt.Sprintf("%.0f ms", t+0) // -0 is 0 too
		if step >= 1000 {
			label = fmt.Sprintf("%.0f s", t/1000+0)
		}
		ticks = append(ticks, tick{t, label})
	}
	return ticks
}

// exitLabel names s's exit, which was after that time: where it lies outside the
// picture, with an arrow.
func (sc scale) exitLabel(s *Subject, after string) string {
	label := "exit " + after
	if s.killed() > 0 {
		label = "killed " + after
	}
	if s.Exit.Median > sc.to {
		label += " →"
	}
	return label
}

// A picture is an SVG file in the making.
type picture struct {
	strings.Builder
	scale         // of the panel
	head  float64 // above its rows
	ends  bool    // the server's exit ends the picture: no successor takes its place
	y0    float64 // the panel's top
}

func (p *picture) f(format string, args ...any) { fmt.Fprintf(&p.Builder, format+"\n", args...) }

func (p *picture) y(row int) float64 { return p.y0 + p.head + float64(row)*(rowH+rowS) }

func (p *picture) panel(s *Subject, rows []row) {
	class := "ok"
	if s.lost() > 0 {
		class = "bad"
	}
	if p.head > momentsH {
		p.f(`<text class="h" x="%.1f" y="%.1f">%s</text>`, p.x0, p.y0+16, html.EscapeString(clip(s.Name, int(p.w/8))))
		p.f(`<text class="v %s" x="%.1f" y="%.1f">%s lost</text>`, class, p.x0, p.y0+40, thousands(s.lost()))
		of := "of " + roughly(s.sent())
		if s.lost() < 100_000 { // beside more there is no room
			of += ", " + count(len(s.Stops), "stop")
		}
		p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="end">%s</text>`, p.x0+p.w, p.y0+40, of)
	}
	p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="end">lost</text>`, p.x0+p.w+countW-8, p.y0+p.head-6)
	for i, row := range rows {
		p.lane(s.fold(row), p.y(i))
	}
	bottom := p.y(len(rows)) - rowS
	p.moments(s, bottom)
	p.f(`<line class="axis" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, p.x0, p.x0+p.w, bottom+3, bottom+3)
	for _, t := range p.ticks(int(p.w / 62)) {
		if x := p.x(t.at); x-p.x0 > 18 && p.x0+p.w-x > 18 {
			p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`, x, bottom+18, t.label)
		}
	}
}

// lane draws one row.
func (p *picture) lane(l *Lane, y float64) {
	p.f(`<rect class="row" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, p.x0, y, p.w, rowH)
	class, said := "dim", "0"
	switch {
	case l.Skipped != "":
		said = "–"
	case l.lost() > 99_999:
		class, said = "num bad", thousands(l.lost()/1000)+"k"
	case l.lost() > 0:
		class, said = "num bad", thousands(l.lost())
	}
	if l.Skipped == "" {
		p.f("%s", p.bars(l, y, rowH))
	}
	p.f(`<text class="%s" x="%.1f" y="%.1f" text-anchor="end">%s</text>`, class, p.x0+p.w+countW-8, y+rowH*0.67, said)
}

// moments marks the signal with a flag, and the exit with a dashed line in
// another colour. What comes after the last exit is paler.
func (p *picture) moments(s *Subject, bottom float64) {
	if len(s.Stops) == 0 {
		return
	}
	top := p.y0 + p.head
	x := p.x(0)
	p.f(`<path class="flag" d="M%.1f %.1fh10l-3 4l3 4h-10z"/><line class="sig" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, x, top-34, x, x, top-34, bottom)
	p.f(`<text class="small num" x="%.1f" y="%.1f">%s</text>`, x+14, top-25, html.EscapeString(s.Stops[0].Signal))
	x = p.x(s.Exit.Median)
	label := p.exitLabel(s, s.Exit.String())
	if last := p.x(s.Exit.Max); p.ends && s.Exit.Max < p.to {
		p.f(`<rect class="gone" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, last, top, p.x0+p.w-last, bottom-top)
	}
	p.f(`<line class="exit" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, x, x, top-3, bottom)
	anchor, w := "start", charW*float64(utf8.RuneCountInString(label))
	switch right := p.x0 + p.w; {
	case x+w <= right: // it begins at the line
	case x-w >= p.x(0):
		anchor = "end"
	default:
		anchor, x = "end", right
	}
	p.f(`<text class="small num exitt" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, top-6, anchor, label)
}

func (p *picture) legend(y float64, r *Report) {
	x := edge
	for _, e := range []struct{ class, text string }{
		{"ans", "answered"},
		{"ref", "refused: nothing was sent, no loss"},
		{"lost", "lost: sent, and never answered"},
	} {
		p.f(`<rect class="%s" x="%.1f" y="%.1f" width="12" height="12" rx="2"/><text class="small" x="%.1f" y="%.1f">%s</text>`, e.class, x, y-10, x+18, y, e.text)
		x += 36 + charW*float64(len(e.text))
	}
	if len(r.Subjects) > 0 && len(r.Subjects[0].Stops) > 1 {
		p.f(`<text class="small dim" x="%.1f" y="%.1f" text-anchor="end">stops laid over each other</text>`, pictureW-edge, y)
	}
}

// roughly returns n with commas, or in millions.
func roughly(n int) string {
	if n < 1_000_000 {
		return thousands(n)
	}
	return fmt.Sprintf("%.1f million", float64(n)/1e6)
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
