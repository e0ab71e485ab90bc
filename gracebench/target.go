package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	startTimeout = 20 * time.Second // for a process to serve, or a new one to answer
	drainTimeout = 60 * time.Second // for an old process to end
	stopTimeout  = 15 * time.Second // for the last process to end after SIGTERM
)

var epoch = time.Now()

// now is the monotonic time since the bench began; what all processes' events are compared by.
func now() time.Duration { return time.Since(epoch) }

// A generation is one process of the chain that serves the same sockets.
type generation struct {
	pid     int
	seq     int // in the order in which they were first heard of
	process *os.Process

	firstAnswer atomic.Int64 // now() when a client had its first answer; 0 if none had
	lastAnswer  atomic.Int64

	// Guarded by target.mu.
	addrs []string      // on which it has said that it accepts
	gone  time.Duration // now() when it had ended; 0 before
	error string        // why it says it ended
	conn  net.Conn      // its control connection; nil for a peer
	read  bool          // all that it has said on it was heard
	total time.Duration // processor time until its end

	usage chan usage // answers to usageOf
}

// A target is the server under test: a chain of generations.
type target struct {
	config serverConfig
	signal os.Signal // that makes it restart
	addr   string    // of its first listener
	peer   bool
	proxy  *proxy // in front of it, or nil

	cmd     *exec.Cmd // the first generation
	began   time.Duration
	log     *os.File
	control net.Listener

	newest atomic.Pointer[generation] // that has answered
	lost   atomic.Int64               // requests

	mu          sync.Mutex
	generations map[string]*generation // by pid, as in the header
	order       []*generation
	changed     chan struct{} // closed and replaced whenever a generation's state changes
	stopped     bool
	episodes    []episode
}

// startTarget starts our own server and waits until it accepts.
func startTarget(ctx context.Context, cfg config, c serverConfig) (*target, error) {
	t, err := newTarget(cfg, c)
	if err != nil {
		return nil, err
	}
	if err := t.start(ctx, cfg); err != nil {
		err = t.withLog(err)
		t.stop(ctx)
		return nil, err
	}
	return t, nil
}

func newTarget(cfg config, c serverConfig) (*target, error) {
	dir, err := os.MkdirTemp("", "gracebench")
	if err != nil {
		return nil, err
	}
	c.dir = dir
	if c.addr == "unix" {
		c.addr = "unix:" + filepath.Join(dir, "server")
	}
	return &target{
		config:      c,
		signal:      cfg.signal,
		peer:        cfg.peer != "" && !c.plain,
		generations: make(map[string]*generation),
		changed:     make(chan struct{}),
	}, nil
}

func (t *target) start(ctx context.Context, cfg config) error {
	var err error
	if t.log, err = os.OpenFile(filepath.Join(t.config.dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if t.config.proto == "tls" {
		if err := writeCertificate(t.config.certPath(), t.config.keyPath()); err != nil {
			return err
		}
	}
	if t.peer {
		return t.startPeer(ctx, cfg)
	}

	if t.control, err = net.Listen("unix", t.config.controlPath()); err != nil {
		return err
	}
	go t.acceptControl()
	program := t.config.program
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return err
		}
	}
	if err := t.startCommand(exec.Command(program, t.config.args()...), cfg.verbose); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var failed error
	err = t.wait(ctx, "the server to accept", func() bool {
		if len(t.order) == 0 {
			return false
		}
		g := t.order[0]
		if g.gone > 0 {
			failed = fmt.Errorf("the server ended at its start: %s", g.error)
			return true
		}
		if len(g.addrs) < max(1, t.config.listeners) {
			return false
		}
		t.addr = g.addrs[0]
		return true
	})
	return errors.Join(failed, err)
}

// startPeer starts another server; it accepts when a connection to it succeeds.
func (t *target) startPeer(ctx context.Context, cfg config) error {
	words := strings.Fields(cfg.peer)
	if len(words) == 0 {
		return errors.New("-peer: empty command")
	}
	t.addr = strings.TrimPrefix(t.config.addr, "unix:")
	if t.addr == t.config.addr {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		t.addr, t.config.addr = addr, addr
	}
	replace := strings.NewReplacer("{addr}", t.config.addr, "{proto}", t.config.proto,
		"{cert}", t.config.certPath(), "{key}", t.config.keyPath())
	for i, w := range words {
		words[i] = replace.Replace(w)
	}
	if err := t.startCommand(exec.Command(words[0], words[1:]...), cfg.verbose); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	go func() {
		t.waitGone(ctx, t.order[0])
		cancel()
	}()
	return waitDial(ctx, t.network(), t.addr)
}

func (t *target) startCommand(cmd *exec.Cmd, verbose bool) error {
	cmd.Stdout, cmd.Stderr = t.log, t.log
	if verbose {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	ownGroup(cmd)
	t.began = now()
	if err := cmd.Start(); err != nil {
		return err
	}
	t.cmd = cmd
	t.generation(strconv.Itoa(cmd.Process.Pid))
	go cmd.Wait() // so that it does not stay a zombie
	return nil
}

func (t *target) network() string {
	if strings.HasPrefix(t.config.addr, "unix:") {
		return "unix"
	}
	return "tcp"
}

// acceptControl takes the control connections of all generations.
func (t *target) acceptControl() {
	for {
		conn, err := t.control.Accept()
		if err != nil {
			return
		}
		go t.readControl(conn)
	}
}

func (t *target) readControl(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	var g *generation
	for in.Scan() {
		var m message
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			return
		}
		if m.Pid != 0 {
			g = t.generation(strconv.Itoa(m.Pid))
		}
		if g == nil {
			return
		}
		t.mu.Lock()
		if t.stopped {
			t.mu.Unlock()
			return // which ends the process
		}
		g.conn = conn
		if m.Addr != "" {
			g.addrs = append(g.addrs, m.Addr)
		}
		if m.Last {
			g.error, g.total = m.Error, m.Usage.CPU
		}
		t.notify()
		t.mu.Unlock()
		if m.Usage != nil && !m.Last {
			g.usage <- *m.Usage
		}
	}
	if g != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		g.read = true
		t.notify()
	}
}

// usageOf asks the generation what it has used so far, after a collection or without.
func (t *target) usageOf(ctx context.Context, g *generation, collect bool) (usage, error) {
	t.mu.Lock()
	conn := g.conn
	t.mu.Unlock()
	if conn == nil {
		return usage{}, fmt.Errorf("process %d has no control connection", g.pid)
	}
	question := "report\n"
	if collect {
		question = "collect\n"
	}
	if _, err := conn.Write([]byte(question)); err != nil {
		return usage{}, err
	}
	select {
	case u := <-g.usage:
		return u, nil
	case <-time.After(startTimeout):
		return usage{}, fmt.Errorf("process %d does not report", g.pid)
	case <-ctx.Done():
		return usage{}, ctx.Err()
	}
}

// generation returns the generation with this pid, and begins to watch it when it is new. Nil if pid is not a number.
func (t *target) generation(pid string) *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.generations[pid]; g != nil {
		return g
	}
	n, err := strconv.Atoi(pid)
	if err != nil || n <= 1 {
		return nil
	}
	g := &generation{pid: n, seq: len(t.order), usage: make(chan usage, 1)}
	// It is alive now, so that the handle names the right process even after the pid is used again.
	if g.process, err = os.FindProcess(n); err != nil {
		g.gone = now()
	}
	t.generations[pid] = g
	t.order = append(t.order, g)
	go func() {
		waitGone(n)
		at := now()
		t.mu.Lock()
		defer t.mu.Unlock()
		if g.gone == 0 {
			g.gone = at
		}
		t.notify()
	}()
	t.notify()
	return g
}

// answered notes that a client had an answer from the process with this pid.
func (t *target) answered(pid string, at time.Duration) {
	if pid == "" {
		return
	}
	g := t.newest.Load()
	if g == nil || strconv.Itoa(g.pid) != pid {
		if g = t.generation(pid); g == nil {
			return
		}
	}
	for last := g.lastAnswer.Load(); last < int64(at); last = g.lastAnswer.Load() {
		g.lastAnswer.CompareAndSwap(last, int64(at))
	}
	if !g.firstAnswer.CompareAndSwap(0, int64(at)) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.newest.Load(); n == nil || n.seq < g.seq {
		t.newest.Store(g)
	}
	t.notify()
}

func (t *target) missed() { t.lost.Add(1) }

// notify wakes those who wait. The caller holds t.mu.
func (t *target) notify() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// wait returns when done does, which is called with t.mu held after each change; or with an error that says what it
// waited for.
func (t *target) wait(ctx context.Context, what string, done func() bool) error {
	for {
		t.mu.Lock()
		ok, changed := done(), t.changed
		t.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

// signalRestart asks for a restart: the newest process that has answered, or the one that was started if none says
// who it is.
func (t *target) signalRestart() (*generation, time.Duration, error) {
	g := t.newest.Load()
	if g == nil {
		t.mu.Lock()
		g = t.order[0]
		t.mu.Unlock()
	}
	at := now()
	t.mu.Lock()
	t.episodes = append(t.episodes, episode{signal: at, gone: never})
	t.mu.Unlock()
	process, sig := g.process, t.signal
	if t.proxy.reloads() {
		process, sig = t.proxy.process, t.proxy.reload
	}
	if err := process.Signal(sig); err != nil {
		return g, at, fmt.Errorf("signalling process %d: %w", process.Pid, err)
	}
	return g, at, nil
}

// A restart is what was seen of one.
type restart struct {
	firstAnswer time.Duration // from the signal
	gone        time.Duration // from the signal; 0 if unknown
	cpu         time.Duration // processor time of both, from the signal; only known of an idle server
}

// restart makes the server restart under load, and waits until a new process has answered and the old one has ended.
func (t *target) restart(ctx context.Context) (restart, error) {
	old, at, err := t.signalRestart()
	if err != nil {
		return restart{}, err
	}
	if t.newest.Load() == nil {
		t.endEpisode() // it does not say who it is: nothing to wait for
		return restart{}, nil
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := t.wait(startCtx, "an answer from a new process", func() bool { return t.newest.Load() != old }); err != nil {
		return restart{}, err
	}
	first := time.Duration(t.newest.Load().firstAnswer.Load())
	timeout := drainTimeout
	if t.proxy.reloads() {
		timeout = time.Second // haproxy's old worker may stay for as long as its timeouts
	}
	drainCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := t.waitGone(drainCtx, old); err != nil && !t.proxy.reloads() {
		return restart{}, err
	}
	t.endEpisode()
	return old.restartAt(at, first), nil
}

func (t *target) endEpisode() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.episodes[len(t.episodes)-1].gone = now()
}

func (t *target) allEpisodes() []episode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.episodes)
}

func (g *generation) restartAt(signal, first time.Duration) restart {
	r := restart{firstAnswer: first - signal}
	if g.gone > 0 {
		r.gone = g.gone - signal
	}
	return r
}

// afterLast returns how long the processes that have ended were there after their last answers. Only when the clients
// are done is it known which ones these were: a client may read one after the end.
func (t *target) afterLast() []time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []time.Duration
	for _, g := range t.order {
		if last := time.Duration(g.lastAnswer.Load()); last > 0 && g.gone > 0 {
			all = append(all, max(0, g.gone-last))
		}
	}
	return all
}

func (t *target) waitGone(ctx context.Context, g *generation) error {
	return t.wait(ctx, fmt.Sprintf("the old process %d to end", g.pid), func() bool {
		return g.gone > 0 && (g.conn == nil || g.read)
	})
}

// waitOld waits until the newest process is the only one.
func (t *target) waitOld(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	return t.wait(ctx, "all old processes to end", func() bool {
		newest := t.newest.Load()
		for _, g := range t.order {
			if g.gone == 0 && g != newest {
				return false
			}
		}
		return true
	})
}

// restarts counts the processes that took over.
func (t *target) restarts() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := -1
	for _, g := range t.order {
		if g.firstAnswer.Load() > 0 {
			n++
		}
	}
	return max(n, 0)
}

// soFar says how far a row has come.
func (t *target) soFar() string {
	return fmt.Sprintf("%d restarts, %d lost", t.restarts(), t.lost.Load())
}

// errors are what the processes themselves say went wrong.
func (t *target) errors() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []string
	for _, g := range t.order {
		if g.error != "" {
			all = append(all, fmt.Sprintf("process %d: %s", g.pid, g.error))
		}
	}
	return all
}

// stop ends what was started, with SIGTERM at first, and removes the directory. It says which processes had to be
// killed.
func (t *target) stop(ctx context.Context) error {
	t.proxy.stop()
	for _, g := range t.alive() {
		g.process.Signal(syscall.SIGTERM)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := t.wait(ctx, "the server to stop", func() bool {
		for _, g := range t.order {
			if g.gone == 0 {
				return false
			}
		}
		return true
	})
	for _, g := range t.alive() {
		g.process.Kill()
	}
	if t.peer && t.cmd != nil {
		killGroup(t.cmd) // processes that never said who they are
	}
	if t.control != nil {
		t.control.Close()
	}
	// Nobody is left who would not end without its control connection.
	t.mu.Lock()
	t.stopped = true
	for _, g := range t.order {
		if g.conn != nil {
			g.conn.Close()
		}
	}
	t.mu.Unlock()
	if t.log != nil {
		t.log.Close()
	}
	os.RemoveAll(t.config.dir)
	return err
}

func (t *target) alive() []*generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	var alive []*generation
	for _, g := range t.order {
		if g.gone == 0 {
			alive = append(alive, g)
		}
	}
	return alive
}

// logText returns the server's log.
func (t *target) logText() string {
	if t.log == nil {
		return ""
	}
	log, _ := os.ReadFile(t.log.Name())
	return string(log)
}

// logTail returns the last lines of the server's log.
func (t *target) logTail() string {
	lines := strings.Split(strings.TrimSpace(t.logText()), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// withLog adds the end of the log to an error.
func (t *target) withLog(err error) error {
	if tail := t.logTail(); tail != "" {
		return fmt.Errorf("%w; the end of its log:\n%s", err, tail)
	}
	return err
}

// freeAddr returns a loopback address on which nobody listens.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// waitDial returns when addr accepts connections. A program that cannot tell when it is ready can only be asked again
// and again.
func waitDial(ctx context.Context, network, addr string) error {
	for {
		conn, err := net.Dial(network, addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to accept: %w", addr, err)
		}
	}
}
