// Actors that end together, by oklog/run: an HTTP server and a worker. The same with
// go.uber.org/fx: call ServeContext in a goroutine that OnStart starts, and end its
// context in OnStop.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/oklog/run"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	http.HandleFunc("POST /who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, os.Getpid())
	})
	var group run.Group
	serving, stop := context.WithCancel(context.Background())
	group.Add(func() error {
		return gracehttp.ServeContext(serving, []*http.Server{{Addr: *addr}})
	}, func(error) { stop() })
	done := make(chan struct{})
	group.Add(func() error {
		<-done // work
		log.Print("the worker has ended")
		return nil
	}, func(error) { close(done) })
	if err := group.Run(); err != nil {
		log.Fatal(err)
	}
}
