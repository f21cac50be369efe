package graceful

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeMember is a GroupMember that writes down what it is asked, and when.
type fakeMember struct {
	name  string
	log   *memberLog
	bind  error
	takes time.Duration
	ready bool
	quit  chan struct{}
}

type memberLog struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func (l *memberLog) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%g ", time.Since(l.start).Seconds())+fmt.Sprintf(format, args...))
}

func (m *fakeMember) note(what string) { m.log.note("%s %s", m.name, what) }
func (m *fakeMember) joinGroup()       { m.quit = make(chan struct{}); m.note("joins") }
func (m *fakeMember) beginDelay()      { m.note("delays") }

func (m *fakeMember) unready(context.Context) string {
	if m.ready {
		return ""
	}
	return "db, startup"
}

func (m *fakeMember) startInGroup() (func() error, error) {
	m.note("starts")
	return func() error { <-m.quit; return nil }, m.bind
}

func (m *fakeMember) Shutdown(ctx context.Context) error {
	d, ok := ctx.Deadline()
	m.note(fmt.Sprintf("drains %v %v", ok, time.Until(d)))
	time.Sleep(m.takes)
	close(m.quit)
	return nil
}

func (m *fakeMember) groupSummary() string { return "as " + m.name }

// TestGroupMember: a member is told of the shutdown at its first moment, before
// the delay, and gets what is left of the one budget.
func TestGroupMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memberLog{start: time.Now()}
		lines := &memberLog{start: log.start} // the group's log, which no member waits for
		a := &fakeMember{name: "a", log: log, takes: 1500 * time.Millisecond, ready: true}
		b := &fakeMember{name: "b", log: log}
		g := &Group{Budget: 10 * time.Second, ShutdownDelay: 3300 * time.Millisecond, NoSignalHandling: true, LogFunc: lines.note}
		g.Add("a", a)
		stop := make(chan struct{})
		g.Add("b", b, func() error { log.note("b's own serve"); <-stop; return nil })
		g.Defer("db", func(context.Context) error { time.Sleep(500 * time.Millisecond); return errors.New("dirty") })
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := g.unready(t.Context()); got != "not ready: b (db, startup)" || g.Ready() {
			t.Errorf("unready: %q", got)
		}
		b.ready = true
		if !g.Ready() {
			t.Error("not ready")
		}
		time.Sleep(time.Second)
		g.Shutdown(t.Context())
		// Both drain at the same moment, in any order.
		slices.Sort(log.lines[min(6, len(log.lines)):])
		want := []string{
			"0 a joins",
			"0 b joins",
			"0 a starts",
			"0 b's own serve",
			"1 a delays",
			"1 b delays",
			"4.3 a drains true 5.45s",
			"4.3 b drains true 5.45s",
		}
		wantLines := []string{
			"1 graceful: shutdown initiated: Shutdown was called",
			"1 graceful: unready, still serving; draining begins in 3.3s",
			"4.3 graceful: draining 2 servers, 5.7s left",
			"5.3 graceful: waiting for a, b, 4.7s left",
			"6.3 graceful: waiting for b, 3.7s left",
			"7.3 graceful: waiting for b, 2.7s left",
			"8.3 graceful: waiting for b, 1.7s left",
			"9.3 graceful: waiting for b, 700ms left",
			"10 graceful: left behind: server b: as b",
			"10.5 graceful: stopped after 9.5s: 1 done, 1 failed, 1 left behind (b)",
		}
		if diff := cmp.Diff(wantLines, lines.lines); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, log.lines); diff != "" {
			t.Error(diff)
		}
		_, table, _ := strings.Cut(g.Report().String(), "\n")
		wantTable := `
KIND     NAME  TOOK   OUTCOME      NOTE
server   a     1.5s   done         as a
server   b     5.7s   left behind  graceful: still running when its time was up (as b)
cleanup  db    500ms  failed       dirty
`
		if diff := cmp.Diff(wantTable[1:], table); diff != "" {
			t.Error(diff)
		}
		close(stop)
	})
}

// TestGroupMemberDoesNotStart: the ones before it are shut down, those after it
// and the workers are not started, cleanup runs, and Start has the error.
func TestGroupMemberDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memberLog{start: time.Now()}
		inUse := errors.New("address in use")
		g := &Group{ShutdownDelay: time.Second, NoSignalHandling: true}
		g.Add("a", &fakeMember{name: "a", log: log, takes: time.Second})
		g.Add("b", &fakeMember{name: "b", log: log, bind: inUse})
		g.Add("c", &fakeMember{name: "c", log: log})
		g.Go("mail", func(context.Context) error { panic("ran") })
		g.Defer("db", func(context.Context) error { log.note("db"); return nil })
		stopped, err := g.Start(t.Context())
		if stopped != nil || !errors.Is(err, inUse) || err.Error() != "b: address in use" {
			t.Errorf("Start: %v", err)
		}
		want := []string{
			"0 a joins", "0 b joins", "0 c joins", "0 a starts", "0 b starts",
			"0 a delays",
			"1 a drains false -2562047h47m16.854775808s", "2 db",
		}
		if diff := cmp.Diff(want, log.lines); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Second)
		var entries []string
		for _, e := range g.Report().Entries {
			entries = append(entries, fmt.Sprintf("%s %s %s", e.Name, e.Outcome, e.Took))
		}
		want = []string{"a done 1s", "b failed 0s", "c not started 0s", "mail not started 0s", "db done 0s"}
		if diff := cmp.Diff(want, entries); diff != "" {
			t.Error(diff)
		}
	})
}
