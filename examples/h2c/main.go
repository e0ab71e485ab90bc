// gRPC through http.Server, over HTTP/2 without TLS: gracehttp drains it as any other
// handler, beside whatever else the server has.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"strconv"

	"github.com/facebookgo/grace/gracehttp"
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

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	err := gracehttp.Serve(&http.Server{Addr: *addr, Handler: s, Protocols: &protocols})
	if err != nil {
		log.Fatal(err)
	}
}

// pidInHeader says who has answered.
func pidInHeader(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	grpc.SetHeader(ctx, metadata.Pairs("pid", strconv.Itoa(os.Getpid())))
	return handler(ctx, req)
}
