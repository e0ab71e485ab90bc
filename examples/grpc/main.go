// A gRPC server on a listener of gracenet. In a restart, and at a stop, its clients are
// told to connect again (GOAWAY), and what they have asked is answered.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	s := grpc.NewServer(grpc.UnaryInterceptor(pidInHeader))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())

	var n gracenet.Net
	inherited, err := n.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	l := grace.NewListener(inherited.(grace.Listener))
	go func() {
		if err := s.Serve(l); err != nil {
			log.Fatal(err)
		}
	}()
	p := grace.Process{
		OnDrain:     s.GracefulStop, // since it closes the listener, there is no way back
		TermTimeout: time.Minute,
	}
	if err := p.CloseParent(); err != nil {
		log.Fatal(err)
	}
	log.Printf("serving %v with pid %d", l.Addr(), os.Getpid())
	if err := p.Wait([]grace.Listener{l}); err != nil {
		log.Fatal(err)
	}
}

// pidInHeader says who has answered.
func pidInHeader(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	grpc.SetHeader(ctx, metadata.Pairs("pid", strconv.Itoa(os.Getpid())))
	return handler(ctx, req)
}
