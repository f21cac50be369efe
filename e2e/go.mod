module github.com/seed-121bbccf/graceful/e2e

go 1.26

require github.com/seed-121bbccf/graceful v0.1.0

require github.com/cloudflare/tableflip v1.2.3

replace github.com/seed-121bbccf/graceful => ../
