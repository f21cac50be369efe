package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// HAProxy checks every checkEvery and wants two failures, or successes, in a
// row. A check may take its time: on a busy machine a slow server is not down.
const (
	checkEvery = 100 * time.Millisecond

	// gap is how long an instance is down when its successor does not overlap.
	gap = 300 * time.Millisecond
)

// Connection reuse is on, retries and redispatch are off: what the server loses
// is to be seen. HAProxy speaks to the servers as the client speaks to it:
// HTTP/1 or 2, over TLS or in the clear. nginx speaks HTTP/1 to them, over TLS
// where the client does.
var balancerConfigs = map[string]*template.Template{
	"haproxy": template.Must(template.New("").Parse(haproxyConfig)),
	"nginx":   template.Must(template.New("").Parse(nginxConfig)),
}

//go:embed balancers/haproxy.cfg
var haproxyConfig string

//go:embed balancers/nginx.conf
var nginxConfig string

// serverPorts is where a server listens, frontPorts where the balancer does.
type serverPorts struct{ Port, TLSPort int }

type frontPorts struct {
	serverPorts
	H2CPort int // nginx has no HTTP/1 where it has HTTP/2 in the clear
	UpPort  int // HAProxy answers 200 there if both servers are in order
}

// balanced is two servers behind a balancer, rolled one after the other.
type balanced struct {
	c       *config
	start   func(port, tlsPort int) (*process, error)
	ports   []serverPorts // of the servers
	front   frontPorts
	servers []*process // nil: does not run
	next    int        // the one to roll

	dir      string
	balancer *process
}

// newBalanced puts two servers behind c's balancer; start starts one. They have
// one port for TLS and for all else, unless ownTLSPort.
func newBalanced(c *config, ownTLSPort bool, start func(port, tlsPort int) (*process, error)) (*balanced, error) {
	if _, err := lookBalancer(c.via); err != nil {
		return nil, err
	}
	ports, err := freePorts(8)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "draincheck-")
	if err != nil {
		return nil, err
	}
	b := &balanced{c: c, start: start, servers: make([]*process, 2), dir: dir}
	b.ports = []serverPorts{{ports[0], ports[0]}, {ports[1], ports[1]}}
	if ownTLSPort {
		b.ports = []serverPorts{{ports[0], ports[2]}, {ports[1], ports[3]}}
	}
	b.front = frontPorts{serverPorts: serverPorts{ports[4], ports[5]}, H2CPort: ports[4], UpPort: ports[7]}
	if c.via == "nginx" {
		b.front.H2CPort = ports[6]
	}
	return b, nil
}

// balancerDirs are where balancers are that are not in PATH.
var balancerDirs = []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"}

// lookBalancer finds the balancer's program, which Debian keeps from the PATH of
// ordinary users.
func lookBalancer(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range balancerDirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", usageError{fmt.Errorf("-via %s needs the program %s, which is not in PATH (Debian, Ubuntu: apt-get install %s)", name, name, name)}
}

func (b *balanced) ready(ctx context.Context) error {
	for i := range b.servers {
		if b.servers[i] == nil {
			if err := b.launch(ctx, i, true); err != nil {
				return err
			}
		}
	}
	if b.balancer == nil {
		if err := b.startBalancer(); err != nil {
			return err
		}
		if err := b.balancer.ready(ctx, true); err != nil {
			return fmt.Errorf("%s: %w", b.c.via, err)
		}
	}
	return b.serving(ctx)
}

func (b *balanced) launch(ctx context.Context, i int, alone bool) error {
	p, err := b.start(b.ports[i].Port, b.ports[i].TLSPort)
	if err != nil {
		return err
	}
	b.servers[i] = p
	return p.ready(ctx, alone)
}

func (b *balanced) startBalancer() error {
	path, err := lookBalancer(b.c.via)
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, b.c.via+".conf")
	var conf bytes.Buffer
	err = balancerConfigs[b.c.via].Execute(&conf, struct {
		frontPorts
		Servers []serverPorts
		Health  string
		Every   int64
		Dir     string

		IDHeader string
	}{b.front, b.ports, b.c.health, checkEvery.Milliseconds(), b.dir, traffic.IDHeader})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, conf.Bytes(), 0o600); err != nil {
		return err
	}
	if err := writeCertificate(b.dir); err != nil {
		return err
	}
	argv := []string{path, "-f", file, "-db"}
	if b.c.via == "nginx" {
		argv = []string{path, "-p", b.dir, "-e", filepath.Join(b.dir, "error.log"), "-c", file}
	}
	b.balancer, err = startProcess(argv, b.front.Port, 0, nil)
	return err
}

// serving waits until the balancer passes requests on to both servers: HAProxy
// has to have found them in order, nginx does not check.
func (b *balanced) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	ask := "http://" + b.addrs().plain + b.c.health
	if b.c.via == "haproxy" {
		ask = fmt.Sprintf("http://%s/", loopback(b.front.UpPort))
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, "GET", ask, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode < 500 {
				return nil
			}
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return usageError{fmt.Errorf("%s did not find both servers in order: does GET %s (-health) answer 200?", b.c.via, b.c.health)}
		}
	}
}

func (b *balanced) addrs() addresses {
	return addresses{plain: loopback(b.front.Port), tls: loopback(b.front.TLSPort), h2c: loopback(b.front.H2CPort)}
}

// roll stops one server, and starts its successor: before that with -replace,
// and a while after the exit without.
func (b *balanced) roll(ctx context.Context) (Stop, error) {
	i := b.next
	b.next = (i + 1) % len(b.servers)
	old := b.servers[i]
	b.servers[i] = nil
	defer old.kill()
	if b.c.replace {
		if err := b.launch(ctx, i, false); err != nil {
			return Stop{}, fmt.Errorf("the successor, which needs SO_REUSEPORT: %w", err)
		}
	}
	s, err := old.stop(ctx, b.c.signal, b.c.grace)
	if err != nil || b.c.replace {
		return s, err
	}
	if err := sleep(ctx, gap); err != nil {
		return s, err
	}
	if err := b.launch(ctx, i, true); err != nil {
		return s, err
	}
	return s, b.serving(ctx)
}

func (b *balanced) died() error {
	for _, p := range append(b.servers, b.balancer) {
		if err := p.died(); err != nil {
			return err
		}
	}
	return nil
}

func (b *balanced) said(id string) []string { return b.balancer.out.lines(id) }

func (b *balanced) close() {
	if b.balancer != nil {
		b.balancer.kill()
	}
	for _, p := range b.servers {
		if p != nil {
			p.kill()
		}
	}
	os.RemoveAll(b.dir)
}

// sleep waits for d, or for the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
