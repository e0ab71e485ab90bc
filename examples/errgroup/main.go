// Two things that end together, by errgroup: an HTTP server and a worker. Whatever ends
// first, a signal to stop, a restart or an error of the worker's, ends the other too.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/facebookgo/grace/gracehttp"
	"golang.org/x/sync/errgroup"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	lifetime := flag.Duration("lifetime", 0, "How long the worker works until it fails.")
	flag.Parse()

	http.HandleFunc("POST /who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, os.Getpid())
	})
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer cancel() // a server that has handed over, or was stopped, returns nil
		return gracehttp.ServeContext(ctx, []*http.Server{{Addr: *addr}})
	})
	group.Go(func() error { return work(ctx, *lifetime) })
	if err := group.Wait(); err != nil {
		log.Fatal(err)
	}
}

// work works until ctx is done, or fails.
func work(ctx context.Context, lifetime time.Duration) error {
	var failure <-chan time.Time
	if lifetime > 0 {
		failure = time.After(lifetime)
	}
	select {
	case <-ctx.Done():
		log.Print("the worker has ended")
		return nil
	case <-failure:
		return fmt.Errorf("the worker has failed")
	}
}
