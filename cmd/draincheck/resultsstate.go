package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The state of a report is all of it, with the histograms from which its
// latencies come: more can be added to it.
type state struct {
	Report *Report
	Took   [][]took // of each subject, of each lane
}

type took struct{ Before, During *hdrhistogram.Snapshot }

const stateEnding = ".state.json.gz"

func (r *Report) saveState(name string) error {
	s := state{Report: r}
	for _, subject := range r.Subjects {
		var all []took
		for _, l := range subject.Lanes {
			all = append(all, took{l.before.Export(), l.during.Export()})
		}
		s.Took = append(s.Took, all)
	}
	f, err := os.Create(name + stateEnding)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	return errors.Join(json.NewEncoder(z).Encode(s), z.Close(), f.Close())
}

// loadState reads what saveState wrote; it returns nil if there is nothing.
func loadState(name string) (*Report, error) {
	f, err := os.Open(name + stateEnding)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	var s state
	if err := json.NewDecoder(z).Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	for i, subject := range s.Report.Subjects {
		for j, l := range subject.Lanes {
			l.before, l.during = hdrhistogram.Import(s.Took[i][j].Before), hdrhistogram.Import(s.Took[i][j].During)
			if l.Errors == nil {
				l.Errors = map[string]string{}
			}
		}
	}
	return s.Report, nil
}
