module github.com/seed-121bbccf/graceful/examples/redis

go 1.26

require (
	github.com/seed-121bbccf/graceful v0.1.0
	github.com/tidwall/redcon v1.6.4
)

require (
	github.com/tidwall/btree v1.1.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
)
