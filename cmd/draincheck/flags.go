package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A config is what the command line says.
type config struct {
	// As they stand there.
	signalName, target, kinds string

	subjects []subject // what is checked, one after the other
	lanes    []lane
	all      bool // the lanes are those of -traffic all
	demo     bool

	rounds  int
	signal  syscall.Signal
	grace   time.Duration
	total   time.Duration
	replace bool
	via     string
	health  string

	url         *url.URL
	pid         int
	stopCommand string

	clients  int
	requests int // of each kind, at the least; 0: as many as come
	rate     float64
	warm     time.Duration
	window   time.Duration
	method   string
	path     string
	paths    kindPaths
	fixed    bool // the load is not lowered for a server that does not carry it

	maxLost        int
	maxLostPercent float64
	compare        string

	json, junit, html, svg string
	github                 bool
	verbose                bool
	version                bool
}

// kindPaths are the paths of kinds of traffic that want a resource of their own;
// "" is -path's.
type kindPaths struct{ upload, download, ws, sse string }

// pathOf returns the path of lane l's requests, and the flag that sets it.
func (c *config) pathOf(l lane) (path, by string) {
	own := ""
	switch {
	case l.kind.HasBody():
		own, by = c.paths.upload, "-upload-path"
	case l.kind.Downloads():
		own, by = c.paths.download, "-download-path"
	case l.kind.WebSocket():
		own, by = c.paths.ws, "-ws-path"
	case l.kind.EventStream():
		own, by = c.paths.sse, "-sse-path"
	default:
		by = "-path"
	}
	return cmp.Or(own, c.path), by
}

// A subject is a server to check.
type subject struct {
	Name   string
	argv   []string
	any    bool           // it does not serve traffic.Handler
	why    string         // what a loss of it means: "" that the check failed
	signal syscall.Signal // that stops it; 0: -signal's
}

// Bounds of what the command does to a machine.
const (
	maxClients = 5000
	maxRate    = 20_000
	maxRounds  = 1000
)

// newFlags returns a config and the flags that fill it in.
func newFlags() (*config, *flag.FlagSet) {
	c := &config{}
	fs := flag.NewFlagSet("draincheck", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.version, "version", false, "print the version and exit")
	fs.StringVar(&c.signalName, "signal", "TERM", "the `signal` that stops the server: TERM, INT, HUP, QUIT, USR1, USR2, KILL")
	fs.StringVar(&c.target, "url", "", "check the server at this `URL`, which need not be on this machine")
	fs.StringVar(&c.kinds, "traffic", "all", "the `kinds` of traffic, separated by commas:\n"+laneUsage())
	fs.IntVar(&c.pid, "pid", 0, "with -url: the `process` that gets the signal")
	fs.StringVar(&c.stopCommand, "stop-command", "", "with -url: the shell `command` that stops the server, and returns when it has stopped")
	fs.IntVar(&c.rounds, "rounds", 5, "how many times the server is stopped")
	fs.DurationVar(&c.grace, "grace", 15*time.Second, "how long the server may take to exit before it gets SIGKILL")
	fs.DurationVar(&c.total, "timeout", 10*time.Minute, "how long all of it may take")
	fs.BoolVar(&c.replace, "replace", false, "start the successor, on the same port, before the stop (the server must set SO_REUSEPORT)")
	fs.StringVar(&c.via, "via", "", "put two instances behind a `balancer`, haproxy or nginx, and roll them one after the other")
	fs.StringVar(&c.health, "health", "/", "the `path` that haproxy checks")
	fs.IntVar(&c.clients, "clients", 16, "how many clients each kind of traffic has")
	fs.Float64Var(&c.rate, "rate", 200, "how many requests per second each kind of traffic may begin; 0: as many as it can")
	fs.DurationVar(&c.warm, "warm", 500*time.Millisecond, "how long the load lasts before the stop")
	fs.DurationVar(&c.window, "window", 0, "the quiet `time` that the server grants idle connections while it stops: a loss on one\nthat its client left alone for longer has the cause \"paused\"; 500ms in the demonstration")
	fs.StringVar(&c.method, "method", "GET", "the `method` of requests that need no body")
	fs.StringVar(&c.path, "path", "/", "the `path` of requests")
	fs.StringVar(&c.paths.upload, "upload-path", "", "the `path` that takes bodies: upload, expect-100 (default -path's)")
	fs.StringVar(&c.paths.download, "download-path", "", "the `path` of a response that takes a while, or has more than 1 MiB: download, http2-download\n(default -path's)")
	fs.StringVar(&c.paths.ws, "ws-path", "", "the `path` of a WebSocket (default -path's)")
	fs.StringVar(&c.paths.sse, "sse-path", "", "the `path` of an event stream (default -path's)")
	fs.IntVar(&c.maxLost, "max-lost", 0, "how many lost `requests`, of all stops together, do not fail the check")
	fs.Float64Var(&c.maxLostPercent, "max-lost-percent", 0, "how many lost requests, in `percent` of those that were sent, do not fail the check")
	fs.StringVar(&c.compare, "compare", "", "also say what has changed since the check whose -json wrote this `file`")
	fs.StringVar(&c.junit, "junit", "", "write the result as JUnit XML to this `file`: a test case for each kind of traffic")
	fs.BoolVar(&c.github, "github", os.Getenv("GITHUB_ACTIONS") == "true", "write annotations for GitHub Actions (the default is true there)")
	fs.StringVar(&c.json, "json", "", "write the result as JSON to this `file`; - is standard output, which then has nothing else")
	fs.StringVar(&c.html, "html", "", "write the result as one self-contained page to this `file`")
	fs.StringVar(&c.svg, "svg", "", "write the picture to this `file`")
	fs.BoolVar(&c.verbose, "v", false, "show what the server writes")
	return c, fs
}

func parse(args []string, stderr io.Writer) (*config, error) {
	c, fs := newFlags()
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			writeUsage(stderr, fs)
		}
		return nil, err
	}
	if c.version {
		return c, nil
	}
	var err error
	if c.signal, err = signalByName(c.signalName); err != nil {
		return nil, err
	}
	c.all = c.kinds == "all"
	if c.lanes, err = lanesByName(c.kinds); err != nil {
		return nil, err
	}
	if err := c.bounds(); err != nil {
		return nil, err
	}
	return c, c.subject(fs.Args())
}

// bounds checks the numbers.
func (c *config) bounds() error {
	switch {
	case c.rounds < 1 || c.rounds > maxRounds:
		return fmt.Errorf("-rounds %d: must be from 1 to %d", c.rounds, maxRounds)
	case c.requests < 0:
		return fmt.Errorf("-requests %d: must not be negative", c.requests)
	case c.clients < 1 || c.allClients() > maxClients:
		return fmt.Errorf("-clients %d: must be at least 1, and all kinds of traffic together may have %d", c.clients, maxClients)
	case c.rate < 0 || c.rate > maxRate:
		return fmt.Errorf("-rate %v: must be from 0 to %d", c.rate, maxRate)
	case c.grace <= 0 || c.total <= 0 || c.warm < 0 || c.window < 0:
		return errors.New("-grace and -timeout must be more than 0, -warm and -window not less")
	case c.via != "" && c.via != "haproxy" && c.via != "nginx":
		return fmt.Errorf("-via %q: there are haproxy and nginx", c.via)
	case c.maxLost < 0 || c.maxLostPercent < 0 || c.maxLostPercent > 100:
		return errors.New("-max-lost must not be less than 0, -max-lost-percent be from 0 to 100")
	}
	for name, path := range map[string]string{
		"-path": c.path, "-health": c.health, "-upload-path": c.paths.upload, "-download-path": c.paths.download,
		"-ws-path": c.paths.ws, "-sse-path": c.paths.sse,
	} {
		if path != "" && !strings.HasPrefix(path, "/") || path == "" && (name == "-path" || name == "-health") {
			return fmt.Errorf("%s %q: must begin with a slash", name, path)
		}
	}
	return nil
}

// clientsOf returns how many clients lane l has. An idle connection makes one
// request for each stop, so that where requests are wanted there are many.
func (c *config) clientsOf(l lane) int {
	if l.kind.Name == traffic.Idle.Name && c.rounds > 0 {
		return max(c.clients, c.requestsOf(l)/c.rounds)
	}
	return c.clients
}

// requestsOf returns how many requests of lane l are wanted, at the least: of
// idle connections, which make one each, a fifth.
func (c *config) requestsOf(l lane) int {
	if l.kind.Name == traffic.Idle.Name {
		return c.requests / 5
	}
	return c.requests
}

func (c *config) allClients() (n int) {
	for _, l := range c.lanes {
		n += c.clientsOf(l)
	}
	return n
}

// subject finds out what is to be checked.
func (c *config) subject(command []string) error {
	target := c.target
	switch {
	case target != "" && len(command) > 0:
		return errors.New("-url and a command exclude each other")
	case target == "" && (c.pid != 0 || c.stopCommand != ""):
		return errors.New("-pid and -stop-command need -url")
	case target != "":
		return c.external(target)
	case len(command) == 0:
		c.demo = true
		if c.all {
			c.lanes = slices.DeleteFunc(c.lanes, func(l lane) bool { return l.foreign })
		}
		return nil
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		return fmt.Errorf("the server's command: %w", err)
	}
	c.subjects = []subject{{Name: strings.Join(command, " "), argv: command, any: true}}
	return nil
}

func (c *config) external(target string) error {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("-url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("-url %q: must be http://host:port/ or https://host:port/", target)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	switch {
	case (c.pid == 0) == (c.stopCommand == ""):
		return errors.New("-url needs either -pid or -stop-command")
	case c.replace || c.via != "":
		return errors.New("-replace and -via are for a server that draincheck starts")
	case c.pid < 0:
		return fmt.Errorf("-pid %d: not a process", c.pid)
	case c.rounds > 1 && c.pid != 0:
		c.rounds = 1 // nobody is there to start it again
	}
	if u.Path != "" {
		c.path = u.RequestURI()
	}
	c.url = u
	c.subjects = []subject{{Name: target, any: true}}
	return nil
}

func lanesByName(names string) ([]lane, error) {
	if names == "all" {
		return slices.DeleteFunc(slices.Clone(lanes), func(l lane) bool { return l.extra }), nil
	}
	var out []lane
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(lanes, func(l lane) bool { return l.Name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("-traffic %q: there is no such kind; there are\n%s", name, laneUsage())
		}
		if !slices.ContainsFunc(out, func(l lane) bool { return l.Name == lanes[i].Name }) {
			out = append(out, lanes[i])
		}
	}
	return out, nil
}
