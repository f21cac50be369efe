package graceful_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-121bbccf/graceful"
)

// can lists what a ResponseWriter offers.
func can(w http.ResponseWriter) (names []string) {
	add := func(name string, ok bool) {
		if ok {
			names = append(names, name)
		}
	}
	_, ok := w.(http.Flusher)
	add("Flusher", ok)
	_, ok = w.(http.Hijacker)
	add("Hijacker", ok)
	_, ok = w.(io.ReaderFrom)
	add("ReaderFrom", ok)
	_, ok = w.(http.Pusher)
	add("Pusher", ok)
	_, ok = w.(interface{ Unwrap() http.ResponseWriter })
	add("Unwrap", ok)
	return names
}

type unwrapper struct{ w http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.w }

func TestRequestTimeoutInterfaces(t *testing.T) {
	type (
		W = http.ResponseWriter
		F = http.Flusher
		H = http.Hijacker
		R = io.ReaderFrom
		P = http.Pusher
		U = unwrapper
	)
	rec := plainWriter{httptest.NewRecorder()}
	for _, w := range []http.ResponseWriter{
		struct{ W }{W: rec}, struct {
			W
			F
		}{W: rec}, struct {
			W
			H
		}{W: rec}, struct {
			W
			F
			H
		}{W: rec},
		struct {
			W
			R
		}{W: rec}, struct {
			W
			F
			R
		}{W: rec}, struct {
			W
			H
			R
		}{W: rec}, struct {
			W
			F
			H
			R
		}{W: rec},
		struct {
			W
			P
		}{W: rec}, struct {
			W
			F
			P
		}{W: rec}, struct {
			W
			H
			P
		}{W: rec}, struct {
			W
			F
			H
			P
		}{W: rec},
		struct {
			W
			R
			P
		}{W: rec}, struct {
			W
			F
			R
			P
		}{W: rec}, struct {
			W
			H
			R
			P
		}{W: rec}, struct {
			W
			F
			H
			R
			P
		}{W: rec},
		struct {
			W
			U
		}{W: rec}, struct {
			W
			F
			U
		}{W: rec}, struct {
			W
			H
			U
		}{W: rec}, struct {
			W
			F
			H
			U
		}{W: rec},
		struct {
			W
			R
			U
		}{W: rec}, struct {
			W
			F
			R
			U
		}{W: rec}, struct {
			W
			H
			R
			U
		}{W: rec}, struct {
			W
			F
			H
			R
			U
		}{W: rec},
		struct {
			W
			P
			U
		}{W: rec}, struct {
			W
			F
			P
			U
		}{W: rec}, struct {
			W
			H
			P
			U
		}{W: rec}, struct {
			W
			F
			H
			P
			U
		}{W: rec},
		struct {
			W
			R
			P
			U
		}{W: rec}, struct {
			W
			F
			R
			P
			U
		}{W: rec}, struct {
			W
			H
			R
			P
			U
		}{W: rec}, struct {
			W
			F
			H
			R
			P
			U
		}{W: rec},
	} {
		outside := can(w)
		h := new(graceful.RequestTimeout).Handler(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if diff := cmp.Diff(outside, can(w)); diff != "" {
				t.Errorf("%v: %s", outside, diff)
			}
		}))
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	}
}

func TestRequestTimeoutServerInterfaces(t *testing.T) {
	bothProtocols(t, func(b *bench) {
		var outside []string
		h := within(func(w http.ResponseWriter, r *http.Request) {
			if diff := cmp.Diff(outside, can(w)); diff != "" {
				b.Error(diff)
			}
			rc := http.NewResponseController(w)
			for name, err := range map[string]error{
				"SetReadDeadline":  rc.SetReadDeadline(time.Now().Add(time.Hour)),
				"SetWriteDeadline": rc.SetWriteDeadline(time.Now().Add(time.Hour)),
				"EnableFullDuplex": rc.EnableFullDuplex(),
				"Flush":            rc.Flush(),
			} {
				if err != nil {
					b.Errorf("%s: %v", name, err)
				}
			}
		})
		b.serve(handlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outside = can(w)
			h.ServeHTTP(w, r)
		}))
		b.body(b.get("/"))
	})
}

// plainWriter has what an http.ResponseWriter must have, and no more.
type plainWriter struct{ http.ResponseWriter }

func TestRequestTimeoutNotSupported(t *testing.T) {
	rec := httptest.NewRecorder()
	within(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_, _, hijack := rc.Hijack()
		for name, err := range map[string]error{
			"SetReadDeadline":  rc.SetReadDeadline(time.Now()),
			"SetWriteDeadline": rc.SetWriteDeadline(time.Now()),
			"EnableFullDuplex": rc.EnableFullDuplex(),
			"Flush":            rc.Flush(),
			"Hijack":           hijack,
		} {
			if err == nil || !strings.Contains(err.Error(), http.ErrNotSupported.Error()) {
				t.Errorf("%s: %v", name, err)
			}
		}
		w.Header().Set("Still", "open") // Flush has fixed nothing
	}).ServeHTTP(plainWriter{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Header().Get("Still") == "" {
		t.Error("a Flush that is not supported has fixed the header")
	}
}
