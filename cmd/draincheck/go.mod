module github.com/seed-121bbccf/graceful/cmd/draincheck

go 1.26

require (
	github.com/jedib0t/go-pretty/v6 v6.7.8
	github.com/ory/graceful v0.1.3
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.2
	github.com/schollz/progressbar/v3 v3.18.0
	github.com/seed-121bbccf/graceful v0.1.0
	golang.org/x/sys v0.41.0
	golang.org/x/term v0.40.0
	gopkg.in/tylerb/graceful.v1 v1.2.15
)

require (
	github.com/HdrHistogram/hdrhistogram-go v1.1.2
	github.com/google/go-cmp v0.7.0
	github.com/mattn/go-runewidth v0.0.16 // indirect
	github.com/mitchellh/colorstring v0.0.0-20190213212951-d06e56a500db // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/rivo/uniseg v0.4.7 // indirect
	golang.org/x/net v0.50.0 // indirect
	golang.org/x/text v0.34.0 // indirect
)
