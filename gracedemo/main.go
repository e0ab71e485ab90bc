// Command gracedemo shows a restart that nobody notices. It serves three
// addresses; each answers /sleep/?duration=20s after that time, with the pid and
// start time of the process that got the request.
//
//	gracedemo &
//	curl 'http://localhost:48567/sleep/?duration=20s' &
//	kill -USR2 PID
//	curl 'http://localhost:48567/sleep/?duration=0s'
//
// The last request is answered by the new process, at once, the first one by
// the old process when its time has come.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/facebookgo/grace/gracehttp"
)

var (
	address0 = flag.String("a0", ":48567", "Zero address to bind to.")
	address1 = flag.String("a1", ":48568", "First address to bind to.")
	address2 = flag.String("a2", ":48569", "Second address to bind to.")
	started  = time.Now()
)

func main() {
	flag.Parse()
	err := gracehttp.Serve(
		&http.Server{Addr: *address0, Handler: newHandler("Zero  ")},
		&http.Server{Addr: *address1, Handler: newHandler("First ")},
		&http.Server{Addr: *address2, Handler: newHandler("Second")},
	)
	if err != nil {
		log.Fatal(err)
	}
}

func newHandler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/sleep/", func(w http.ResponseWriter, r *http.Request) {
		duration, err := time.ParseDuration(r.FormValue("duration"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(duration)
		fmt.Fprintf(w, "%s started at %s slept for %d nanoseconds from pid %d.\n",
			name, started, duration.Nanoseconds(), os.Getpid())
	})
	return mux
}
