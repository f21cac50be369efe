package graceful

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// refuse answers a request that this process will not serve, because it is
// shutting down: 503, with the seconds after which to come again (rounded
// up; 1 if retryAfter is not positive), on a connection that is then closed,
// so that the next attempt is a new connection and can find somebody else.
// Over HTTP/2 net/http turns Connection: close into a GOAWAY.
func refuse(w http.ResponseWriter, r *http.Request, retryAfter time.Duration, reason string) {
	setRefusalHeader(w.Header(), retryAfter)
	writeError(w, r, http.StatusServiceUnavailable, reason)
}

func setRefusalHeader(h http.Header, retryAfter time.Duration) {
	h.Set("Connection", "close")
	h.Set("Retry-After", retrySeconds(retryAfter))
	h.Set("X-Content-Type-Options", "nosniff")
}

func retrySeconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}

// writeError answers r with code and a short body that says reason: one line of
// text, or JSON if r's Accept header asks for that.
func writeError(w http.ResponseWriter, r *http.Request, code int, reason string) {
	writeErrorAs(w, r.Header["Accept"], code, reason)
}

// writeErrorAs is writeError for a request with that Accept header.
func writeErrorAs(w http.ResponseWriter, accept []string, code int, reason string) {
	h := w.Header()
	// What an outer handler has said about the answer that now is not given.
	h.Del("Content-Encoding")
	h.Del("Etag")
	h.Del("Last-Modified")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	if wantsJSON(accept) {
		h.Set("Content-Type", "application/json")
		body, _ = json.Marshal(struct { // cannot fail
			Status int    `json:"status"`
			Error  string `json:"error"`
		}{code, reason})
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = []byte(reason)
	}
	body = append(body, '\n')
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	w.Write(body) // an error here is the client's loss: there is no other way to tell it
}

// wantsJSON reports whether an Accept header names JSON (application/json or a
// type ending in +json) and does not name text first.
func wantsJSON(accept []string) bool {
	for _, list := range accept {
		for media := range strings.SplitSeq(list, ",") {
			media, params, _ := strings.Cut(media, ";")
			media = strings.ToLower(strings.TrimSpace(media))
			switch {
			case zeroQuality(params):
			case media == "application/json", strings.HasSuffix(media, "+json"):
				return true
			case media == "text/plain", media == "text/html":
				return false
			}
		}
	}
	return false
}

// zeroQuality reports whether the parameters of a media range say q=0: "not
// acceptable" (RFC 9110 12.4.2).
func zeroQuality(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(k), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return err == nil && q == 0
		}
	}
	return false
}

// DefaultLongRunning reports whether r says of itself that it has no end: a
// WebSocket upgrade (over HTTP/2 an extended CONNECT, RFC 8441), a client that
// accepts text/event-stream, and anything below /debug/pprof/. InFlight goes by
// it unless it is told otherwise.
//
// All of that is the client's choice. RequestTimeout and RequestDeadline do
// not go by it.
func DefaultLongRunning(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/debug/pprof/") ||
		hasToken(r.Header["Upgrade"], "websocket") && hasToken(r.Header["Connection"], "upgrade") ||
		r.Method == http.MethodConnect && hasToken(r.Header[":protocol"], "websocket") ||
		hasToken(r.Header["Accept"], "text/event-stream")
}

// DefaultExempt reports whether r asks for one of the places that must go on
// answering whatever the rest of the server does: /healthz, /livez, /readyz
// and /metrics, and what is below them.
func DefaultExempt(r *http.Request) bool {
	for _, p := range [...]string{"/healthz", "/livez", "/readyz", "/metrics"} {
		if rest, ok := strings.CutPrefix(r.URL.Path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// hasToken reports whether one of the comma-separated lists in values has
// token, whatever its case and its parameters, unless these say q=0.
func hasToken(values []string, token string) bool {
	for _, list := range values {
		for len(list) >= len(token) {
			item, rest, _ := strings.Cut(list, ",")
			item, params, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(item), token) && !zeroQuality(params) {
				return true
			}
			list = rest
		}
	}
	return false
}
