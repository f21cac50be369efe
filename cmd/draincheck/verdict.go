package main

import (
	"fmt"
	"strings"
	"time"
)

// A Verdict says whether a pipeline may go on, and why not.
type Verdict struct {
	Passed   bool   `json:"passed"`
	Sentence string `json:"sentence"` // who lost what
}

// String returns the verdict in a line.
func (v Verdict) String() string {
	if v.Passed {
		return "PASS: " + v.Sentence
	}
	return "FAIL: " + v.Sentence
}

// judge sets r's verdict. A subject passes if it lost no more than either of the
// two allowances.
func (r *Report) judge(maxLost int, maxPercent float64, grace time.Duration) {
	r.Verdict.Passed = true
	var parts []string
	for _, s := range r.Subjects {
		lost, sent := s.lost(), s.sent()
		allowed := lost <= maxLost || float64(lost)*100 <= maxPercent*float64(sent)
		if !s.Foreign && !allowed {
			r.Verdict.Passed = false
		}
		part := s.Name + " lost " + s.toll()
		if stubborn := s.stubborn(grace); stubborn != "" {
			part = stubborn + ", and lost " + s.toll()
		}
		if lost > 0 && allowed && !s.Foreign {
			part += ", which is allowed"
		}
		parts = append(parts, part)
	}
	r.Verdict.Sentence = strings.Join(parts, "; ") + "."
	if !r.Verdict.Passed {
		r.Verdict.Sentence += " The pipeline should stop."
	}
}

// toll returns "none of 1,234 requests in 5 stops", or who lost what.
func (s *Subject) toll() string {
	of := fmt.Sprintf("of %s requests in %s", thousands(s.sent()), count(len(s.Stops), "stop"))
	lost := s.lost()
	if lost == 0 {
		return "none " + of
	}
	byKind := map[string]int{}
	for _, l := range s.Lanes {
		if n := l.lost(); n > 0 {
			byKind[l.Name] = n
		}
	}
	var kinds []string
	for _, name := range byCount(byKind) {
		if len(kinds) == 3 {
			kinds = append(kinds, count(len(byKind)-3, "other kind"))
			break
		}
		kinds = append(kinds, fmt.Sprintf("%s %s", name, thousands(byKind[name])))
	}
	return fmt.Sprintf("%s %s (%s)", thousands(lost), of, strings.Join(kinds, ", "))
}

// stubborn says of a server that had to be killed that it was; "" of others.
func (s *Subject) stubborn(grace time.Duration) string {
	killed := s.killed()
	if killed == 0 {
		return ""
	}
	out := fmt.Sprintf("%s did not exit within %v of %s in %d of %s: killed", s.Name, grace, s.Stops[0].Signal, killed, count(len(s.Stops), "stop"))
	if n := s.lostByKill(); n > 0 {
		out += fmt.Sprintf(", by which it lost %s", thousands(n))
	}
	return out
}

// count returns "1 stop" and "5 stops".
func count(n int, of string) string {
	if n != 1 {
		of += "s"
	}
	return thousands(n) + " " + of
}
