// go.mod with an older golang.org/x/net, for TestConfigureServer and TestH2C.
module github.com/seed-121bbccf/graceful/interop

go 1.26

require (
	github.com/seed-121bbccf/graceful v0.1.0
	golang.org/x/net v0.47.0
)

replace github.com/seed-121bbccf/graceful => ../
