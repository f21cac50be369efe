package graceful_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// A database without which nothing works, and a search without which most does.
func ExampleHealth_Add() {
	var health graceful.Health
	health.AddCheck("database", func(context.Context) error { return nil })
	health.Add(graceful.HealthCheck{
		Name:     "search",
		Check:    func(context.Context) error { return errors.New("no route to host") },
		WarnOnly: true,
		Timeout:  300 * time.Millisecond,
		MaxAge:   5 * time.Second,
	})
	w := httptest.NewRecorder()
	health.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz?verbose", nil))
	fmt.Print(w.Code, "\n", w.Body)
	// Output:
	// 200
	// [+]startup ok
	// [+]shutdown ok
	// [+]database ok
	// [!]search warning: reason withheld
	// ok
}
