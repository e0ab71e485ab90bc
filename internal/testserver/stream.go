//go:build unix

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// A process is a grace.Process, or what the package's functions make of one.
type process interface {
	Inherit() ([]grace.Listener, error)
	Restart([]grace.Listener) error
	Wait([]grace.Listener) error
	CloseParent() error
}

// std is the package's functions.
type std struct{}

func (std) Inherit() ([]grace.Listener, error) { return grace.Inherit() }
func (std) Restart(l []grace.Listener) error   { return grace.Restart(l) }
func (std) Wait(l []grace.Listener) error      { return grace.Wait(l) }
func (std) CloseParent() error                 { return grace.CloseParent() }

// newProcess returns one as the flags want it.
func newProcess(f *kit.Flags) *grace.Process {
	p := &grace.Process{TermTimeout: f.TermTimeout, StartTimeout: f.StartTimeout, PreStart: preStart(f)}
	if f.LogPrefix != "" {
		p.Logger = log.New(os.Stdout, f.LogPrefix, 0)
	}
	if *hooks {
		p.LameDuck, p.PIDFile = *lameDuck, *pidFile
		p.OnReady = func() { kit.Event("on-ready") }
		p.OnDrain = func() { kit.Event("on-drain") }
		p.OnMove = func(c net.Conn, state []byte) {
			kit.Event("on-move", "state", string(state))
			movable(p, c)
		}
	}
	return p
}

// What the mode grace has for hooks; the last two are the mode http's, too.
var (
	hooks    = flag.Bool("hooks", false, "Say when hooks are called, and move connections on the line \"move\".")
	lameDuck = flag.Duration("lame-duck", 0, "How long to serve on after SIGTERM.")
	cleanUp  = flag.Bool("clean-up", false, "Stay when Wait has returned, until the fault \"clean-up\" is cleared.")
)

// movable serves a connection as kit.Echo does, but that the line "move STATE" moves it to
// the successor.
func movable(p *grace.Process, c net.Conn) {
	for {
		line, err := readLine(c)
		if err != nil {
			c.Close()
			return
		}
		if state, ok := strings.CutPrefix(line, "move "); ok {
			if err := p.Move(c, []byte(state)); err != nil {
				fmt.Fprintf(c, "%d %v\n", os.Getpid(), err)
				continue
			}
			return
		}
		fmt.Fprintf(c, "%d %s\n", os.Getpid(), line)
	}
}

// readLine reads a byte at a time: what follows is for whoever has the connection then.
func readLine(c net.Conn) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// stream serves the way in which programs were written for facebookgo/grace.
func stream(f *kit.Flags, p process) error {
	listeners, err := inheritOrListen(p, f, grace.NewListener)
	if err != nil {
		return err
	}
	if gp, ok := p.(*grace.Process); ok && *hooks {
		onDrain := gp.OnDrain
		gp.OnDrain = func() {
			onDrain()
			if f.Faulty("hang-drain") {
				kit.Event("asked", "error", gp.Restart(listeners))
				select {}
			}
			if f.Faulty("close-listeners") { // as GracefulStop does
				for _, l := range listeners {
					l.Close()
				}
				kit.Event("closed")
			}
		}
		serveEach(listeners, func(c net.Conn) { movable(gp, c) })
		go func() {
			if gp.WaitParent(context.Background()) == nil {
				kit.Event("parent-drained")
			}
		}()
	} else {
		serve(listeners)
	}
	if !f.Faulty("no-parent") {
		if err := p.CloseParent(); err != nil {
			return err
		}
	}
	if gp, ok := p.(*grace.Process); ok && f.Faulty("restart-first") {
		// What it starts before Wait hangs.
		os.Rename(filepath.Join(f.Faults, "restart-first"), filepath.Join(f.Faults, "hang"))
		began, ended := make(chan struct{}), make(chan struct{})
		gp.PreStart = func() error { close(began); return nil }
		go func() {
			defer close(ended)
			kit.Event("restarted", "error", gp.Restart(listeners))
		}()
		defer func() { <-ended }() // the line is written before the process ends
		<-began
	}
	go readyInWait(f, listeners)
	err = p.Wait(listeners)
	awaitCleanUp(f)
	return err
}

// awaitCleanUp is what a program does after Wait or Serve.
func awaitCleanUp(f *kit.Flags) {
	if *cleanUp {
		kit.Event("cleaning-up")
		for f.Faulty("clean-up") {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// preStart is a hook that fails by the fault "prestart".
func preStart(f *kit.Flags) func() error {
	return func() error {
		f.Hook("prestart")
		if f.Faulty("prestart") {
			return &os.PathError{Op: "checking", Path: filepath.Join(f.Faults, "prestart"), Err: os.ErrExist}
		}
		return nil
	}
}

// bare is stream with listeners that NewListener did not make: the program
// counts connections by itself.
func bare(f *kit.Flags) error {
	p := newProcess(f)
	listeners, err := inheritOrListen(p, f, newCounted)
	if err != nil {
		return err
	}
	serve(listeners)
	if err := p.CloseParent(); err != nil {
		return err
	}
	go readyInWait(f, listeners)
	return p.Wait(listeners)
}

// inherit says what there was to inherit, and does nothing with it.
func inherit() error {
	listeners, err := grace.Inherit()
	if err == nil {
		err = errors.New("none")
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	kit.Event("inherited", "count", len(listeners), "error", err)
	<-signals
	return nil
}

// A counted listener is one of the program's own.
type counted struct {
	grace.Listener
	open kit.Counter
}

func newCounted(l grace.Listener) grace.Listener { return &counted{Listener: l} }

func (l *counted) Accept() (net.Conn, error) {
	l.open.Add(1)
	c, err := l.Listener.Accept()
	if err != nil {
		l.open.Done()
		return nil, err
	}
	return &countedConn{Conn: c, done: l.open.Done}, nil
}

func (l *counted) Close() error {
	err := l.Listener.Close()
	l.open.Wait()
	return err
}

type countedConn struct {
	net.Conn
	once sync.Once
	done func()
}

func (c *countedConn) Close() error {
	defer c.once.Do(c.done)
	return c.Conn.Close()
}

// ownLoop has a signal loop of its own.
func ownLoop(f *kit.Flags) error {
	p := newProcess(f)
	listeners, err := inheritOrListen(p, f, grace.NewListener)
	if err != nil {
		return err
	}
	return loop(f, listeners, p.CloseParent, func() {
		// Restart waits for the successor, the loop must not.
		go func() {
			if err := p.Restart(listeners); err != nil {
				kit.Event("failed-restart", "cause", cause(err), "error", err)
			}
		}()
	})
}

// cause says what a program can find in an error of Restart.
func cause(err error) string {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return "exit-" + strconv.Itoa(exit.ExitCode())
	case errors.As(err, &exit):
		return "signal-" + exit.Sys().(syscall.WaitStatus).Signal().String()
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.Is(err, fs.ErrNotExist):
		return "not-exist"
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	case errors.Is(err, fs.ErrExist):
		return "exist"
	case errors.Is(err, syscall.ENOEXEC):
		return "not-executable"
	}
	return "unknown"
}

// netLoop has a signal loop of its own, and its sockets from gracenet.
func netLoop(f *kit.Flags) error {
	var n gracenet.Net
	var listeners []grace.Listener
	for _, address := range f.Listen {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		}
		l, err := n.Listen(network, address)
		if err != nil {
			return err
		}
		listeners = append(listeners, grace.NewListener(l.(grace.Listener)))
	}
	announced := func(when string) {
		kit.Event("announced-"+when, "fds", os.Getenv("LISTEN_FDS"), "for", os.Getenv("LISTEN_PID"))
	}
	closeParent := func() error {
		announced("before")
		defer announced("after")
		if f.Faulty("kill-parent") {
			return killParent()
		}
		return grace.CloseParent()
	}
	return loop(f, listeners, closeParent, func() {
		pid, err := n.StartProcess()
		if err != nil {
			kit.Event("failed-restart", "error", err)
			return
		}
		kit.Event("started", "child", pid)
	})
}

// killParent does what programs did that had copied it from gracehttp.
func killParent() error {
	if ppid := os.Getppid(); os.Getenv("LISTEN_FDS") != "" && ppid != 1 {
		return syscall.Kill(ppid, syscall.SIGTERM)
	}
	return nil
}

// loop serves until SIGTERM.
func loop(f *kit.Flags, listeners []grace.Listener, closeParent func() error, restart func()) error {
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR2)
	serve(listeners)
	if err := closeParent(); err != nil {
		return err
	}
	ready(listeners)
	f.AfterReady()
	for sig := range signals {
		if sig == syscall.SIGUSR2 {
			restart()
			continue
		}
		kit.Event("got", "signal", sig)
		break
	}
	for _, l := range listeners {
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func inheritOrListen(p process, f *kit.Flags, wrap func(grace.Listener) grace.Listener) ([]grace.Listener, error) {
	listeners, err := p.Inherit()
	if err == nil && f.Mode == "bare" {
		for i, l := range listeners {
			listeners[i] = wrap(l)
		}
	}
	if err != grace.ErrNotInheriting {
		return listeners, err
	}
	for _, address := range f.Listen {
		l, err := kit.Open(address)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, wrap(l.(grace.Listener)))
	}
	return listeners, nil
}

func serve(listeners []grace.Listener) { serveEach(listeners, kit.Echo) }

func serveEach(listeners []grace.Listener, serve func(net.Conn)) {
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					kit.Event("accept", "error", err)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				go serve(c)
			}
		}()
	}
}

var inWait = regexp.MustCompile(`\[select.*\]:\n\S+/grace\.\(\*loop\)\.run`)

// readyInWait tells the test that the process serves, once Wait looks after
// signals: SIGTERM ends a process that does not.
func readyInWait(f *kit.Flags, listeners []grace.Listener) {
	stacks := make([]byte, 1<<20)
	for !inWait.Match(stacks[:runtime.Stack(stacks, true)]) {
		time.Sleep(time.Millisecond)
	}
	ready(listeners)
	f.AfterReady()
}

func ready(listeners []grace.Listener) {
	var addrs []net.Addr
	for _, l := range listeners {
		addrs = append(addrs, l.Addr())
	}
	kit.Ready(addrs...)
}
