//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// serveHTTP serves with gracehttp, one server for each address.
func serveHTTP(f *kit.Flags) error {
	var servers []*http.Server
	addrs := make([]net.Addr, len(f.Listen))
	// When the server says so, the predecessor knows, and signals are looked after.
	gracehttp.SetLogger(log.New(&servingLog{serving: func() {
		kit.Ready(addrs...)
		f.AfterReady()
		if f.Later("close-ready") {
			servers[0].Close()
		}
	}}, "", log.LstdFlags))
	for i, address := range f.Listen {
		var first sync.Once
		srv := &http.Server{
			Addr:              address,
			Handler:           newMux(),
			ReadTimeout:       f.ReadTimeout,
			ReadHeaderTimeout: f.ReadHeaderTimeout,
			WriteTimeout:      f.WriteTimeout,
			IdleTimeout:       f.IdleTimeout,
			BaseContext: func(l net.Listener) context.Context {
				first.Do(func() { addrs[i] = l.Addr() })
				return context.Background()
			},
		}
		if !*noHooks {
			srv.RegisterOnShutdown(func() { kit.Event("shutdown-hook") })
		}
		if f.Cert != "" {
			cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				return err
			}
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
		}
		if f.H2C {
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
		}
		if f.Faulty("unservable") {
			srv.Close()
		}
		servers = append(servers, srv)
	}

	options := []gracehttp.Option{
		gracehttp.OnReady(func() { f.Hook("onready") }),
		gracehttp.PreStartProcess(preStart(f)),
	}
	if !*noHooks {
		options = append(options, gracehttp.OnDrain(func() {
			kit.Event("drain-hook")
			f.Hook("ondrain")
		}))
	}
	for _, srv := range servers {
		if *wrap != "" {
			l, err := wrapped(srv)
			if err != nil {
				return err
			}
			options = append(options, gracehttp.Listener(srv, l))
		}
	}
	if f.Faulty("short-drain") {
		options = append(options, gracehttp.DrainTimeout(2*time.Second))
	} else if f.TermTimeout > 0 {
		options = append(options, gracehttp.DrainTimeout(f.TermTimeout))
	}
	if f.StartTimeout > 0 {
		options = append(options, gracehttp.StartTimeout(f.StartTimeout))
	}
	if f.IdleGrace >= 0 {
		options = append(options, gracehttp.IdleGrace(f.IdleGrace))
	}
	managed, finish, err := managedOptions(f)
	if err != nil {
		return err
	}
	defer finish()
	err = gracehttp.ServeWithOptions(servers, append(options, managed...)...)
	awaitCleanUp(f)
	return err
}

// wrapped opens the listener of a server, and wraps it.
func wrapped(srv *http.Server) (net.Listener, error) {
	l, err := new(gracenet.Net).Listen("tcp", srv.Addr)
	if err != nil {
		return nil, err
	}
	switch *wrap {
	case "proxy":
		return kit.ProxyListener{Listener: l}, nil
	case "limit":
		return kit.LimitListener(l, 100), nil
	case "tls":
		config := srv.TLSConfig
		srv.TLSConfig = nil
		config.NextProtos = []string{"h2", "http/1.1"}
		return tls.NewListener(l, config), nil
	}
	return nil, fmt.Errorf("no wrapper %q", *wrap)
}

// A servingLog is the standard error, and notices the line that says that the process
// serves.
type servingLog struct {
	once    sync.Once
	serving func()
}

func (l *servingLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(" Serving ")) {
		l.once.Do(l.serving) // first: the standard error may block
	}
	return os.Stderr.Write(line)
}

// newMux returns the handlers. Each answer names the process in the header Pid.
func newMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/pid", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, os.Getpid())
	})
	// How many there are, and where.
	mux.HandleFunc("/goroutines", func(w http.ResponseWriter, r *http.Request) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		fmt.Fprintf(w, "%d\n%s", bytes.Count(stacks, []byte("\n\ngoroutine "))+1, stacks)
	})
	// The answer comes after the duration.
	mux.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("duration"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		kit.Event("sleeping")
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
		fmt.Fprint(w, os.Getpid())
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	// The answer's head and first byte come at once, then the rest, a byte each
	// tenth of the duration.
	mux.HandleFunc("/slowbody", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("duration"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n := 11
		w.Header().Set("Content-Length", strconv.Itoa(n))
		for i := range n {
			if i > 0 {
				time.Sleep(d / time.Duration(n-1))
			}
			fmt.Fprint(w, i%10)
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/ran", answerToken)
	mux.HandleFunc("/file", serveFile)
	mux.HandleFunc("/whole", echoWhole)
	// The same after the duration.
	mux.HandleFunc("/takes", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("duration"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(d)
		echoWhole(w, r)
	})
	mux.Handle("/ready", gracehttp.ReadyHandler())
	// An echo of lines, see kit.Echo.
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\nPid: %d\r\n\r\n", os.Getpid())
		buffered.Flush()
		kit.Echo(c)
	})
	// Waits for the drain, and moves to the successor.
	mux.HandleFunc("/move", func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n")
		buffered.Flush()
		<-toMove
		if err := gracehttp.Move(c, nil); err != nil {
			kit.Event("not-moved", "error", err)
			c.Close()
		}
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Join(os.Environ(), "\n"))
	})
	// What a process finds that the handler starts, a kit.Child.
	mux.HandleFunc("/fds", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(kit.ReportChild())
	})
	// What Restart returns: the successor's process id, or the error.
	mux.HandleFunc("/restart", func(w http.ResponseWriter, r *http.Request) {
		pid, err := gracehttp.Restart()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, pid)
	})
	mux.Handle("/control/", http.StripPrefix("/control", gracehttp.ControlHandler()))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
		mux.ServeHTTP(w, r)
	})
}
