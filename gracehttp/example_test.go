package gracehttp_test

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"sync"
	"time"

	"github.com/facebookgo/grace/gracehttp"
)

// A service that restarts with SIGUSR2, and stops with SIGTERM.
func ExampleServe() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello")
	})
	err := gracehttp.Serve(
		&http.Server{Addr: ":8080", Handler: mux},
		&http.Server{Addr: "unix:/run/hello.sock", Handler: mux},
	)
	if err != nil {
		log.Fatal(err)
	}
}

// A restart is called off if the new configuration is not valid, and long
// downloads get an hour to finish.
func ExampleServeWithOptions() {
	checkConfig := func() error { return nil }
	err := gracehttp.ServeWithOptions(
		[]*http.Server{{Addr: ":8080"}},
		gracehttp.PreStartProcess(checkConfig),
		gracehttp.DrainTimeout(time.Hour),
	)
	if err != nil {
		log.Fatal(err)
	}
}

// An endpoint that restarts the service and says how that went.
func ExampleRestart() {
	restart := func(w http.ResponseWriter, r *http.Request) {
		pid, err := gracehttp.Restart()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "pid %d has taken over\n", pid)
	}
	http.HandleFunc("POST /restart", restart)

	_, err := gracehttp.Restart()
	fmt.Println(errors.Is(err, gracehttp.ErrNotServing))
	// Output: true
}

// WebSockets are waited for; this tells their handlers that it is time to end.
func ExampleOnDrain() {
	var sockets sync.Map // *http.Request → func() that ends it
	http.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
		ended := make(chan struct{})
		sockets.Store(r, sync.OnceFunc(func() { close(ended) }))
		defer sockets.Delete(r)
		// … upgrade, then serve until the client is gone, or ended is closed.
		<-ended
	})
	option := gracehttp.OnDrain(func() {
		sockets.Range(func(_, end any) bool {
			end.(func())()
			return true
		})
	})
	if err := gracehttp.ServeWithOptions([]*http.Server{{Addr: ":8080"}}, option); err != nil {
		log.Fatal(err)
	}
}
