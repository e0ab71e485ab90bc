package restarttest

import (
	"context"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// GRPC returns an Ask over gRPC: is it healthy, and which pid is in the header?
func (s *Server) GRPC() (Ask, error) {
	// Retries of what a server may have seen are off.
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { conn.Close() })
	client := grpc_health_v1.NewHealthClient(conn)
	return func() (int, error) {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		var header metadata.MD
		if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
			return 0, err
		}
		return strconv.Atoi(header.Get("pid")[0])
	}, nil
}
