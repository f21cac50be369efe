//go:build unix

package hostile

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/childproc"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

var (
	hostiles = flag.Int("hostiles", 16, "how many hostile clients each server gets")
	siege    = flag.Duration("siege", 400*time.Millisecond, "how long they attack before the stop, or during the delay")
)

// The servers' configuration.
const (
	grace   = 200 * time.Millisecond  // IdleGrace
	timeout = 2500 * time.Millisecond // Timeout, and of the context of net/http's Shutdown
	second  = 600 * time.Millisecond  // from the first signal to the one that kills
)

// clients is how many well-behaved ones of each kind there are.
const clients = 4

// A phase is when the attack takes place.
type phase int

const (
	serving  phase = iota // it ends before the stop
	delaying              // it begins with the signal, during the delay, and stays
	draining              // it begins before the stop and stays, until the timeout if need be
	killing               // the same, and a second signal comes
	phases
)

func (p phase) String() string { return [...]string{"serving", "delaying", "draining", "killing"}[p] }

// The two that are compared.
const (
	ours = iota
	theirs
	servers
)

var serverNames = [servers]string{"graceful", "net/http"}

// An outcome is how a server came through an attack.
type outcome struct {
	stop   time.Duration // from the signal on
	second time.Duration // from the signal to the second one, if that came before the end
	heap   int64         // the peak of heap and stacks in use, in bytes
	rss    int64         // the peak of the resident memory, in bytes; 0 where it isn't known
	lost   int           // requests of the well-behaved clients
	paused int           // of them, those that traffic.Load.Window excuses
	sent   int
	detail string
}

// TestMain lets more tests run at once than there are processors: most of them
// wait most of the time.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", "8")
	}
	os.Exit(m.Run())
}

// TestHostile attacks a server of this library and one of net/http in each phase,
// with each kind of hostile client. The attacked server may not take longer to
// stop than net/http does and this library's documentation says, may not need more
// memory, and may not lose a request of a well-behaved client. All margins are wide:
// they are for faults of kind, not for those of degree.
func TestHostile(t *testing.T) {
	if *siege < time.Millisecond || *hostiles < 1 {
		t.Fatal("-siege and -hostiles have to be positive")
	}
	results := make([][phases][servers]outcome, len(kinds))
	t.Cleanup(func() { t.Log("\n" + table(results)) })
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { compareMemory(t, &results[i]) })
			for p := range phases {
				t.Run(p.String(), func(t *testing.T) {
					t.Parallel()
					got := &results[i][p]
					for s := range got {
						got[s] = play(t, k, p, s)
					}
					compare(t, k, p, got[ours], got[theirs])
				})
			}
		})
	}
}

// compare fails t for what is worse with this library.
func compare(t *testing.T, k kind, p phase, o, n outcome) {
	t.Helper()
	// On a busy machine well-behaved clients acknowledge their GOAWAY late, too.
	const slack = 2500 * time.Millisecond
	most := timeout + slack
	switch {
	case p == delaying:
		most += *siege
	case p == killing && o.second > 0:
		most = o.second + slack
	}
	if o.stop > most {
		t.Errorf("stopped after %v; it had to stop after %v", o.stop, most-slack)
	}
	if p != killing && o.stop > n.stop+k.rule.wait+slack {
		t.Errorf("stopped after %v; net/http after %v, and %v more are allowed: %q", o.stop, n.stop, k.rule.wait, k.rule.why)
	}
	allowed := o.paused
	if p == killing {
		allowed += 2 * clients // a request in progress then is lost
	}
	if o.lost > allowed {
		t.Errorf("well-behaved clients lost requests: %s; with net/http: %s", o.detail, n.detail)
	}
}

// compareMemory fails t if this library needed more memory in any phase than
// net/http in any. The margin is wide because the most of it are the streams that
// net/http has queued, which are the more the busier the machine is.
func compareMemory(t *testing.T, played *[phases][servers]outcome) {
	heap, rss := peaks(played)
	if heap[ours] > heap[theirs]*3/2+32<<20 {
		t.Errorf("the heap grew to %d bytes, net/http's to %d", heap[ours], heap[theirs])
	}
	if rss[ours] > rss[theirs]*3/2+40<<20 {
		t.Errorf("the resident memory grew to %d bytes, net/http's to %d", rss[ours], rss[theirs])
	}
}

// peaks returns the most memory that each server needed in any phase.
func peaks(played *[phases][servers]outcome) (heap, rss [servers]int64) {
	for _, outcomes := range played {
		for s, o := range outcomes {
			heap[s] = max(heap[s], o.heap)
			rss[s] = max(rss[s], o.rss)
		}
	}
	return heap, rss
}

// play runs a server in a process of its own, with well-behaved clients and the
// attack, and stops it.
func play(t *testing.T, k kind, p phase, server int) outcome {
	t.Helper()
	delay := time.Duration(0)
	limit := timeout
	switch p {
	case delaying:
		delay = *siege
	case killing:
		limit = 30 * time.Second
	}
	c := childproc.Start(t, "TestServer", fmt.Sprintf("%s=%s %v %v", serverEnv, serverNames[server], delay, limit))
	defer c.Kill()
	var plain, secure string
	if line := c.Line(); !scan(line, "serving %s %s", &plain, &secure) {
		t.Fatalf("the server said %q", line)
	}
	addr := plain
	if k.tls {
		addr = secure
	}

	var loads []*traffic.Run
	for _, good := range []traffic.Kind{traffic.KeepAlive, traffic.HTTP2} {
		load := traffic.Load{
			Addr: plain, Kind: good, Clients: clients, Conns: 2, Rate: 200,
			Redial: 20 * time.Millisecond, Window: grace,
		}
		run, err := load.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := run.WaitMore(2 * load.Clients); err != nil {
			t.Fatal(err)
		}
		loads = append(loads, run)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop := func() {
		c.Signal(syscall.SIGTERM)
		c.Says("stopping")
	}
	if p == delaying {
		stop()
	}
	wait := k.besiege(ctx, addr, *hostiles)
	switch p {
	case serving:
		time.Sleep(*siege)
		cancel()
		wait()
		stop()
	case draining:
		time.Sleep(*siege)
		stop()
	case killing:
		time.Sleep(*siege)
		stop()
		time.Sleep(second)
		c.Signal(syscall.SIGTERM)
	}
	var o outcome
	if line := c.Line(); !scan(line, "stopped %v %v %d %d", &o.stop, &o.second, &o.heap, &o.rss) {
		t.Fatalf("the server said %q", line)
	}
	if stderr := c.Exit(0, 0); strings.Contains(stderr, "goroutine ") {
		t.Errorf("the server says %s", stderr)
	}
	cancel()
	wait()
	for _, run := range loads {
		res := run.Stop()
		o.sent += res.Sent
		o.lost += res.LostCount()
		o.paused += res.Paused()
		o.detail += fmt.Sprintf("%v %v; ", res, res.Errors)
	}
	return o
}

// scan is fmt.Sscanf, for durations as well. It reports whether all fits.
func scan(line, format string, args ...any) bool {
	for i, a := range args {
		if d, ok := a.(*time.Duration); ok {
			var text string
			args[i] = &text
			defer func() { *d, _ = time.ParseDuration(text) }()
		}
	}
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

// table returns the outcomes in Markdown: of this library first.
func table(results [][phases][servers]outcome) string {
	var b strings.Builder
	b.WriteString("| attack |")
	for p := range phases {
		fmt.Fprintf(&b, " %v |", p)
	}
	b.WriteString(" heap | resident | lost of |\n|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for i, k := range kinds {
		heap, rss := peaks(&results[i])
		var lost, sent [servers]int
		fmt.Fprintf(&b, "| %s |", k.name)
		for p := range phases {
			r := results[i][p]
			for s := range servers {
				lost[s] += r[s].lost
				sent[s] += r[s].sent
			}
			fmt.Fprintf(&b, " %.2f / %.2f |", r[ours].stop.Seconds(), r[theirs].stop.Seconds())
		}
		if sent[ours] == 0 {
			b.Reset() // not played
			continue
		}
		fmt.Fprintf(&b, " %.1f / %.1f | %.0f / %.0f | %d of %d / %d of %d |\n", mib(heap[ours]), mib(heap[theirs]),
			mib(rss[ours]), mib(rss[theirs]), lost[ours], sent[ours], lost[theirs], sent[theirs])
	}
	return b.String()
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// serverEnv tells TestServer that it is the child, and which server it is to be.
const serverEnv = "HOSTILE_SERVER"

// TestServer is not a test: it is the server that is attacked.
func TestServer(t *testing.T) {
	var name string
	var delay, limit time.Duration
	if env := os.Getenv(serverEnv); env == "" {
		t.Skip("only as a child process")
	} else if !scan(env, "%s %s %s", &name, &delay, &limit) {
		t.Fatal(env)
	}
	peak := watchMemory()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM)

	good := &traffic.Handler{}
	chunk := make([]byte, 64<<10)
	hs := &http.Server{
		ErrorLog:  log.New(io.Discard, "", 0),
		TLSConfig: traffic.ServerTLS(),
		Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/ok":
				io.Copy(io.Discard, r.Body)
				io.WriteString(w, "ok\n")
			case "/large":
				for range 1 << 10 {
					if _, err := w.Write(chunk); err != nil {
						return
					}
				}
			default:
				good.ServeHTTP(w, r)
			}
		}),
	}
	hs.Protocols.SetHTTP1(true)
	hs.Protocols.SetHTTP2(true)
	hs.Protocols.SetUnencryptedHTTP2(true)
	listen := func() net.Listener {
		l, err := graceful.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	plain, secure := listen(), listen()

	killed, kill := context.WithCancel(context.Background()) // by the second signal
	defer kill()
	var second atomic.Int64 // when it came; see outcome
	var serve, serveTLS func() error
	var stop func() // begins with the first signal, and returns when it has stopped
	switch name {
	case serverNames[ours]:
		srv := &graceful.Server{Server: hs, ShutdownDelay: delay, Timeout: limit, IdleGrace: grace}
		serve = func() error { return srv.Serve(plain) }
		serveTLS = func() error { return srv.ServeTLS(secure, "", "") }
		stop = func() { <-srv.StopChan() }
	case serverNames[theirs]:
		serve = func() error { return hs.Serve(plain) }
		serveTLS = func() error { return hs.ServeTLS(secure, "", "") }
		stop = func() {
			ctx, cancel := context.WithTimeout(context.Background(), delay+limit)
			defer context.AfterFunc(killed, cancel)()
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			if hs.Shutdown(ctx) != nil {
				hs.Close()
			}
		}
	}
	var wg sync.WaitGroup
	for _, f := range []func() error{serve, serveTLS} {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				fmt.Println(err)
			}
		})
	}
	fmt.Println("serving", plain.Addr(), secure.Addr())
	<-signals
	began := time.Now()
	go func() {
		<-signals
		second.Store(int64(time.Since(began)))
		kill()
	}()
	time.AfterFunc(delay+limit+20*time.Second, func() { panic("has not stopped") })
	fmt.Println("stopping")
	stop()
	wg.Wait()
	took := time.Since(began)
	heap, rss := peak()
	fmt.Println("stopped", took, time.Duration(second.Load()), heap, rss)
	os.Exit(0)
}

// watchMemory samples the memory in use until peak is called, which returns the
// most there was.
func watchMemory() (peak func() (heap, rss int64)) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
	}
	var mu sync.Mutex
	var most uint64
	sample := func() {
		mu.Lock()
		defer mu.Unlock()
		metrics.Read(samples)
		most = max(most, samples[0].Value.Uint64()+samples[1].Value.Uint64())
	}
	parent := os.Getppid()
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			if sample(); os.Getppid() != parent {
				os.Exit(1) // the test was killed
			}
		}
	}()
	return func() (heap, rss int64) {
		sample()
		status, _ := os.ReadFile("/proc/self/status")
		if _, after, ok := strings.Cut(string(status), "\nVmHWM:"); ok {
			fmt.Sscan(after, &rss)
		}
		return int64(most), rss << 10
	}
}
