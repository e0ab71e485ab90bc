// Command gracedemo shows a restart that nobody notices. It serves three
// addresses; each answers /sleep/?duration=20s after that time, with the pid and
// start time of the process that got the request.
//
//	gracedemo &
//	curl 'http://localhost:48567/sleep/?duration=20s' &
//	kill -USR2 PID
//	curl 'http://localhost:48567/sleep/?duration=0s'
//
// The last request is answered by the new process, at once; the first one by
// the old process, when its time has come.
//
// With -restart it asks the running demo to restart, waits, and exits with
// status 0 and the new pid, or with 1 and the reason why there is none.
//
// With -supervise a parent stays while generations come and go, for a terminal, a
// container, or supervisord; -pidfile names a file for the pid of the one that serves.
// Behind a load balancer, which asks /ready, -lame-duck gives it time to notice a stop.
// The addresses (-a0, -a1, -a2) are as in gracehttp.Serve: "unix:/path" and
// "systemd:NAME" too.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracehttp"
)

var (
	address0  = flag.String("a0", ":48567", "Zero address to bind to.")
	address1  = flag.String("a1", ":48568", "First address to bind to.")
	address2  = flag.String("a2", ":48569", "Second address to bind to.")
	pidFile   = flag.String("pidfile", "", "File to keep the process id in.")
	restart   = flag.Bool("restart", false, "Restart the demo that serves the zero address, and wait for the outcome.")
	store     = flag.Bool("store", false, "Have systemd keep the listening sockets over a crash; 254 and later say by themselves that they can.")
	lameDuck  = flag.Duration("lame-duck", 0, "How long to serve on after SIGTERM, and to say at /ready that the end is near.")
	supervise = flag.Bool("supervise", false, "Keep this process as the parent of all that follow.")
	started   = time.Now()
)

func main() {
	flag.Parse()
	if *restart {
		os.Exit(askToRestart(*address0))
	}
	if *supervise {
		if err := grace.Supervise(); err != nil {
			log.Fatal(err)
		}
	}
	options := []gracehttp.Option{gracehttp.PIDFile(*pidFile), gracehttp.LameDuck(*lameDuck)}
	if *store || os.Getenv("FDSTORE") != "" { // see systemd.exec(5)
		options = append(options, gracehttp.StoreListeners())
	}
	err := gracehttp.ServeWithOptions(
		[]*http.Server{
			{Addr: *address0, Handler: newHandler("Zero  ")},
			{Addr: *address1, Handler: newHandler("First ")},
			{Addr: *address2, Handler: newHandler("Second")},
		},
		options...,
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
	mux.HandleFunc("POST /restart", serveRestart)
	mux.Handle("/ready", gracehttp.ReadyHandler())
	return mux
}

// serveRestart restarts for a caller on this machine, and says how it went.
func serveRestart(w http.ResponseWriter, r *http.Request) {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && !net.ParseIP(host).IsLoopback() {
		http.Error(w, "only from this machine", http.StatusForbidden)
		return
	}
	pid, err := gracehttp.Restart()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, pid)
}

// askToRestart asks the demo at an address to restart, and returns the exit
// status.
func askToRestart(address string) int {
	network, addr := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, addr = "unix", path
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}}
	resp, err := client.Post("http://gracedemo/restart", "", nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		return 1
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		return 1
	}
	if resp.StatusCode != http.StatusOK {
		fmt.Fprintf(os.Stderr, "restart: %s", answer)
		return 1
	}
	fmt.Print(string(answer))
	return 0
}
