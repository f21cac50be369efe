package graceful_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// A service of systemd's Type=notify. Where it is not systemd that runs it, the
// calls do nothing.
func ExampleSystemdNotify() {
	health := new(graceful.Health)
	srv := &graceful.Server{
		Server:  &http.Server{Addr: "127.0.0.1:0", Handler: http.NotFoundHandler()},
		Timeout: 20 * time.Second,
		Health:  health,
	}
	srv.ShutdownInitiated = func() {
		// In case that TimeoutStopSec is shorter than the drain may be.
		graceful.SystemdNotify("STOPPING=1", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (srv.Timeout+5*time.Second).Microseconds()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped, err := srv.Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	graceful.SystemdNotify("READY=1")
	go graceful.SystemdWatchdog(ctx, health.Alive)

	cancel() // or SIGTERM
	<-stopped
	fmt.Println(srv.Phase())
	// Output: stopped
}
