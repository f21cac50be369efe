package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// drawnReport is of two subjects with bars from before the picture's beginning
// to after its end.
func drawnReport() *Report {
	r := exampleReport()
	other := exampleReport().Subjects[0]
	other.Name = "another"
	r.Subjects = append(r.Subjects, other)
	for _, s := range r.Subjects {
		s.Lanes = append(s.Lanes, newLane(laneNamed("tls")), newLane(laneNamed("http2")))
		for _, l := range s.Lanes {
			for at := firstMS; at < 20_000; at += binMS {
				l.Timeline = append(l.Timeline, Bin{MS: at, Answered: at % 7, Refused: at % 3, Lost: at % 2})
			}
		}
	}
	return r
}

// Bars and tracks end where the panel does, and no text is smaller than 11 px at
// the width at which the picture is shown.
func TestPictureStaysInside(t *testing.T) {
	r := drawnReport()
	svg := string(r.svg())
	if err := wellFormed([]byte(svg)); err != nil {
		t.Fatal(err)
	}
	track := regexp.MustCompile(`<rect class="row" x="([0-9.]+)" y="[0-9.]+" width="([0-9.]+)"`).FindAllStringSubmatch(svg, -1)
	paths := regexp.MustCompile(`<path class="(?:ans|ref|lost)" d="([^"]+)"`).FindAllStringSubmatch(svg, -1)
	if len(track) == 0 || len(paths) == 0 {
		t.Fatal("no tracks, or no bars")
	}
	inside := func(x float64) bool {
		for _, tr := range track {
			from, _ := strconv.ParseFloat(tr[1], 64)
			w, _ := strconv.ParseFloat(tr[2], 64)
			if x >= from-0.5 && x <= from+w+0.5 {
				return true
			}
		}
		return false
	}
	for _, p := range paths {
		for _, m := range regexp.MustCompile(`[MH]([0-9.]+)`).FindAllStringSubmatch(p[1], -1) {
			if x, _ := strconv.ParseFloat(m[1], 64); !inside(x) {
				t.Fatalf("a bar at %v is outside of all tracks", x)
			}
		}
	}
	for _, m := range regexp.MustCompile(`font(?:-size)?:([0-9]+)px`).FindAllStringSubmatch(svg, -1) {
		if n, _ := strconv.Atoi(m[1]); n < 11 {
			t.Errorf("text of %d px", n)
		}
	}
}

// The kinds that a reader knows have rows, the others are folded; for a single
// server, what it lost has a row too.
func TestPictureRows(t *testing.T) {
	titles := func(r *Report) string {
		var all []string
		for _, w := range r.rows() {
			all = append(all, w.title)
		}
		return strings.Join(all, ", ")
	}
	r := drawnReport()
	for _, s := range r.Subjects {
		s.lane("tls").Lost["EOF"] = 3
	}
	if got, want := titles(r), "keep-alive, new connections, uploads, 2 other kinds"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := r.Subjects[0].fold(r.rows()[3]); got.lost() != 3 || got.Timeline[0].MS != firstMS {
		t.Errorf("the folded row: %d lost, %v", got.lost(), got.Timeline[0])
	}
	r.Subjects = r.Subjects[:1]
	if got, want := titles(r), "keep-alive, new connections, uploads, tls, http2"; got != want {
		t.Errorf("of one server: %q, want %q", got, want)
	}
}
