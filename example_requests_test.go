package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// The usual order, under a plain http.Server: probes outside, then counting,
// then the deadline, and everything else within it.
func Example_middleware() {
	var health graceful.Health
	var inFlight graceful.InFlight
	timeout := graceful.RequestTimeout{
		Max:       30 * time.Second,
		Parameter: "timeout",
		InFlight:  &inFlight,
	}

	app := http.NewServeMux()
	app.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello\n")
	})

	root := http.NewServeMux()
	root.Handle("GET /readyz", health.ReadyHandler())
	root.Handle("GET /livez", health.LiveHandler())
	root.Handle("/", health.Handler(inFlight.Handler(timeout.Handler(app))))

	srv := httptest.NewServer(root)
	defer srv.Close()
	srv.Config.RegisterOnShutdown(health.Shutdown)
	for _, path := range []string{"/readyz", "/hello", "/hello?timeout=2s", "/hello?timeout=2"} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			log.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%s: %d %s", path, resp.StatusCode, body)
	}
	// Output:
	// /readyz: 200 ok
	// /hello: 200 hello
	// /hello?timeout=2s: 200 hello
	// /hello?timeout=2: 400 the query parameter timeout must be a duration with its unit, like 1.5s or 300ms
}

// Work that is no request can be counted, too.
func ExampleInFlight() {
	var f graceful.InFlight
	job := func() error {
		if err := f.Add(1); err != nil {
			return err
		}
		go func() {
			defer f.Done()
			// send a mail
		}()
		return nil
	}

	fmt.Println(job())
	f.Wait() // for the mail
	fmt.Println(job())
	// Output:
	// <nil>
	// graceful: draining, nothing new is admitted
}

// A handler that ignores its context gets no say in the matter.
func ExampleRequestTimeout() {
	done := make(chan struct{})
	t := graceful.RequestTimeout{Max: 10 * time.Millisecond}
	h := t.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-done
		_, err := io.WriteString(w, "too late")
		fmt.Println(err)
		done <- struct{}{}
	}))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Print(w.Code, " ", w.Body)
	done <- struct{}{}
	<-done
	// Output:
	// 504 the server did not answer in time
	// http: Handler timeout
}

// With RequestDeadline the handler answers for itself.
func ExampleRequestDeadline() {
	query := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }

	d := graceful.RequestDeadline{Max: 10 * time.Millisecond, Grace: time.Second}
	h := d.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := query(r.Context()); errors.Is(err, graceful.ErrRequestTimeout) {
			http.Error(w, "the database is slow today", http.StatusGatewayTimeout)
		}
	}))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Print(w.Code, " ", w.Body)
	// Output: 504 the database is slow today
}

func ExampleHealth() {
	health := graceful.Health{WaitForReady: true}
	health.AddCheck("database", func(ctx context.Context) error {
		return errors.New("no route to 10.0.0.7") // not for everybody's eyes
	})
	probe := func(query string) {
		w := httptest.NewRecorder()
		health.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz"+query, nil))
		fmt.Println(w.Code, strings.ReplaceAll(strings.TrimSpace(w.Body.String()), "\n", "; "))
	}

	probe("?exclude=database")
	health.SetReady(true)
	probe("")
	probe("?exclude=database&verbose")
	// Output:
	// 503 [-]startup failed: the application is not ready; [+]shutdown ok; [+]database excluded; failed
	// 503 [+]startup ok; [+]shutdown ok; [-]database failed: reason withheld; failed
	// 200 [+]startup ok; [+]shutdown ok; [+]database excluded; ok
}
