package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A config is what the command line says.
type config struct {
	subjects []subject // what is checked, one after the other
	lanes    []lane
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

	json, html, svg string
	verbose         bool
}

// A subject is a server to check.
type subject struct {
	Name string
	argv []string
	any  bool   // it does not serve traffic.Handler
	why  string // what a loss of it means: "" that the check failed
}

const usage = `Usage:
  draincheck [flags]                          the demonstration: net/http beside this library
  draincheck [flags] -- command [arguments]   starts the command; {port} in its arguments, and
                                              PORT in its environment, is the port to serve on;
                                              {tlsport}, if there, is one more, for TLS
  draincheck [flags] -url URL -pid N          a server that something else runs
  draincheck [flags] -url URL -stop-command "..."

Flags:
`

// Bounds of what the command does to a machine.
const (
	maxClients = 5000
	maxRate    = 20_000
	maxRounds  = 1000
)

func parse(args []string, stderr io.Writer) (*config, error) {
	c := &config{}
	fs := flag.NewFlagSet("draincheck", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	sig := fs.String("signal", "TERM", "the `signal` that stops the server: TERM, INT, HUP, QUIT, USR1, USR2, KILL")
	target := fs.String("url", "", "check the server at this `URL`, which need not be on this machine")
	kinds := fs.String("traffic", "all", "the `kinds` of traffic, separated by commas:\n"+laneUsage())
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
	fs.StringVar(&c.json, "json", "", "write the result as JSON to this `file`, - for standard output")
	fs.StringVar(&c.html, "html", "", "write the result as one self-contained page to this `file`")
	fs.StringVar(&c.svg, "svg", "", "write the picture to this `file`")
	fs.BoolVar(&c.verbose, "v", false, "show what the server writes")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			io.WriteString(stderr, usage)
			fs.SetOutput(stderr)
			fs.PrintDefaults()
		}
		return nil, err
	}
	var err error
	if c.signal, err = signalByName(*sig); err != nil {
		return nil, err
	}
	if c.lanes, err = lanesByName(*kinds); err != nil {
		return nil, err
	}
	if err := c.bounds(); err != nil {
		return nil, err
	}
	return c, c.subject(fs.Args(), *target)
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
	case !strings.HasPrefix(c.path, "/") || !strings.HasPrefix(c.health, "/"):
		return errors.New("-path and -health must begin with a slash")
	}
	return nil
}

// clientsOf returns how many clients lane l has. An idle connection makes one
// request for each stop, so that where requests are wanted there are many.
func (c *config) clientsOf(l lane) int {
	if l.kind.Name == traffic.Idle.Name {
		return max(c.clients, c.requests/idleStops)
	}
	return c.clients
}

// idleStops is after how many stops idle connections have made the requests that
// are wanted.
const idleStops = 50

func (c *config) allClients() (n int) {
	for _, l := range c.lanes {
		n += c.clientsOf(l)
	}
	return n
}

// subject finds out what is to be checked.
func (c *config) subject(command []string, target string) error {
	switch {
	case target != "" && len(command) > 0:
		return errors.New("-url and a command exclude each other")
	case target == "" && (c.pid != 0 || c.stopCommand != ""):
		return errors.New("-pid and -stop-command need -url")
	case target != "":
		return c.external(target)
	case len(command) == 0:
		c.demo = true
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
