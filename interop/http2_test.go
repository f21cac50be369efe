// Package interop tests servers with modules that graceful does not import.
package interop

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-121bbccf/graceful"
)

// certificate returns one and a client's configuration that trusts it.
func certificate(t *testing.T) (tls.Certificate, *tls.Config) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0], s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
}

// TestConfigureServer: who brings golang.org/x/net's HTTP/2 gets that.
func TestConfigureServer(t *testing.T) {
	cert, clientTLS := certificate(t)
	inHandler, goOn := make(chan struct{}), make(chan struct{})
	user := &http.Server{
		Addr:      "127.0.0.1:0",
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(inHandler)
			<-goOn
			io.WriteString(w, r.Proto)
		}),
	}
	if err := http2.ConfigureServer(user, &http2.Server{MaxConcurrentStreams: 7}); err != nil {
		t.Fatal(err)
	}
	srv := &graceful.Server{Server: user, NoSignalHandling: true}
	if _, err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	tr := &http2.Transport{TLSClientConfig: clientTLS}
	tr.TLSClientConfig.NextProtos = []string{"h2"}
	defer tr.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		req, _ := http.NewRequest("GET", "https://"+srv.Addrs()[0].String(), nil)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- string(body)
	}()
	<-inHandler
	limit := settingOf(t, srv.Addrs()[0].String(), tr.TLSClientConfig, http2.SettingMaxConcurrentStreams)
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Shutdown(context.Background()) }()
	for srv.Phase() != graceful.PhaseDraining {
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	if got := <-answer; got != "HTTP/2.0" {
		t.Errorf("answer %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if limit != 7 {
		t.Errorf("the server allows %d streams: it is not the one that was configured", limit)
	}
	if got := srv.Report().HTTP2; !strings.Contains(got, "of its own") {
		t.Errorf("report: %q", got)
	}
}

// settingOf returns a setting that the server announces.
func settingOf(t *testing.T, addr string, cfg *tls.Config, id http2.SettingID) uint32 {
	nc, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, http2.ClientPreface)
	fr := http2.NewFramer(nc, nc)
	fr.WriteSettings()
	f, err := fr.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	v, _ := f.(*http2.SettingsFrame).Value(id)
	return v
}

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
			time.Sleep(2 * time.Millisecond)
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

// TestGRPC: calls and streams through grpc.Server.ServeHTTP, over servers that
// take turns on a port.
func TestGRPC(t *testing.T) {
	gs := grpc.NewServer()
	gs.RegisterService(&echoService, nil)
	start := func(addr string) *graceful.Server {
		user := &http.Server{Addr: addr, Handler: gs, Protocols: new(http.Protocols)}
		user.Protocols.SetUnencryptedHTTP2(true)
		srv := &graceful.Server{Server: user, NoSignalHandling: true, ReusePort: true, IdleGrace: 50 * time.Millisecond}
		if _, err := srv.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		return srv
	}
	srv := start("127.0.0.1:0")
	addr := srv.Addrs()[0].String()
	defer func() { srv.Close() }()

	done := make(chan struct{})
	var calls, streams atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		for i := range 6 {
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					var err error
					if i%3 == 0 {
						err = stream(cc)
						streams.Add(1)
					} else {
						var reply wrapperspb.StringValue
						err = cc.Invoke(context.Background(), "/echo/Call", wrapperspb.String("x"), &reply, grpc.WaitForReady(true))
						calls.Add(1)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	const stops = 10
	for range stops {
		time.Sleep(30 * time.Millisecond)
		next := start(addr)
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		srv = next
	}
	close(done)
	wg.Wait()
	t.Logf("%d calls and %d streams over %d stops", calls.Load(), streams.Load(), stops)
}

func stream(cc *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := cc.NewStream(ctx, &echoService.Streams[0], "/echo/Stream", grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for range 5 {
		if err := s.SendMsg(wrapperspb.String("y")); err != nil {
			return err
		}
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		return err
	}
	return nil
}
