// Package e2e holds tests of whole programs: a server built with this library,
// real load balancers in front of it, real signals, and cmd/draincheck, which
// loads it, rolls it and counts.
//
// BenchmarkIdleClose measures what no server can avoid: a request that a balancer
// sends over an idle connection before it has heard of its close.
//
// They need haproxy, nginx, ip (Debian's iproute2) and nft (nftables). Without them
// they say what to install and are skipped, but where the environment variable CI
// is set they fail. TestKubeProxy also needs to be root and to be permitted network
// namespaces; its traffic stays inside those.
package e2e
