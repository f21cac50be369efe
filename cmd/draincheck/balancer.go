package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// HAProxy checks every checkEvery and wants two failures, or successes, in a
// row. A check may take its time: on a busy machine a slow server is not down.
const (
	checkEvery = 100 * time.Millisecond

	// gap is how long an instance is down when its successor does not overlap.
	gap = 300 * time.Millisecond
)

// Connection reuse is on, retries and redispatch are off: what the server loses
// is to be seen.
var balancerConfigs = map[string]*template.Template{
	"haproxy": template.Must(template.New("").Parse(`global
    maxconn 8000
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
    timeout tunnel 1m
    timeout check 2s
    option http-keep-alive
    http-reuse always
    retries 0
    no option redispatch
frontend in
    bind 127.0.0.1:{{.Port}}
    default_backend servers
frontend up
    bind 127.0.0.1:{{.UpPort}}
    http-request return status 200 if { nbsrv(servers) ge {{len .Servers}} }
    http-request return status 503
backend servers
    balance roundrobin
    option httpchk GET {{.Health}}
    http-check expect rstatus ^[1-4]
    default-server inter {{.Every}}ms fall 2 rise 2
{{range $i, $p := .Servers}}    server s{{$i}} 127.0.0.1:{{$p}} check
{{end}}`)),
	"nginx": template.Must(template.New("").Parse(`daemon off;
worker_processes 1;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/error.log error;
events { worker_connections 4000; }
http {
    access_log off;
    client_body_temp_path {{.Dir}}/cb; proxy_temp_path {{.Dir}}/pt; fastcgi_temp_path {{.Dir}}/fc;
    uwsgi_temp_path {{.Dir}}/uw; scgi_temp_path {{.Dir}}/sc;
    keepalive_requests 1000000;
    map $http_upgrade $up { default upgrade; '' ''; }
    upstream servers {
{{range .Servers}}        server 127.0.0.1:{{.}} max_fails=0;
{{end}}        keepalive 64;
        keepalive_requests 1000000;
    }
    server {
        listen 127.0.0.1:{{.Port}} backlog=1024;
        location / {
            proxy_pass http://servers;
            proxy_http_version 1.1;
            proxy_set_header Connection $up;
            proxy_set_header Upgrade $http_upgrade;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_next_upstream off;
            proxy_connect_timeout 2s;
        }
    }
}
`)),
}

// balanced is two servers behind a balancer, rolled one after the other.
type balanced struct {
	c       *config
	start   func(port, tlsPort int) (*process, error)
	ports   []int      // two of the servers, two more, the balancer's, and that of its frontend "up"
	servers []*process // nil: does not run
	next    int        // the one to roll

	dir      string
	balancer *process
}

func newBalanced(c *config, start func(port, tlsPort int) (*process, error)) (*balanced, error) {
	if _, err := lookBalancer(c.via); err != nil {
		return nil, err
	}
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "draincheck-")
	if err != nil {
		return nil, err
	}
	b := &balanced{c: c, start: start, ports: ports, servers: make([]*process, 2), dir: dir}
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
	p, err := b.start(b.ports[i], b.ports[i+2])
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
	var conf strings.Builder
	err = balancerConfigs[b.c.via].Execute(&conf, map[string]any{
		"Port": b.ports[4], "UpPort": b.ports[5], "Servers": b.ports[:2], "Health": b.c.health, "Every": checkEvery.Milliseconds(), "Dir": b.dir,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		return err
	}
	argv := []string{path, "-f", file, "-db"}
	if b.c.via == "nginx" {
		argv = []string{path, "-p", b.dir, "-e", filepath.Join(b.dir, "error.log"), "-c", file}
	}
	b.balancer, err = startProcess(argv, b.ports[4], 0, nil)
	return err
}

// serving waits until the balancer passes requests on to both servers: HAProxy
// has to have found them in order, nginx does not check.
func (b *balanced) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	plain, _ := b.addrs()
	ask := "http://" + plain + b.c.health
	if b.c.via == "haproxy" {
		ask = fmt.Sprintf("http://127.0.0.1:%d/", b.ports[5])
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

func (b *balanced) addrs() (plain, tls string) {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(b.ports[4])), ""
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
