package interop

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-121bbccf/graceful"
)

// echoService has a call and a stream, both of strings.
var echoService = grpc.ServiceDesc{
	ServiceName: "echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Call",
		Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var m wrapperspb.StringValue
			if err := decode(&m); err != nil {
				return nil, err
			}
			return &m, nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Stream", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			for {
				var m wrapperspb.StringValue
				if err := s.RecvMsg(&m); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(&m); err != nil {
					return err
				}
			}
		},
	}},
}

func newGRPC() *grpc.Server {
	s := grpc.NewServer()
	s.RegisterService(&echoService, nil)
	return s
}

// TestGRPC: grpc-go's own server in a group. No call and no stream is lost.
func TestGRPC(t *testing.T) {
	play(t, func() server {
		s := newGRPC()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := newGroup()
		g.AddFuncs("grpc", func() error { return s.Serve(l) }, graceful.StopThenKill(s.GracefulStop, s.Stop))
		return start(t, l.Addr().String(), g)
	}, grpcClient).wantNoLoss()
}

// TestGRPCServeHTTP: gRPC as a handler of a Server. No call and no stream is lost.
func TestGRPCServeHTTP(t *testing.T) {
	play(t, func() server {
		srv := &graceful.Server{
			Server:    &http.Server{Addr: "127.0.0.1:0", Handler: newGRPC(), Protocols: new(http.Protocols)},
			IdleGrace: grace,
		}
		srv.Protocols.SetUnencryptedHTTP2(true)
		g := newGroup()
		g.Add("web", srv)
		s := start(t, "", g)
		s.addr = srv.Addrs()[0].String()
		return s
	}, grpcClient).wantNoLoss()
}

// A withContext is a stream with another context.
type withContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *withContext) Context() context.Context { return s.ctx }

// TestGRPCHealthWatch: gRPC's health service says NOT_SERVING when the shutdown
// begins. Its Watch has no end of its own and would hold the stop to its budget: an
// interceptor ends it when draining begins.
func TestGRPCHealthWatch(t *testing.T) {
	const delay = 300 * time.Millisecond
	g := newGroup()
	g.Budget, g.ShutdownDelay = time.Minute, delay
	check := health.NewServer()
	s := grpc.NewServer(grpc.StreamInterceptor(
		func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if info.FullMethod != healthpb.Health_Watch_FullMethodName {
				return next(srv, ss)
			}
			ctx, cancel := context.WithCancel(ss.Context())
			defer cancel()
			go func() {
				select {
				case <-g.Draining():
					cancel()
				case <-ctx.Done():
				}
			}()
			return next(srv, &withContext{ss, ctx})
		}))
	healthpb.RegisterHealthServer(s, check)
	g.Go("health", func(ctx context.Context) error {
		<-graceful.ShutdownBegun(ctx)
		check.Shutdown()
		return nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.AddFuncs("grpc", func() error { return s.Serve(l) }, graceful.StopThenKill(s.GracefulStop, s.Stop))
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	cc, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	watch, err := healthpb.NewHealthClient(cc).Watch(t.Context(), new(healthpb.HealthCheckRequest))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if m, err := watch.Recv(); err != nil || m.Status != want {
			t.Fatalf("Recv: %v, %v, want %v", m, err, want)
		}
	}
	expect(healthpb.HealthCheckResponse_SERVING)
	began := time.Now()
	g.Stop("test")
	expect(healthpb.HealthCheckResponse_NOT_SERVING)
	if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the stream's end: %v", err)
	}
	if took := time.Since(began); took < delay {
		t.Errorf("the stream ended after %v, during the delay", took)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

// TestGRPCStoppedEarly: a group that is stopped while its gRPC server starts has
// no error. "grpc: the server has been stopped" used to be one.
func TestGRPCStoppedEarly(t *testing.T) {
	for range 100 {
		s := newGRPC()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := newGroup()
		g.AddFuncs("grpc", func() error { return s.Serve(l) }, graceful.StopThenKill(s.GracefulStop, s.Stop))
		g.Go("done at once", func(context.Context) error { g.Stop("test"); return nil })
		if err := g.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.Close() // where it did not get to serving
	}
}

// grpcClient makes calls and streams, without gRPC's retries: those of a call
// that the server has not begun remain, for they are part of HTTP/2.
func grpcClient(l *load, n int) {
	cc, err := grpc.NewClient("passthrough:///server",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.dial() }))
	if err != nil {
		l.exchange(err)
		return
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := 0; !l.ended() && ctx.Err() == nil; i++ {
		if n%3 == 0 {
			l.exchange(stream(ctx, cc, n, i))
			continue
		}
		var reply wrapperspb.StringValue
		m := message(n, i)
		err := cc.Invoke(ctx, "/echo/Call", wrapperspb.String(m), &reply, grpc.WaitForReady(true))
		if err == nil && reply.Value != m {
			err = fmt.Errorf("reply %q", reply.Value)
		}
		l.exchange(err)
	}
}

func stream(ctx context.Context, cc *grpc.ClientConn, n, i int) error {
	s, err := cc.NewStream(ctx, &echoService.Streams[0], "/echo/Stream", grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for range 5 {
		if err := exchangeOn(s, message(n, i)); err != nil {
			return err
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		return fmt.Errorf("the stream's end: %w", err)
	}
	return nil
}

func exchangeOn(s grpc.ClientStream, m string) error {
	if err := s.SendMsg(wrapperspb.String(m)); err != nil {
		return err
	}
	var reply wrapperspb.StringValue
	if err := s.RecvMsg(&reply); err != nil {
		return err
	}
	if reply.Value != m {
		return fmt.Errorf("reply %q", reply.Value)
	}
	return nil
}
