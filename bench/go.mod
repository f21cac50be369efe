module github.com/seed-121bbccf/graceful/bench

go 1.26

tool golang.org/x/perf/cmd/benchstat

require (
	github.com/ory/graceful v0.1.3
	github.com/seed-121bbccf/graceful v0.1.0
	go.uber.org/goleak v1.3.0
	gopkg.in/tylerb/graceful.v1 v1.2.15
)

require (
	github.com/aclements/go-moremath v0.0.0-20210112150236-f10218a38794 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	golang.org/x/perf v0.0.0-20250813145418-2f7363a06fe1 // indirect
)

replace github.com/seed-121bbccf/graceful => ../
