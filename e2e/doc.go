// Package e2e holds tests of whole programs: a server built with this library,
// real load balancers in front of it, real signals, and cmd/draincheck, which
// loads it, rolls it and counts.
//
// BenchmarkIdleClose measures what no server can avoid: a request that a balancer
// sends over an idle connection before it has heard of its close.
//
// They need haproxy and nginx. Without them they say what to install and are
// skipped, but where the environment variable CI is set they fail.
package e2e
