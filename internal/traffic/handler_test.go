package traffic_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// The ledger: what was executed, what was executed twice, and what was executed
// for a client who never learnt of it.
func TestLedger(t *testing.T) {
	h := &traffic.Handler{}
	post := func(id, body string) int {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set(traffic.IDHeader, id)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for id, body := range map[string]string{"a": "a xx", "b": "b xx", "c": ""} {
		if code := post(id, body); code != http.StatusOK {
			t.Errorf("%s: %d", id, code)
		}
	}
	post("b", "b xx")
	if code := post("d", "a xx"); code != http.StatusBadRequest {
		t.Errorf("another request's body: %d", code)
	}
	res := &traffic.Result{Samples: []traffic.Sample{
		{ID: "a", Outcome: traffic.Lost}, {ID: "d", Outcome: traffic.Lost}, {ID: "c", Outcome: traffic.Refused},
	}}
	got := []int{h.Executed(), h.Doubled(), h.Unacknowledged(res)}
	if d := cmp.Diff([]int{3, 1, 1}, got); d != "" {
		t.Errorf("executed, doubled, unacknowledged (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"a", "d"}, res.LostIDs()); d != "" {
		t.Errorf("LostIDs (-want +got):\n%s", d)
	}
}

func TestLatency(t *testing.T) {
	res := &traffic.Result{}
	for i := range 100 {
		end := time.Duration(i) * time.Millisecond
		res.Samples = append(res.Samples, traffic.Sample{Start: end - time.Duration(i+1), End: end})
	}
	res.Samples = append(res.Samples, traffic.Sample{Start: 0, End: 50 * time.Millisecond, Outcome: traffic.Lost})
	got := res.Latency(0, time.Second, 0, 0.5, 0.99, 1)
	if d := cmp.Diff([]time.Duration{1, 51, 100, 100}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	got = res.Latency(10*time.Millisecond, 20*time.Millisecond, 0, 1)
	if d := cmp.Diff([]time.Duration{11, 20}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := res.Latency(time.Hour, 2*time.Hour, 0.5); got[0] != 0 {
		t.Errorf("of none: %v", got)
	}
}

func TestKindByName(t *testing.T) {
	for _, k := range traffic.Kinds() {
		if got, ok := traffic.KindByName(k.Name); !ok || got != k {
			t.Errorf("%s: %v, %v", k, got, ok)
		}
	}
	if _, ok := traffic.KindByName("no such"); ok {
		t.Error("there is such a kind")
	}
}
