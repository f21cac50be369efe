package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// loadReport reads what -json wrote.
func loadReport(name string) (*Report, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if r.Schema != schemaVersion {
		return nil, fmt.Errorf("%s: its schema_version is %d, and this draincheck knows %d", name, r.Schema, schemaVersion)
	}
	return &r, nil
}

// since says what has changed from before to r, a line for each subject and kind
// of traffic of which the share that was lost is another one, and for the time
// until the exit.
func (r *Report) since(before *Report) []string {
	var lines []string
	for i, s := range r.Subjects {
		old := before.subject(s.Name)
		if old == nil && len(r.Subjects) == 1 && len(before.Subjects) == 1 {
			old = before.Subjects[i] // its command line is another one
		}
		if old == nil {
			lines = append(lines, s.Name+": was not checked before")
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: lost %s, before %s; exit %v, before %v",
			s.Name, share(s.lost(), s.sent()), share(old.lost(), old.sent()), s.Exit, old.Exit))
		for _, l := range s.Lanes {
			was := old.lane(l.Name)
			if was == nil || l.Skipped != "" || was.Skipped != "" || l.lost() == 0 && was.lost() == 0 {
				continue
			}
			lines = append(lines, fmt.Sprintf("  %s: lost %s, before %s", l.Name, share(l.lost(), l.Sent), share(was.lost(), was.Sent)))
		}
	}
	return lines
}

func (r *Report) subject(name string) *Subject {
	for _, s := range r.Subjects {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (s *Subject) lane(name string) *Lane {
	for _, l := range s.Lanes {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// share returns "3 of 400 (0.75 %)".
func share(lost, sent int) string {
	out := fmt.Sprintf("%s of %s", thousands(lost), thousands(sent))
	if lost > 0 && sent > 0 {
		out += fmt.Sprintf(" (%.2g %%)", float64(lost)*100/float64(sent))
	}
	return out
}
