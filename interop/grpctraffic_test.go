package interop

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// grpcServer serves on a port of its own what register adds, until the test
// ends.
func grpcServer(t *testing.T, register func(*grpc.Server)) (*grpc.Server, string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	stopped := make(chan error, 1)
	go func() { stopped <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	return s, ln.Addr().String()
}

// draincheck's gRPC kinds are spoken by hand: the reference server has to
// understand them, and they have to understand it.
func TestTrafficGRPC(t *testing.T) {
	for _, k := range []traffic.Kind{traffic.GRPC, traffic.GRPCStream} {
		t.Run(k.Name, func(t *testing.T) {
			s, addr := grpcServer(t, func(s *grpc.Server) {
				healthpb.RegisterHealthServer(s, health.NewServer())
				reflection.Register(s)
			})
			run, err := traffic.Load{Addr: addr, Kind: k, Clients: 4, Any: true, Timeout: 5 * time.Second}.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := run.WaitSteady(20); err != nil {
				t.Fatal(err)
			}
			if _, _, refused, lost := run.Progress(); refused+lost > 0 {
				t.Errorf("%d refused and %d lost before the stop", refused, lost)
			}
			s.GracefulStop()
			<-run.Done()
			res := run.Stop()
			t.Log(res, res.Errors)
			if res.Sent != res.Answered+res.LostCount() || res.LostCount() > 4 {
				t.Errorf("the books do not balance: %v", res)
			}
		})
	}
}

// A server without the service says so, and that is what is told.
func TestTrafficGRPCUnimplemented(t *testing.T) {
	_, addr := grpcServer(t, func(*grpc.Server) {})
	for _, k := range []traffic.Kind{traffic.GRPC, traffic.GRPCStream} {
		run, err := traffic.Load{Addr: addr, Kind: k, Clients: 1, Limit: 1, Any: true}.Start(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		<-run.Done()
		if res := run.Stop(); res.Lost["grpc UNIMPLEMENTED"] != 1 {
			t.Errorf("%s: %v %v", k, res, res.Errors)
		}
	}
}
