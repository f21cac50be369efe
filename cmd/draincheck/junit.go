package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// The elements of JUnit's XML that pipelines read.
type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"timestamp,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Failure *junitMessage `xml:"failure"`
		Skipped *junitMessage `xml:"skipped"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// junit returns the report as JUnit XML: a suite for each subject that must not
// lose anything, a test case for each kind of traffic. What is allowed to be
// lost fails no case.
func (r *Report) junit() ([]byte, error) {
	var suites junitSuites
	for _, s := range r.Subjects {
		if s.Foreign {
			continue
		}
		suite := junitSuite{Name: "draincheck: " + s.Name, Time: r.When.Format("2006-01-02T15:04:05")}
		for _, l := range s.Lanes {
			c := junitCase{Class: "draincheck", Name: l.Name}
			switch {
			case l.Skipped != "":
				c.Skipped = &junitMessage{Message: l.Skipped}
				suite.Skipped++
			case l.lost() > 0 && !r.Verdict.Passed:
				c.Failure = &junitMessage{
					Message: fmt.Sprintf("lost %s: %s", share(l.lost(), l.Sent), causes(l.Lost)),
					Text:    strings.Join(s.adviceOn(l.Name), "\n"),
				}
				suite.Failures++
			}
			suite.Cases = append(suite.Cases, c)
		}
		suite.Tests = len(suite.Cases)
		suites.Suites = append(suites.Suites, suite)
	}
	b, err := xml.MarshalIndent(suites, "", "  ")
	return append([]byte(xml.Header), append(b, '\n')...), err
}

// adviceOn returns what to do about the losses of one kind of traffic.
func (s *Subject) adviceOn(kind string) []string {
	var all []string
	for _, a := range s.Advice {
		for _, k := range a.Kinds {
			if k == kind {
				all = append(all, fmt.Sprintf("%v (%s)", a, a.Link))
			}
		}
	}
	return all
}
