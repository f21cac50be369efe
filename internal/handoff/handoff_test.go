package handoff

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestParse(t *testing.T) {
	const pid, ppid = 42, 7
	for name, tt := range map[string]struct {
		env  string // NAME=value, separated by spaces
		want handover
		err  string
	}{
		"nothing":    {},
		"none":       {env: "LISTEN_PID=42 LISTEN_FDS=0", want: handover{names: []string{}, owned: []bool{}}},
		"systemd":    {env: "LISTEN_PID=42 LISTEN_FDS=2 LISTEN_FDNAMES=web:admin", want: handover{names: []string{"web", "admin"}, owned: []bool{false, false}}},
		"no names":   {env: "LISTEN_PID=42 LISTEN_FDS=1", want: handover{names: []string{"unknown"}, owned: []bool{false}}},
		"empty name": {env: "LISTEN_PID=42 LISTEN_FDS=2 LISTEN_FDNAMES=:x", want: handover{names: []string{"unknown", "x"}, owned: []bool{false, false}}},
		"not ours":   {env: "LISTEN_PID=41 LISTEN_FDS=2 LISTEN_FDNAMES=web"},
		"no PID":     {env: "LISTEN_FDS=2"},

		"predecessor":          {env: "LISTEN_FDS=2 LISTEN_FDNAMES=web:admin GRACEFUL_HANDOFF=7:5:01", want: handover{names: []string{"web", "admin"}, owned: []bool{false, true}, readyFD: 5}},
		"predecessor, none":    {env: "LISTEN_FDS=0 LISTEN_FDNAMES= GRACEFUL_HANDOFF=7:3:", want: handover{names: []string{}, owned: []bool{}, readyFD: 3}},
		"grandparent's":        {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=8:4:0"},
		"both: predecessor's":  {env: "LISTEN_PID=1 LISTEN_FDS=1 GRACEFUL_HANDOFF=7:4:1", want: handover{names: []string{"unknown"}, owned: []bool{true}, readyFD: 4}},
		"PID is not a number":  {env: "LISTEN_PID=me LISTEN_FDS=1", err: `LISTEN_PID="me"`},
		"PID 0":                {env: "LISTEN_PID=0 LISTEN_FDS=1", err: `LISTEN_PID="0"`},
		"FDS is not a number":  {env: "LISTEN_PID=42 LISTEN_FDS=two", err: `LISTEN_FDS="two"`},
		"FDS is negative":      {env: "LISTEN_PID=42 LISTEN_FDS=-1", err: `LISTEN_FDS="-1"`},
		"FDS is absurd":        {env: "LISTEN_PID=42 LISTEN_FDS=1000000", err: `LISTEN_FDS="1000000"`},
		"too few names":        {env: "LISTEN_PID=42 LISTEN_FDS=2 LISTEN_FDNAMES=web", err: "1 names for 2 descriptors"},
		"too many names":       {env: "LISTEN_PID=42 LISTEN_FDS=1 LISTEN_FDNAMES=web:", err: "2 names for 1 descriptors"},
		"handoff without FDS":  {env: "GRACEFUL_HANDOFF=7:4:0", err: "LISTEN_FDS is not"},
		"handoff: short":       {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=7:4", err: "malformed"},
		"handoff: wrong pipe":  {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=7:3:0", err: "malformed"},
		"handoff: owned":       {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=7:4:2", err: "malformed"},
		"handoff: owned, many": {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=7:4:00", err: "malformed"},
		"handoff: PID":         {env: "LISTEN_FDS=1 GRACEFUL_HANDOFF=x:4:0", err: "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			env := make(map[string]string)
			for _, entry := range strings.Fields(tt.env) {
				k, v, _ := strings.Cut(entry, "=")
				env[k] = v
			}
			got, err := parse(func(k string) string { return env[k] }, pid, ppid)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(handover{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What environ writes, parse reads; what was there for this process goes.
func TestEnviron(t *testing.T) {
	base := []string{"PATH=/bin", "LISTEN_PID=7", "LISTEN_FDS=9", "LISTEN_FDNAMES=x", "LISTEN_PIDFDID=1", "GRACEFUL_HANDOFF=x",
		"NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=5", "WATCHDOG_PID=7"}
	got, err := environ(base, []Socket{{Name: "web", Owned: true}, {Name: ""}}, 7)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/bin", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=5", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:", "GRACEFUL_HANDOFF=7:5:10"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"a:b", "a\nb", "\x7f"} {
		if _, err := environ(nil, []Socket{{Name: name}}, 7); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		network, want, have string
		match               bool
	}{
		{"tcp", ":80", "[::]:80", true},
		{"tcp", ":80", "0.0.0.0:80", true},
		{"tcp", "0.0.0.0:80", "[::]:80", true},
		{"tcp", "[::]:80", "[::]:80", true},
		{"tcp4", ":80", "0.0.0.0:80", true},
		{"tcp4", ":80", "[::]:80", false},
		{"tcp6", ":80", "[::]:80", true},
		{"tcp6", ":80", "0.0.0.0:80", false},
		{"tcp", ":80", "[::]:81", false},
		{"tcp", ":80", "127.0.0.1:80", false},
		{"tcp", "127.0.0.1:80", "0.0.0.0:80", false},
		{"tcp", "127.0.0.1:80", "127.0.0.1:80", true},
		{"tcp", "127.0.0.1:80", "127.0.0.2:80", false},
		{"tcp", "[fe80::1%lo]:80", "[fe80::1%lo]:80", true},
		{"tcp", "[fe80::1%lo]:80", "[fe80::1%eth0]:80", false},
	} {
		want, err := net.ResolveTCPAddr(tt.network, tt.want)
		if err != nil {
			t.Fatal(err)
		}
		have, err := net.ResolveTCPAddr("tcp", tt.have)
		if err != nil {
			t.Fatal(err)
		}
		if got := matches(tt.network, want, have); got != tt.match {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// Programs that were handed nothing have a nil *Sockets, or an empty one.
func TestNothing(t *testing.T) {
	for _, s := range []*Sockets{nil, new(Sockets)} {
		if _, ok := s.Take("tcp", ":80"); ok {
			t.Error("Take found something")
		}
		if _, ok := s.TakeName(""); ok {
			t.Error("TakeName found something")
		}
		if told, err := s.Ready(); told || err != nil || s.Unused() != nil {
			t.Error(told, err, s.Unused())
		}
		s.Close()
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
