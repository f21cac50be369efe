package main

import (
	"embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// otherCommand is the hidden first argument that makes this program a server of
// somebody else's: it writes the configuration and becomes that program, so that
// the signal reaches it.
const otherCommand = "serve-other"

// An other is a well-known server, with the signal that it takes for a graceful
// stop. nginx and HAProxy stand in front of a server that is not stopped. Caddy
// answers by itself: 2.6.2 as a proxy cuts some 5 of 1,000 responses short
// without any stop.
type other struct {
	name    string
	program string
	version []string // arguments that print it
	stop    string   // how it is stopped, for people
	signal  string
	config  string   // file in others/
	args    []string // of program; {config} is the file's name
	app     bool     // it answers by itself, and not as traffic.Handler does
}

var others = []other{
	{name: "nginx", program: "nginx", version: []string{"-v"}, stop: "-s quit", signal: "QUIT", config: "nginx.conf", args: []string{"-c", "{config}"}},
	{name: "HAProxy", program: "haproxy", version: []string{"-v"}, stop: "soft stop", signal: "USR1", config: "haproxy.cfg", args: []string{"-q", "-db", "-f", "{config}"}},
	{name: "Caddy", program: "caddy", version: []string{"version"}, stop: "SIGTERM", signal: "TERM", config: "Caddyfile", args: []string{"run", "--config", "{config}", "--adapter", "caddyfile"}, app: true},
	{name: "node", program: "node", version: []string{"--version"}, stop: "server.close", signal: "TERM", config: "server.js", args: []string{"{config}"}, app: true},
}

//go:embed others
var otherFiles embed.FS

// title names the server, its version and how it is stopped.
func (o other) title(path string) string {
	out, _ := exec.Command(path, o.version...).CombinedOutput()
	for _, word := range strings.FieldsFunc(string(out), func(r rune) bool { return strings.ContainsRune(" \n/", r) }) {
		if v := strings.TrimPrefix(word, "v"); v != "" && v[0] >= '0' && v[0] <= '9' {
			v, _, _ = strings.Cut(v, "-")
			return fmt.Sprintf("%s %s, %s", o.name, v, o.stop)
		}
	}
	return o.name + ", " + o.stop
}

// compete makes those of the others that are installed the subjects, in front of
// a server at backend. Their files are in dir.
func (c *config) compete(backend, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.paths.download, c.method = "/download", "GET"
	for _, o := range others {
		path, err := lookBalancer(o.program)
		if err != nil {
			continue
		}
		sig, err := signalByName(o.signal)
		if err != nil {
			return err
		}
		c.subjects = append(c.subjects, subject{
			Name: o.title(path), any: o.app, why: "it is there to be compared with", signal: sig,
			argv: []string{self, otherCommand, "-name", o.name, "-port", "{port}", "-tls-port", "{tlsport}", "-backend", backend, "-dir", dir},
		})
	}
	if len(c.subjects) == 0 {
		return fmt.Errorf("none of the servers is installed")
	}
	return nil
}

// startBackend starts the server that the others stand in front of.
func startBackend(port int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess([]string{self, serveCommand, "-contender", "net-http", "-addr", "127.0.0.1:{port}", "-tls-addr", "127.0.0.1:0"}, port, 0, nil)
}

// otherMain is the program as a server of somebody else's.
func otherMain(args []string) int {
	fs := flag.NewFlagSet(otherCommand, flag.ContinueOnError)
	name := fs.String("name", "", "")
	var o struct {
		Port, TLSPort int
		Backend, Dir  string
	}
	fs.IntVar(&o.Port, "port", 0, "")
	fs.IntVar(&o.TLSPort, "tls-port", 0, "")
	fs.StringVar(&o.Backend, "backend", "", "")
	fs.StringVar(&o.Dir, "dir", "", "")
	if err := fs.Parse(args); err != nil {
		return exitUsage
	}
	for _, k := range others {
		if k.name == *name {
			fmt.Fprintln(os.Stderr, k.become(o.Dir, o))
			return 1
		}
	}
	return exitUsage
}

// become writes o's configuration to dir and becomes its program. It returns
// only an error.
func (o other) become(dir string, values any) error {
	path, err := lookBalancer(o.program)
	if err != nil {
		return err
	}
	text, err := template.ParseFS(otherFiles, "others/"+o.config)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, o.config)
	f, err := os.Create(config)
	if err != nil {
		return err
	}
	if err := text.Execute(f, values); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := writeCertificate(dir); err != nil {
		return err
	}
	argv := []string{path}
	for _, a := range o.args {
		argv = append(argv, strings.ReplaceAll(a, "{config}", config))
	}
	return syscall.Exec(path, argv, append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir))
}

// writeCertificate writes this process's certificate and key into dir: each in a
// file of its own, and both in one as HAProxy wants it.
func writeCertificate(dir string) error {
	cert, key := traffic.CertPEM()
	both := append(append([]byte(nil), cert...), key...)
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": key, "both.pem": both} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
