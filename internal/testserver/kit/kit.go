//go:build unix

// Package kit is what the two programs that tests start have in common: their
// flags, the lines by which a test follows them, and what they serve. It stands
// apart from the library, since one of the two must not be built on it.
package kit

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Flags is the command line of both programs, so that one can take the other's
// place.
type Flags struct {
	Mode   string
	Listen List
	Faults string
	Play   string // only the stranger looks at it
	later  string // the fault to play once ready

	TermTimeout  time.Duration
	StartTimeout time.Duration
	LogPrefix    string
	EarlyChild   bool
	Tamper       string

	// Of the HTTP server.
	Cert, Key         string
	H2C               bool
	IdleGrace         time.Duration
	ReadTimeout       time.Duration
	ReadHeaderTimeout time.Duration
	WriteTimeout      time.Duration
	IdleTimeout       time.Duration
}

// Parse reads the command line.
func Parse() *Flags {
	f := &Flags{}
	flag.StringVar(&f.Mode, "mode", "grace", "What to be: grace, plain, bare, inherit, ownloop, netloop, net, udp or http.")
	flag.Var(&f.Listen, "listen", "Address to listen on, HOST:PORT or unix:PATH; may be repeated.")
	flag.StringVar(&f.Faults, "faults", "", "Directory in which a file's name is a fault to play.")
	flag.StringVar(&f.Play, "play", "", "What the stranger plays.")
	flag.DurationVar(&f.TermTimeout, "term-timeout", 0, "How long open connections are waited for.")
	flag.DurationVar(&f.StartTimeout, "start-timeout", 0, "How long a successor may take.")
	flag.StringVar(&f.LogPrefix, "log-prefix", "", "Prefix of the lines of a logger of its own.")
	flag.BoolVar(&f.EarlyChild, "early-child", false, "Start a child process before anything else.")
	flag.StringVar(&f.Tamper, "tamper", "", "Change the process's arguments, \"drop\" or \"add\" one, and the environment.")
	flag.StringVar(&f.Cert, "cert", "", "Certificate file; serves TLS.")
	flag.StringVar(&f.Key, "key", "", "Key file of the certificate.")
	flag.BoolVar(&f.H2C, "h2c", false, "Serve HTTP/2 without TLS too.")
	flag.DurationVar(&f.IdleGrace, "idle-grace", -1, "How long idle connections stay open in a drain.")
	flag.DurationVar(&f.ReadTimeout, "read-timeout", 0, "As in net/http.")
	flag.DurationVar(&f.ReadHeaderTimeout, "read-header-timeout", 0, "As in net/http.")
	flag.DurationVar(&f.WriteTimeout, "write-timeout", 0, "As in net/http.")
	flag.DurationVar(&f.IdleTimeout, "idle-timeout", 0, "As in net/http.")
	flag.Parse()
	if f.EarlyChild {
		Event("early-child", "found", ReportChild())
	}
	f.tamper()
	return f
}

// tamper does what programs do to their arguments and environment.
func (f *Flags) tamper() {
	switch f.Tamper {
	case "drop": // as those do that have subcommands
		os.Args = os.Args[1:]
	case "add":
		os.Args = append(os.Args, "-log-prefix=")
	default:
		return
	}
	os.Unsetenv("SECRET")
	os.Unsetenv("PATH")
	os.Setenv("LATER", "1")
}

// A List is a flag that may be repeated.
type List []string

func (l *List) String() string     { return strings.Join(*l, " ") }
func (l *List) Set(s string) error { *l = append(*l, s); return nil }

// Open opens an address of the flag -listen.
func Open(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}

// Listeners returns the inherited ones, from descriptor 3 on, or opens those of the flag
// -listen.
func (f *Flags) Listeners() (listeners []net.Listener, err error) {
	if count := os.Getenv("LISTEN_FDS"); count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return nil, err
		}
		for fd := 3; fd < 3+n; fd++ {
			file := os.NewFile(uintptr(fd), "listener")
			l, err := net.FileListener(file)
			file.Close()
			if err != nil {
				return nil, err
			}
			listeners = append(listeners, l)
		}
		return listeners, nil
	}
	for _, address := range f.Listen {
		l, err := Open(address)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// Faulty reports whether this fault is to be played now.
func (f *Flags) Faulty(fault string) bool {
	if f.Faults == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(f.Faults, fault))
	return err == nil
}

// BeforeReady plays the faults of a process that never gets ready.
func (f *Flags) BeforeReady() {
	// What it will play later is decided now: then faults are its successor's.
	for _, fault := range []string{"kill-ready", "exit-ready", "end-ready", "panic-ready", "stop-ready", "close-ready"} {
		if f.Faulty(fault) {
			f.later = fault
		}
	}
	switch {
	case f.Faulty("exit"):
		os.Exit(2)
	case f.Faulty("end"):
		os.Exit(0)
	case f.Faulty("panic"):
		panic("played")
	case f.Faulty("stop"):
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case f.Faulty("kill"):
		Die()
	case f.Faulty("hang"):
		Event("hanging")
		select {}
	case f.Faulty("slow"): // until the file is removed
		Event("waiting")
		for f.Faulty("slow") {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// Hook plays what is wrong with a hook of this name, and says so.
func (f *Flags) Hook(name string) {
	for fault, play := range map[string]func(){
		"-panic":  func() { panic("played") },
		"-goexit": runtime.Goexit,
		"-hang":   func() { select {} },
	} {
		if f.Faulty(name + fault) {
			Event("plays", "fault", name+fault)
			play()
		}
	}
}

// Later reports whether this fault is to be played once ready.
func (f *Flags) Later(fault string) bool { return f.later == fault }

// AfterReady plays the faults of a process that dies young.
func (f *Flags) AfterReady() {
	switch f.later {
	case "kill-ready":
		Die()
	case "exit-ready":
		os.Exit(2)
	case "end-ready":
		os.Exit(0)
	case "panic-ready":
		go func() { panic("played") }() // not in a hook, which survives that
		select {}
	case "stop-ready":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

// Die is a crash.
func Die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Event tells the test what happens, on one line: the event, the process, and
// pairs of a key and its value.
func Event(name string, pairs ...any) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s pid=%d", name, os.Getpid())
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, " %v=%v", pairs[i], pairs[i+1])
	}
	fmt.Println(b.String())
}

// Ready tells the test that the process serves, and where.
func Ready(addrs ...net.Addr) {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	Event("ready", "addrs", strings.Join(all, ","))
}

// Lifeline ends the process when the test is gone: it holds the other end of
// the standard input.
func Lifeline() {
	if info, err := os.Stdin.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
}

// A Counter counts what is open. Unlike a sync.WaitGroup it may go up while
// somebody waits.
type Counter struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // closed when n is 0; nil if nobody waits
}

// Add counts n more, or less.
func (c *Counter) Add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	if c.n == 0 && c.zero != nil {
		close(c.zero)
		c.zero = nil
	}
}

// Done counts one less.
func (c *Counter) Done() { c.Add(-1) }

// Wait waits until nothing is open.
func (c *Counter) Wait() {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	zero := c.zero
	c.mu.Unlock()
	<-zero
}

// Echo answers each line with the process id and the line, until the client is
// done. The line "child" is answered with a Child in JSON. After the line
// "splice" all is sent back as it comes; after "sendfile PATH" the file is sent,
// and the connection closed.
func Echo(c net.Conn) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		line := lines.Text()
		answer := line
		if line == "child" {
			answer = ReportChild().String()
		}
		if _, err := fmt.Fprintf(c, "%d %s\n", os.Getpid(), answer); err != nil {
			return
		}
		if line == "splice" {
			io.Copy(c, c)
			return
		}
		if path, ok := strings.CutPrefix(line, "sendfile "); ok {
			if f, err := os.Open(path); err == nil {
				io.Copy(c, f)
				f.Close()
			}
			return
		}
	}
}

// A Child is what a process finds that the server starts.
type Child struct {
	Env []string
	FDs []string // as in "3 -> socket:[4711]"
	Err string
}

// String is its JSON.
func (c Child) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// ReportChild starts a process and returns what it finds.
func ReportChild() Child {
	out, err := exec.Command("/bin/sh", "-c", "env; echo --; ls -l /proc/$$/fd").Output()
	if err != nil {
		return Child{Err: err.Error()}
	}
	env, fds, _ := strings.Cut(string(out), "--\n")
	c := Child{Env: strings.Split(strings.TrimSpace(env), "\n")}
	for _, line := range strings.Split(fds, "\n") {
		left, target, ok := strings.Cut(line, " -> ")
		if !ok {
			continue
		}
		words := strings.Fields(left)
		c.FDs = append(c.FDs, words[len(words)-1]+" -> "+target)
	}
	return c
}
