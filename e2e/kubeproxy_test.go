package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

const (
	virtualAddr = "10.96.0.1:80" // the Service's
	nodeAddr    = "10.95.0.1"    // the clients'
	podPort     = "8080"

	// kubeProxyLag is how late the node hears that a Pod is going. In a cluster
	// the news takes from the API server to the EndpointSlice controller, from
	// there to each node's kube-proxy, and waits for its next turn of work.
	kubeProxyLag = time.Second
)

// A Service's virtual address is spread over two Pods by nftables, as kube-proxy
// does it, and the node hears of a Pod's end late. With a ShutdownDelay above
// that nothing is lost. Without one the node sends new connections to a Pod that
// does not take any, and there is nothing that the Pod could do about it.
func TestKubeProxy(t *testing.T) {
	for _, tt := range []struct {
		name   string
		delay  time.Duration
		failed bool // requests are expected to fail
	}{
		{"delay", kubeProxyLag + kubeProxyLag/2, false},
		{"no delay", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			for i := range c.pods {
				c.start(i, tt.delay)
			}
			c.route(0, 1)
			clients := c.clients()
			n := 4
			if testing.Short() {
				n = 2
			}
			for roll := range n {
				going := roll % 2
				time.Sleep(kubeProxyLag / 4) // some traffic with both
				c.terminate(going)
				time.Sleep(kubeProxyLag)
				c.route(1 - going)
				c.wait(going)
				c.start(going, tt.delay)
				c.route(0, 1)
			}
			failed := 0
			for _, k := range clients.stop() {
				t.Logf("%-12s %5d answered, refused %v, lost %v", k.Kind, k.Answered, k.Refused, k.Lost)
				if k.Answered == 0 {
					t.Errorf("%s: nothing was answered", k.Kind)
				}
				for _, causes := range []map[string]int{k.Refused, k.Lost} {
					for cause, n := range causes {
						failed += n
						if !tt.failed {
							t.Errorf("%s: %d %s: %s", k.Kind, n, cause, k.Errors[cause])
						}
					}
				}
			}
			if tt.failed && failed == 0 {
				t.Error("nothing failed: this test does not show what the delay is for")
			}
		})
	}
}

// A cluster is a node, on which the clients run, and two Pods, each of them a
// network namespace. There is no way from them to anything else.
type cluster struct {
	t       *testing.T
	ip, nft string
	node    string // its namespace
	pods    [2]*pod
}

type pod struct {
	namespace, addr string
	cmd             *exec.Cmd
	log             *bytes.Buffer // read only when it has ended
}

func newCluster(t *testing.T) *cluster {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux's network namespaces")
	}
	c := &cluster{t: t, ip: need(t, "ip"), nft: need(t, "nft")}
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	prefix := fmt.Sprintf("graceful-%d-", os.Getpid())
	add := func(name string) string {
		name = prefix + name
		if out, err := exec.Command(c.ip, "netns", "add", name).CombinedOutput(); err != nil {
			t.Skipf("network namespaces are not permitted here: %v: %s", err, out)
		}
		t.Cleanup(func() { c.run(c.ip, "netns", "del", name) })
		return name
	}
	c.node = add("node")
	in := func(namespace string, args ...string) {
		t.Helper()
		c.run(c.ip, append([]string{"-n", namespace}, args...)...)
	}
	in(c.node, "link", "add", "bridge", "type", "bridge")
	in(c.node, "addr", "add", nodeAddr+"/24", "dev", "bridge")
	in(c.node, "link", "set", "bridge", "up")
	// The virtual address is nowhere; it is replaced before it would be sent.
	in(c.node, "route", "add", strings.TrimSuffix(virtualAddr, ":80"), "dev", "bridge")
	for i := range c.pods {
		p := &pod{namespace: add(fmt.Sprintf("pod%d", i)), addr: fmt.Sprintf("10.95.0.%d", 10+i)}
		link := fmt.Sprintf("pod%d", i)
		in(c.node, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", p.namespace)
		in(c.node, "link", "set", link, "master", "bridge", "up")
		in(p.namespace, "addr", "add", p.addr+"/24", "dev", "eth0")
		in(p.namespace, "link", "set", "eth0", "up")
		in(p.namespace, "link", "set", "lo", "up")
		c.pods[i] = p
	}
	return c
}

func (c *cluster) run(name string, args ...string) {
	c.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		c.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// inside is a command of this test binary's in a namespace.
func (c *cluster) inside(namespace string, args ...string) *exec.Cmd {
	return exec.Command(c.ip, append([]string{"netns", "exec", namespace, os.Args[0]}, args...)...)
}

// start starts a Pod, and returns when it is ready.
func (c *cluster) start(i int, delay time.Duration) {
	c.t.Helper()
	p := c.pods[i]
	p.log = new(bytes.Buffer)
	p.cmd = c.inside(p.namespace, serve, "-host", p.addr, "-port", podPort, "-delay", delay.String())
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	cmd := p.cmd
	c.t.Cleanup(func() {
		cmd.Process.Kill() // an error if it has ended, as it should
		cmd.Wait()
	})
	if out, err := c.inside(c.node, load, "-ready", "http://"+p.addr+":"+podPort+"/ready").CombinedOutput(); err != nil {
		c.t.Fatalf("pod %d does not become ready: %v: %s", i, err, out)
	}
}

func (c *cluster) terminate(i int) {
	c.t.Helper()
	if err := c.pods[i].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) wait(i int) {
	c.t.Helper()
	if err := c.pods[i].cmd.Wait(); err != nil {
		c.t.Errorf("pod %d: %v: %s", i, err, c.pods[i].log)
	}
}

// route makes the node spread new connections over the given Pods, in one
// transaction, as kube-proxy does. Connections that there are keep their Pod.
func (c *cluster) route(pods ...int) {
	c.t.Helper()
	addr, port, _ := strings.Cut(virtualAddr, ":")
	var backends []string
	for n, i := range pods {
		backends = append(backends, fmt.Sprintf("%d : %s . %s", n, c.pods[i].addr, podPort))
	}
	cmd := exec.Command(c.ip, "netns", "exec", c.node, c.nft, "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
table ip kubeproxy {
	chain services {
		type nat hook output priority -100;
	}
}
flush chain ip kubeproxy services
add rule ip kubeproxy services ip daddr %s tcp dport %s dnat ip to numgen random mod %d map { %s }
`, addr, port, len(pods), strings.Join(backends, ", ")))
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("nft: %v: %s", err, out)
	}
}

// load is the first argument that makes the test binary the clients.
const load = "load"

// kinds are what the clients do.
var kinds = []traffic.Kind{traffic.KeepAlive, traffic.NewConn, traffic.HalfNew50, traffic.Upload, traffic.Stream, traffic.Think10, traffic.HTTP2Once, traffic.Idle}

// A tally is what became of one kind of traffic.
type tally struct {
	Kind     string
	Answered int
	Refused  map[string]int
	Lost     map[string]int
	Errors   map[string]string
}

// clients are a process on the node that puts load on the virtual address.
type clients struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bytes.Buffer
}

func (c *cluster) clients() *clients {
	c.t.Helper()
	k := &clients{t: c.t, cmd: c.inside(c.node, load, "-addr", virtualAddr), out: new(bytes.Buffer)}
	k.cmd.Stdout, k.cmd.Stderr = k.out, k.out
	stdin, err := k.cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	k.stdin = stdin
	if err := k.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { stdin.Close() })
	return k
}

// stop ends the load and returns what it counted.
func (k *clients) stop() (tallies []tally) {
	k.t.Helper()
	k.stdin.Close()
	err := k.cmd.Wait()
	if err == nil {
		err = json.Unmarshal(k.out.Bytes(), &tallies)
	}
	if err != nil {
		k.t.Fatalf("the clients: %v: %s", err, k.out)
	}
	return tallies
}

// runLoad is the clients' process: it puts load on an address until its standard
// input ends. Or it waits until a URL answers with 200.
func runLoad(args []string) int {
	fs := flag.NewFlagSet(load, flag.ExitOnError)
	addr := fs.String("addr", "", "")
	ready := fs.String("ready", "", "")
	fs.Parse(args)
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if *ready != "" {
		var err error
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
			var resp *http.Response
			if resp, err = http.Get(*ready); err == nil {
				resp.Body.Close()
				if resp.StatusCode == 200 {
					return 0
				}
				err = fmt.Errorf("status %s", resp.Status)
			}
		}
		return fail(err)
	}
	var runs []*traffic.Run
	for _, k := range kinds {
		run, err := traffic.Load{
			Addr:    *addr,
			Kind:    k,
			Clients: 4,
			Conns:   2,
			Rate:    40,
			Redial:  20 * time.Millisecond,
			Window:  500 * time.Millisecond, // Server.IdleGrace's default
		}.Start(context.Background())
		if err != nil {
			return fail(err)
		}
		runs = append(runs, run)
	}
	io.Copy(io.Discard, os.Stdin)
	var tallies []tally
	for i, run := range runs {
		res := run.Stop()
		tallies = append(tallies, tally{kinds[i].Name, res.Answered, res.Refused, res.Lost, res.Errors})
	}
	if err := json.NewEncoder(os.Stdout).Encode(tallies); err != nil {
		return fail(err)
	}
	return 0
}
