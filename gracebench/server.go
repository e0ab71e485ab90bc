package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace/gracehttp"
)

const readHeaderTimeout = 3 * time.Second

// serverConfig is the command line of the server under test. Every generation has the same one.
type serverConfig struct {
	dir       string // holds the control socket, the certificate and its key
	addr      string // as in http.Server
	proto     string // http, tls (HTTP/1.1 and HTTP/2), h2c, or chat
	listeners int
	plain     bool // net/http alone, to compare with
	lameDuck  time.Duration

	program string // to start; "" is this one
	version string // name of a file that says what a version does, see misbehave; "" is to serve
}

func (c serverConfig) args() []string {
	args := []string{"-serve", "-dir", c.dir, "-addr", c.addr, "-proto", c.proto, "-listeners", strconv.Itoa(c.listeners)}
	if c.plain {
		args = append(args, "-plain")
	}
	if c.lameDuck > 0 {
		args = append(args, "-lame-duck", c.lameDuck.String())
	}
	if c.version != "" {
		args = append(args, "-version", c.version)
	}
	return args
}

func (c serverConfig) controlPath() string { return filepath.Join(c.dir, "control") }
func (c serverConfig) certPath() string    { return filepath.Join(c.dir, "cert.pem") }
func (c serverConfig) keyPath() string     { return filepath.Join(c.dir, "key.pem") }

func serveMain(args []string) error {
	var c serverConfig
	flags := flag.NewFlagSet("gracebench -serve", flag.ExitOnError)
	flags.StringVar(&c.dir, "dir", "", "")
	flags.StringVar(&c.addr, "addr", "", "")
	flags.StringVar(&c.proto, "proto", "http", "")
	flags.IntVar(&c.listeners, "listeners", 1, "")
	flags.BoolVar(&c.plain, "plain", false, "")
	flags.DurationVar(&c.lameDuck, "lame-duck", 0, "")
	flags.StringVar(&c.version, "version", "", "")
	flags.Parse(args)

	conn, err := net.Dial("unix", c.controlPath())
	if err != nil {
		return err
	}
	ctl := &control{conn: conn}
	ctl.send(message{Pid: os.Getpid()})
	go ctl.answer()
	options := []gracehttp.Option{gracehttp.LameDuck(c.lameDuck)}
	if c.version != "" {
		// The kernel sends it to a group with a frozen process when the first generation ends: the group is orphaned then.
		signal.Ignore(syscall.SIGHUP)
		misbehave(c.version)
		options = append(options, gracehttp.StartTimeout(chaosStartTimeout))
	}

	err = c.serve(ctl, options)
	last := message{Usage: &usage{CPU: cpuTime()}, Last: true} // the rest takes longer, and nobody asks
	if err != nil {
		last.Error = err.Error()
	}
	ctl.send(last)
	return err
}

func (c serverConfig) serve(ctl *control, options []gracehttp.Option) (err error) {
	logger := log.New(os.Stderr, fmt.Sprintf("[%d] ", os.Getpid()), log.Ltime|log.Lmicroseconds)
	if c.proto == "chat" {
		return serveChat(c.addr, ctl, logger)
	}
	servers := make([]*http.Server, c.listeners)
	for i := range servers {
		if servers[i], err = c.server(ctl); err != nil {
			return err
		}
	}
	if c.plain {
		return servePlain(servers)
	}
	gracehttp.SetLogger(logger)
	return gracehttp.ServeWithOptions(servers, options...)
}

func (c serverConfig) server(ctl *control) (*http.Server, error) {
	s := &http.Server{
		Addr:              c.addr,
		Handler:           handler(os.Getpid()),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		// Called when the server is about to accept: the moment to tell the address.
		BaseContext: func(l net.Listener) context.Context {
			ctl.send(message{Addr: l.Addr().String()})
			return context.Background()
		},
	}
	switch c.proto {
	case "http":
	case "tls":
		cert, err := tls.LoadX509KeyPair(c.certPath(), c.keyPath())
		if err != nil {
			return nil, err
		}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	case "h2c":
		s.Protocols = new(http.Protocols)
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
	default:
		return nil, fmt.Errorf("unknown protocol %q", c.proto)
	}
	return s, nil
}

// servePlain is what a program without the library does. It ends at SIGTERM, at once.
func servePlain(servers []*http.Server) error {
	failed := make(chan error, len(servers))
	for _, s := range servers {
		l, err := net.Listen("tcp", s.Addr)
		if err != nil {
			return err
		}
		go func() { failed <- s.Serve(l) }()
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	select {
	case err := <-failed:
		return err
	case <-stop:
		return nil
	}
}

// handler sends back what it got, so that a client can tell its own answer from any other, and says which process
// answers and which connection it sees.
func handler(pid int) http.Handler {
	pidHeader := []string{strconv.Itoa(pid)}
	ready := gracehttp.ReadyHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Pid"] = pidHeader
		if r.URL.Path == readyPath {
			ready.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet {
			io.WriteString(w, hello)
			return
		}
		h["Remote-Addr"] = []string{r.RemoteAddr}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if wait, err := time.ParseDuration(r.URL.RawQuery); err == nil {
			time.Sleep(wait)
		}
		w.Write(body)
	})
}

// readyPath is where a load balancer asks.
const readyPath = "/ready"

// hello is the answer to a GET.
const hello = "hello\n"

// A message is one line from a server process to the bench.
type message struct {
	Pid   int    `json:",omitempty"` // the first message of every process
	Addr  string `json:",omitempty"` // an address on which it accepts from now on
	Usage *usage `json:",omitempty"`
	Last  bool   `json:",omitempty"` // no other message follows: it ends
	Error string `json:",omitempty"` // why it ends
}

// usage is what a server process has used.
type usage struct {
	Mallocs    uint64
	TotalAlloc uint64
	InUse      uint64 // heap and stacks; after a collection, if one was asked for
	CPU        time.Duration

	// With a collection only.
	Resident    int // bytes in memory; 0 where the system does not tell
	Goroutines  int
	Descriptors int
}

// control is a server process's connection to the bench.
type control struct {
	conn net.Conn
	mu   sync.Mutex // serializes writes
}

func (c *control) send(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.Write(append(line, '\n'))
}

// answer reports usage whenever the bench asks. When the bench is gone, so is the process: no server outlives it.
func (c *control) answer() {
	in := bufio.NewScanner(c.conn)
	for in.Scan() {
		collect := in.Text() == "collect"
		if collect {
			// Twice: the first collection only moves pooled memory to where the second one frees it.
			runtime.GC()
			debug.FreeOSMemory()
		}
		u := readUsage()
		if collect {
			u.Resident, u.Goroutines, u.Descriptors = residentMemory(), runtime.NumGoroutine(), descriptors()
		}
		c.send(message{Usage: u})
	}
	if errors.Is(in.Err(), net.ErrClosed) {
		return
	}
	os.Exit(3)
}

func readUsage() *usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return &usage{
		Mallocs:    m.Mallocs,
		TotalAlloc: m.TotalAlloc,
		InUse:      m.HeapInuse + m.StackInuse,
		CPU:        cpuTime(),
	}
}

// descriptors is how many this process has open.
func descriptors() int {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return 0
	}
	return len(open) - 1 // the folder itself was one
}
