module github.com/seed-121bbccf/graceful/internal/release

go 1.26

require golang.org/x/mod v0.32.0
