//go:build unix

// Package gracenet is a program built on facebookgo/grace, seen from outside: its function
// table names that.
package gracenet

import (
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/facebookgo/grace/internal/testserver/kit"
)

var startDir, _ = os.Getwd()

// Serve does what facebookgo/grace does: it takes sockets
// from descriptor 3 on, tells its parent by SIGTERM that it serves, and starts
// its successor with os.StartProcess, for which it does not wait.
func Serve(f *kit.Flags) error {
	inherits := os.Getenv("LISTEN_FDS") != ""
	parent := os.Getppid()
	listeners, err := f.Listeners()
	if err != nil {
		return err
	}
	var addrs []net.Addr
	for _, l := range listeners {
		addrs = append(addrs, l.Addr())
	}
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR2)
	var open kit.Counter
	for _, l := range listeners {
		if f.Mode == "http" {
			go serveHTTP(l, &open)
		} else {
			go serveEcho(l, &open)
		}
	}
	if inherits && parent != 1 {
		if err := syscall.Kill(parent, syscall.SIGTERM); err != nil {
			return err
		}
	}
	kit.Ready(addrs...)
	f.AfterReady()

	for sig := range signals {
		if sig != syscall.SIGUSR2 {
			kit.Event("got", "signal", sig)
			break
		}
		pid, err := start(listeners)
		if err != nil {
			kit.Event("failed-restart", "error", err)
			continue
		}
		kit.Event("started", "child", pid)
	}
	signal.Stop(signals)
	for _, l := range listeners {
		l.Close()
	}
	open.Wait()
	return nil
}

func start(listeners []net.Listener) (pid int, err error) {
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for _, l := range listeners {
		file, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return 0, err
		}
		defer file.Close()
		files = append(files, file)
	}
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return 0, err
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LISTEN_FDS=") {
			env = append(env, v)
		}
	}
	env = append(env, "LISTEN_FDS="+strconv.Itoa(len(listeners)))
	p, err := os.StartProcess(path, os.Args, &os.ProcAttr{Dir: startDir, Env: env, Files: files})
	if err != nil {
		return 0, err
	}
	return p.Pid, nil
}

func serveEcho(l net.Listener, open *kit.Counter) {
	for {
		open.Add(1)
		c, err := l.Accept()
		if err != nil {
			open.Done()
			return
		}
		go func() {
			defer open.Done()
			kit.Echo(c)
		}()
	}
}

// serveHTTP answers each request with the process id, one request for each
// connection.
func serveHTTP(l net.Listener, open *kit.Counter) {
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			pid := strconv.Itoa(os.Getpid())
			w.Header().Set("Pid", pid)
			w.Write([]byte(pid))
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Done()
			}
		},
	}
	srv.SetKeepAlivesEnabled(false)
	if err := srv.Serve(l); !errors.Is(err, net.ErrClosed) {
		kit.Event("accept", "error", err)
	}
}
