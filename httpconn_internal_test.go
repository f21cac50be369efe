package graceful

import (
	"net/http"
	"sync"
	"testing"
)

// TestRequestsWhileServing: what a report reads of the request in the handler
// is that request's, however quickly one follows another.
func TestRequestsWhileServing(t *testing.T) {
	const times = 20_000
	h := &httpConn{c: &conn{m: newManager(drainRules{})}}
	var wg sync.WaitGroup
	wg.Go(func() {
		ring := []*http.Request{
			{Method: "GET", RequestURI: "GET"}, {Method: "DELETE", RequestURI: "DELETE"}, {Method: "QUERY", RequestURI: "QUERY"},
		}
		for i := range times {
			h.enter(ring[i%len(ring)])
			h.leave()
		}
	})
	for range 3 {
		wg.Go(func() {
			for range times {
				for _, line := range h.requests() {
					if line.method != line.target {
						t.Errorf("half of one request and half of another: %v", line)
					}
				}
			}
		})
	}
	wg.Wait()
	h.enter(&http.Request{Method: "GET", RequestURI: "/last"})
	if got := h.requests(); len(got) != 1 || got[0] != (requestLine{method: "GET", target: "/last"}) {
		t.Errorf("in the handler: %v", got)
	}
	h.leave()
	if got := h.requests(); len(got) != 0 {
		t.Errorf("after it: %v", got)
	}
}
