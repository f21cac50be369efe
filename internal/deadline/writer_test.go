package deadline

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// A handler sees the optional methods that the inner writer has, and no others.
func TestWriterKinds(t *testing.T) {
	type (
		W = http.ResponseWriter
		F = http.Flusher
		H = http.Hijacker
		R = io.ReaderFrom
		P = http.Pusher
		U = unwrapper
	)
	rec := struct{ http.ResponseWriter }{httptest.NewRecorder()}
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
		outside, top := can(w), &guarded{w: w}
		if diff := cmp.Diff(outside, can(writerLike(top))); diff != "" {
			t.Errorf("%v: %s", outside, diff)
		}
		if n := testing.AllocsPerRun(10, func() { writerLike(top) }); n > 0 {
			t.Errorf("%v: %v allocations", outside, n)
		}
	}
}

func TestIsEventStream(t *testing.T) {
	for contentType, want := range map[string]bool{
		"text/event-stream":                  true,
		"Text/Event-Stream; charset=utf-8":   true,
		" text/event-stream ;":               true,
		"text/event-streams":                 false,
		"text/plain, text/event-stream":      false,
		"text/plain; type=text/event-stream": false,
		"":                                   false,
	} {
		if got := isEventStream(http.Header{"Content-Type": {contentType}}); got != want {
			t.Errorf("%q: %v", contentType, got)
		}
	}
	if isEventStream(http.Header{}) || isEventStream(http.Header{"Content-Type": nil}) {
		t.Error("no type")
	}
}

// A frame of this package is not the handler's, one of a package whose name
// begins the same is.
func TestCaller(t *testing.T) {
	if got := caller().Function; !strings.HasPrefix(got, "testing.") {
		t.Error(got)
	}
	if !strings.HasSuffix(thisPackage, "/internal/deadline.") {
		t.Error(thisPackage)
	}
}
