package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A mode is one way to put servers in front of the clients.
type mode struct {
	name     string // of its picture
	title    string
	via      string
	replace  bool
	note     string
	inherent string // why this library's losses are; "" if they are not

	others  bool // the servers are those of others
	release bool // the servers are built with the Go release before the newest

	known string // what net/http lost when it was tried before: the mode is that trial
}

var modes = []mode{
	{name: "direct", title: "Clients speak to the server, nobody takes its place",
		note: `After the listener is closed new connections are refused, whatever the server does. That is not a loss: nothing was sent.`},
	{name: "direct-replace", title: "Clients speak to the server, its successor already listens (SO_REUSEPORT)", replace: true,
		note: `With a successor on the same port nobody need be refused either.`},
	{name: "haproxy", title: "Through HAProxy, one of two instances down in between", via: "haproxy",
		note: `HAProxy checks every 100 ms and takes two failures for an end. A server that closes its listener at the signal is down for it before it has noticed: 503. This library serves on for its ShutdownDelay (1 s here) while its readiness says 503, so HAProxy leaves in peace.`},
	{name: "haproxy-replace", title: "Through HAProxy, the successor overlaps", via: "haproxy", replace: true,
		note: `What is lost here are requests that HAProxy sent over connections that were just being closed, before it had heard of that. An idle connection can't be closed in HTTP/1.1 without that window, and a server can only make it shorter: [deploying.md](deploying.md#idlegrace-longer-than-clients-pause) has how long it is, and how HAProxy closes it by repeating.`},
	{name: "nginx", title: "Through nginx, one of two instances down in between", via: "nginx",
		note:     `nginx (the free one) has no active checks: it goes on sending every second request to an instance that is down, and answers 502. With proxy_next_upstream off nothing that the server does can help; a successor that overlaps can. (Its default, max_fails=1 with fail_timeout=10s, would mark both instances down when two restarts come close together, and fail nearly everything.)`,
		inherent: `inherent: nginx sent these to an instance that no longer ran, and had been told of nothing`},
	{name: "nginx-replace", title: "Through nginx, the successor overlaps", via: "nginx", replace: true,
		note: `The only way to roll servers behind nginx without a loss.`},

	{name: "direct-go1.26", title: "Clients speak to the server, nobody takes its place (Go 1.26)", release: true,
		note: `The first mode once more, on the release before: net/http's HTTP/2 is another one there.`},
	{name: "direct-replace-go1.26", title: "Clients speak to the server, its successor already listens (Go 1.26)", release: true, replace: true,
		note: `The second mode once more, on the release before.`},

	{name: "others", title: "What well-known servers lose in their own graceful stop", others: true,
		note: `Clients speak to the server, nobody takes its place. nginx and HAProxy stand in front of a server that is not stopped; Caddy and node answer by themselves, and their answers are only checked for being complete. Each has 2 s for what is in progress. A dash is a kind of traffic that the server, set up like this, does not take.`},

	{name: "trial-haproxy", title: "HAProxy, one down in between", via: "haproxy", known: "3,376/48,527"},
	{name: "trial-haproxy-replace", title: "HAProxy, the successor overlaps", via: "haproxy", replace: true, known: "13/39,769"},
	{name: "trial-nginx-replace", title: "nginx, the successor overlaps", via: "nginx", replace: true, known: "14/39,680"},
}

// oldRelease is the Go release before the newest, of which some modes are.
const oldRelease = "go1.26"

// modesByName returns the modes of those names; of none, all that are for the Go
// release that this program is built with, or all if only their numbers are
// wanted.
func modesByName(names string, numbers bool) ([]mode, error) {
	old := strings.HasPrefix(runtime.Version(), oldRelease)
	var out []mode
	if names == "" {
		for _, m := range modes {
			if numbers || m.release == old {
				out = append(out, m)
			}
		}
		return out, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(modes, func(m mode) bool { return m.name == name })
		if i < 0 {
			var all []string
			for _, m := range modes {
				all = append(all, m.name)
			}
			return nil, fmt.Errorf("-modes %q: there is no such mode; there are %s", name, strings.Join(all, ", "))
		}
		if modes[i].release && !old && !numbers {
			return nil, fmt.Errorf("-modes %q: is measured with %s: GOTOOLCHAIN=%s.8 go run ./cmd/draincheck results", name, oldRelease, oldRelease)
		}
		out = append(out, modes[i])
	}
	return out, nil
}

// load reads the numbers of mode m; nil if there are none.
func (m mode) load(dir string) (*Report, error) {
	text, err := os.ReadFile(filepath.Join(dir, "results", m.name+".json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rep Report
	if err := json.Unmarshal(text, &rep); err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	for _, s := range rep.Subjects {
		s.spreads()
	}
	return &rep, nil
}
