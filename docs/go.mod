module github.com/seed-121bbccf/graceful/docs

go 1.26
