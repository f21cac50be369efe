// Package bench measures what this library costs beside net/http and two other
// libraries for a graceful stop; ../docs/performance.md has the figures and the
// commands that make them.
//
// Every benchmark runs each contender in the same run, as server=nethttp,
// tylerb, ory or graceful, so that benchstat -col /server lays them side by
// side. It is a module of its own because the root's requires neither the
// contenders nor benchstat.
package bench
