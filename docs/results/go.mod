module github.com/seed-121bbccf/graceful/docs/results

go 1.26
