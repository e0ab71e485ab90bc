// Command gracedemo shows a restart that nobody notices.
//
//	gracedemo
//
// Then open http://localhost:48567/ in a browser, and restart the demo in another
// terminal, with the pid from its first line, or so that you learn how it went:
//
//	kill -USR2 PID
//	gracedemo -restart
//
// The page sends a request every few milliseconds, and shows which process has answered
// it. Without a browser, on each of three ports,
//
//	curl 'http://localhost:48567/sleep/?duration=20s'
//
// is answered after that time, by the process that got the request, with its pid and
// since when it runs. /ready answers 200 while new clients are welcome, else 503, and
// /status says how things are, as gracehttp.ControlHandler does.
//
// The demo takes orders at a socket of its own, that of -control, which only its user can
// connect to: gracedemo -restart has it restarted, waits, and prints the new pid; gracedemo
// -status prints how things are. Their exit status is
//
//	0  it is done
//	1  the restart has failed, and the old process serves
//	2  nobody is there
//	3  another restart is under way, or the demo is about to stop
//	4  the outcome is not known: no answer within -timeout
//
// Each address may be HOST:PORT, :PORT, "unix:/path" or "systemd:NAME", as in
// gracehttp.Serve. Unix sockets have the mode 0600.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	_ "embed"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracehttp"
)

var (
	address0  = flag.String("a0", ":48567", "`address` of the first server")
	address1  = flag.String("a1", ":48568", "`address` of the second server")
	address2  = flag.String("a2", ":48569", "`address` of the third server")
	control   = flag.String("control", "", "`address` of the control server, or the path of a unix socket (default: a file in a directory of this user's in "+os.TempDir()+", named after the port of -a0)")
	button    = flag.Bool("button", false, "let the page have a button that restarts, for whoever can open the page")
	lameDuck  = flag.Duration("lame-duck", 0, "serve on for this long after SIGTERM, while /ready says that clients should go elsewhere")
	pidFile   = flag.String("pidfile", "", "`file` that holds the pid of the process that serves")
	store     = flag.Bool("store", false, "have systemd keep the listening sockets over a crash; 254 and later say by themselves that they can")
	supervise = flag.Bool("supervise", false, "stay as the parent of all processes to come: for a terminal, a container, or supervisord")

	restart = flag.Bool("restart", false, "restart the demo that serves, and wait for the outcome")
	status  = flag.Bool("status", false, "print how the demo that serves is, as JSON")
	timeout = flag.Duration("timeout", 90*time.Second, "how long -restart and -status wait")

	started = time.Now()
)

const usage = `gracedemo shows a restart that nobody notices. Start it, open http://localhost:48567/ in a
browser, and restart it in another terminal by "gracedemo -restart", or by "kill -USR2" and
the pid that it says. See "go doc ./gracedemo" for more.

With -restart and -status, the exit status is 0 if it is done, 1 if the restart has failed
and the old process serves, 2 if nobody is there, 3 if another restart is under way or the
demo is about to stop, and 4 if there is no answer in time.

`

//go:embed page.html
var page []byte

func main() {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	switch {
	case *restart:
		os.Exit(askToRestart())
	case *status:
		os.Exit(askForStatus())
	}
	if *supervise {
		if err := grace.Supervise(); err != nil {
			log.Fatal(err)
		}
	}
	servers := []*http.Server{
		{Addr: *address0, Handler: newHandler("Zero  ")},
		{Addr: *address1, Handler: newHandler("First ")},
		{Addr: *address2, Handler: newHandler("Second")},
	}
	addr, err := controlAddress()
	switch {
	case err == nil:
		servers = append(servers, &http.Server{Addr: addr, Handler: gracehttp.ControlHandler()})
	case !errors.Is(err, errNoControl):
		log.Printf("No control socket: %v.", err)
	}
	options := []gracehttp.Option{
		gracehttp.LameDuck(*lameDuck),
		gracehttp.PIDFile(*pidFile),
		gracehttp.UnixMode(0o600),
	}
	if *store || os.Getenv("FDSTORE") != "" { // see systemd.exec(5)
		options = append(options, gracehttp.StoreListeners())
	}
	if err := gracehttp.ServeWithOptions(servers, options...); err != nil {
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
		fmt.Fprintf(w, "%s started at %s slept for %v from pid %d.\n",
			name, started.Format(time.RFC3339), duration, os.Getpid())
	})
	mux.Handle("/ready", gracehttp.ReadyHandler())

	// What the page needs. It learns from the status whether it may restart.
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		w.Write(page)
	})
	mux.HandleFunc("GET /pid", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if *button {
			w.Header().Set("Restart", "allowed")
		}
		fmt.Fprintln(w, os.Getpid())
	})
	c := gracehttp.ControlHandler()
	mux.Handle("GET /status", c)
	if *button {
		mux.Handle("POST /restart", c)
	}
	return mux
}
