//go:build unix

// Package driver builds the test server, starts it, and follows it through its
// generations.
//
//	func TestMain(m *testing.M) { os.Exit(driver.Run(m)) }
//
//	func TestRestart(t *testing.T) {
//		s := driver.Start(t, "-listen", "127.0.0.1:0")
//		first := s.Ready(1)
//		first.Signal(syscall.SIGUSR2)
//		second := s.Ready(2)
//		first.WaitExit(0)
//		// second.Addrs, second.Pid
//	}
//
// Whatever a wait waits for, it fails the test if it takes too long. When the test
// ends all generations are killed and, if it has failed, what they said is logged.
package driver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long anything may take.
const Patience = 30 * time.Second

var buildDir string

// makeBuildDir makes the directory of the programs that a test binary starts.
var makeBuildDir = sync.OnceValue(func() (err error) {
	if buildDir, err = os.MkdirTemp("", "testserver"); err == nil {
		err = os.Chmod(buildDir, 0o755) // for other users, see Command
	}
	return err
})

// build builds a program, with the race detector if the test binary has it.
func build(pkg string) func() (program string, err error) {
	return sync.OnceValues(func() (string, error) {
		if err := makeBuildDir(); err != nil {
			return "", err
		}
		program := filepath.Join(buildDir, path.Base(pkg))
		return program, Build(program, pkg, RaceFlags()...)
	})
}

const testserver = "github.com/facebookgo/grace/internal/testserver"

var (
	buildServer   = build(testserver)
	buildStranger = build(testserver + "/stranger")
	buildOriginal = build(testserver + "/original")
)

// Build builds the program of a package, with more flags of go build if there are any.
// What go run has linked stays in Go's build cache, which all test binaries share; the
// program's file is the copy of one of them alone. Without C it starts in four fifths of
// the time.
func Build(program, pkg string, flags ...string) error {
	cmd := exec.Command("go", slices.Concat([]string{"run", "-exec", "cp"}, flags, []string{pkg, program})...)
	if len(flags) == 0 {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // which the race detector needs
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// RaceFlags builds a program with the race detector if the test binary has it.
func RaceFlags() []string {
	if raceEnabled {
		return []string{"-race"}
	}
	return nil
}

// Run runs the tests and removes what was built for them.
func Run(m *testing.M) int {
	sideBySide()
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			// As under nohup(1), or in the background of a shell script. Processes
			// would inherit that; a handler they do not.
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	defer func() {
		if buildDir != "" {
			os.RemoveAll(buildDir)
		}
	}()
	return m.Run()
}

// Binary returns the path of the test server.
func Binary(tb testing.TB) string {
	tb.Helper()
	return built(tb, buildServer)
}

// Stranger returns the path of a program with the same flags that is not built
// on the library.
func Stranger(tb testing.TB) string {
	tb.Helper()
	return built(tb, buildStranger)
}

// Original returns the path of a program with the same flags that is built on
// facebookgo/grace.
func Original(tb testing.TB) string {
	tb.Helper()
	return built(tb, buildOriginal)
}

func built(tb testing.TB, build func() (string, error)) string {
	tb.Helper()
	skipIfShort(tb)
	program, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return program
}

// A Command is what to start. The zero value is the test server.
type Command struct {
	Path       string // the program; the test server if empty
	Argv0      string // what it is called as; its path if empty
	Args       []string
	Env        []string // added to the environment
	Dir        string
	ExtraFiles []*os.File // from descriptor 3 on
	Stderr     *os.File   // read by somebody else, if not nil
	User       uint32     // whose process it is; ours if 0

	namespace bool // see StartAsPID1
}

// Start starts the test server.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return Command{Args: args}.Start(tb)
}

// Start starts the command. Standard output and error of all its generations
// are read; the standard input stays open as long as the test runs.
func (c Command) Start(tb testing.TB) *Server {
	tb.Helper()
	if c.Path == "" {
		c.Path = Binary(tb)
	}
	stdin, lifeline, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	output, stdout, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(c.Path, c.Args...)
	if c.Argv0 != "" {
		cmd.Args[0] = c.Argv0
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stdout
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	cmd.Dir = c.Dir
	cmd.Env = append(environ(c.Dir), c.Env...)
	cmd.ExtraFiles = c.ExtraFiles
	if c.User != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.User, Gid: c.User}}
	}
	becomeReaper()
	err = cmd.Start()
	stdin.Close()
	stdout.Close()
	if err != nil {
		lifeline.Close()
		output.Close()
		tb.Fatal(err)
	}

	s := &Server{tb: tb, changed: make(chan struct{}), namespace: c.namespace}
	s.first = s.learn(cmd.Process.Pid)
	cmd.Process.Release()
	go s.read(output)
	tb.Cleanup(func() {
		lifeline.Close()
		s.end()
	})
	return s
}

// environ is the environment without what would make the server inherit
// something.
func environ(dir string) (env []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"), strings.HasPrefix(name, "GRACE_"), name == "NOTIFY_SOCKET":
		case name == "GORACE", name == "PWD" && dir != "":
		default:
			env = append(env, v)
		}
	}
	if dir != "" {
		env = append(env, "PWD="+dir)
	}
	// The race detector lets an ending process sleep for a second, otherwise.
	return append(env, strings.TrimSpace("GORACE=atexit_sleep_ms=10 "+os.Getenv("GORACE")))
}

// A Server is a chain of generations.
type Server struct {
	tb        testing.TB
	first     *Process
	namespace bool // its processes have other numbers than ours

	mu        sync.Mutex    // guards what follows
	changed   chan struct{} // closed at the next change
	lines     []string
	processes []*Process // in the order in which they were heard of
	ready     []*Process // in the order in which they became so
	ended     bool       // nobody is left to write
	killing   bool
}

// A Process is one generation.
type Process struct {
	Pid   int
	Addrs []string // where it listens, once it is ready

	s      *Server
	handle *os.Process
	exited chan struct{} // closed when it has ended
	status *syscall.WaitStatus
}

// First returns the process that was started.
func (s *Server) First() *Process { return s.first }

// Ready returns the n-th process, from 1 on, that became ready.
func (s *Server) Ready(n int) *Process {
	s.tb.Helper()
	var p *Process
	s.wait(fmt.Sprintf("ready process %d", n), func() bool {
		if len(s.ready) >= n {
			p = s.ready[n-1]
		}
		return p != nil
	})
	return p
}

// Line returns the first line, of those after the first from, that matches the
// pattern, and its submatches.
func (s *Server) Line(pattern string, from ...int) []string {
	s.tb.Helper()
	expr := regexp.MustCompile(pattern)
	next := 0
	if len(from) > 0 {
		next = from[0]
	}
	var match []string
	s.wait(fmt.Sprintf("a line matching %q", pattern), func() bool {
		for ; next < len(s.lines) && match == nil; next++ {
			match = expr.FindStringSubmatch(s.lines[next])
		}
		return match != nil
	})
	return match
}

// Mark returns how many lines there are, for Line to look at later ones only.
func (s *Server) Mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lines)
}

// All returns the lines by now that match the pattern, and their submatches.
func (s *Server) All(pattern string) (matches [][]string) {
	expr := regexp.MustCompile(pattern)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.lines {
		if m := expr.FindStringSubmatch(line); m != nil {
			matches = append(matches, m)
		}
	}
	return matches
}

// Count returns how many lines there are by now that match the pattern.
func (s *Server) Count(pattern string) int { return len(s.All(pattern)) }

// Output returns all that was written so far.
func (s *Server) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// Process returns the one with this process id, when it has been heard of.
func (s *Server) Process(pid int) *Process {
	s.tb.Helper()
	var p *Process
	s.wait(fmt.Sprintf("process %d", pid), func() bool {
		p = s.find(pid)
		return p != nil
	})
	return p
}

// Started returns the n-th process, from 1 on, that was heard of: the first is
// the one that the test has started. It need not be ready.
func (s *Server) Started(n int) *Process {
	s.tb.Helper()
	var p *Process
	s.wait(fmt.Sprintf("process %d of the chain", n), func() bool {
		if len(s.processes) >= n {
			p = s.processes[n-1]
		}
		return p != nil
	})
	return p
}

// WaitEnd waits until all generations have ended.
func (s *Server) WaitEnd() {
	s.tb.Helper()
	s.wait("the end of all generations", func() bool { return s.ended })
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig os.Signal) {
	p.s.tb.Helper()
	if err := p.handle.Signal(sig); err != nil {
		p.s.tb.Fatalf("%v for pid %d: %v", sig, p.Pid, err)
	}
}

// Insist sends a signal to stop again and again until the process ends: one that comes
// within a second of another is taken for the same.
func (p *Process) Insist(sig os.Signal) {
	p.s.tb.Helper()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(Patience)
	for {
		p.handle.Signal(sig) // fails when it has ended
		select {
		case <-p.exited:
			return
		case <-ticker.C:
		case <-timeout:
			p.s.tb.Fatalf("pid %d does not end by %v, sent again and again", p.Pid, sig)
		}
	}
}

// Freeze stops the process, as a machine does that has no time for it. It needs /proc.
func (p *Process) Freeze() (thaw func()) {
	p.s.tb.Helper()
	p.Signal(syscall.SIGSTOP)
	Eventually(p.s.tb, fmt.Sprintf("pid %d to be stopped", p.Pid), func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		return !slices.ContainsFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
	return func() { p.Signal(syscall.SIGCONT) }
}

// FreezeInRestart restarts the process, and freezes it until thaw is called: its
// successor, which it returns, has said meanwhile that it is ready.
func (p *Process) FreezeInRestart(faults Faults) (successor *Process, thaw func()) {
	p.s.tb.Helper()
	ready, mark := p.s.Count("^ready "), p.s.Mark()
	faults.Set(p.s.tb, "slow")
	p.Signal(syscall.SIGUSR2)
	p.s.Line("restart: started pid", mark) // and was told of its sockets
	p.s.Line("^waiting")
	thaw = p.Freeze()
	faults.Clear(p.s.tb, "slow")
	return p.s.Ready(ready + 1), thaw
}

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits for the process's end and returns its status, nil if another
// process was there to take it.
func (p *Process) Wait() *syscall.WaitStatus {
	p.s.tb.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-p.exited:
		return p.status
	case <-timer.C:
		p.s.tb.Fatalf("pid %d has not ended within %v", p.Pid, Patience)
		return nil
	}
}

// WaitExit waits for the process's end and fails the test if it did not exit
// with this code. Where another process was there to take the status, the last word of its
// main stands for 0.
func (p *Process) WaitExit(code int) {
	p.s.tb.Helper()
	status := p.Wait()
	if status == nil && code == 0 {
		p.s.Line(fmt.Sprintf(`^returned pid=%d`, p.Pid))
		return
	}
	if status == nil || !status.Exited() || status.ExitStatus() != code {
		p.s.tb.Fatalf("pid %d ended with %s, want exit status %d", p.Pid, Describe(status), code)
	}
}

// Describe says in words how a process ended.
func Describe(status *syscall.WaitStatus) string {
	switch {
	case status == nil:
		return "a status that another process has taken"
	case status.Signaled():
		return "signal: " + status.Signal().String()
	default:
		return "exit status " + strconv.Itoa(status.ExitStatus())
	}
}

// wait waits until done, which is called with the lock held, reports true.
func (s *Server) wait(what string, done func() bool) {
	s.tb.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		ok, over, changed := done(), s.ended, s.changed
		s.mu.Unlock()
		switch {
		case ok:
			return
		case over:
			s.tb.Fatalf("all generations have ended before %s", what)
		}
		select {
		case <-changed:
		case <-timer.C:
			s.tb.Fatalf("waited %v for %s", Patience, what)
		}
	}
}

// change wakes those that wait. The caller holds s.mu.
func (s *Server) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

var (
	event   = regexp.MustCompile(`^([a-z-]+) pid=(\d+)(?: addrs=(\S*))?`)
	started = regexp.MustCompile(`restart: started pid (\d+)|^started pid=\d+ child=(\d+)`)
)

// read follows what the generations write, until none is left.
func (s *Server) read(output *os.File) {
	defer output.Close()
	lines := bufio.NewReader(output)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			s.heard(line)
		}
		if err != nil {
			s.mu.Lock()
			s.ended = true
			s.change()
			s.mu.Unlock()
			return
		}
	}
}

func (s *Server) heard(line string) {
	var p *Process
	m := event.FindStringSubmatch(line)
	if m != nil {
		pid, _ := strconv.Atoi(m[2])
		p = s.learn(s.machinePID(pid))
	}
	if child := started.FindStringSubmatch(line); child != nil {
		pid, _ := strconv.Atoi(child[1] + child[2])
		s.learn(s.machinePID(pid))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	if p != nil && m[1] == "ready" {
		p.Addrs = strings.Split(m[3], ",")
		s.ready = append(s.ready, p)
	}
	s.change()
}

// find returns the process with this id, or nil. The caller holds s.mu.
func (s *Server) find(pid int) *Process {
	for _, p := range s.processes {
		if p.Pid == pid {
			return p
		}
	}
	return nil
}

// learn enters a process in the chain.
func (s *Server) learn(pid int) *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.find(pid); p != nil || pid <= 1 || pid == os.Getpid() {
		return p
	}
	p := &Process{Pid: pid, s: s, exited: make(chan struct{})}
	p.handle, _ = os.FindProcess(pid) // never fails on Unix
	s.processes = append(s.processes, p)
	s.change()
	go p.reap()
	if s.killing {
		p.handle.Kill()
	}
	return p
}

// end kills all generations, those too that are heard of meanwhile.
func (s *Server) end() {
	s.mu.Lock()
	s.killing = true
	all := append([]*Process(nil), s.processes...)
	s.mu.Unlock()
	for _, p := range all {
		p.handle.Kill() // which fails if it has ended
	}
	deadline := time.After(Patience)
	for {
		s.mu.Lock()
		ended, changed := s.ended, s.changed
		s.mu.Unlock()
		if ended {
			break
		}
		select {
		case <-changed:
		case <-deadline:
			s.tb.Errorf("a process still runs that was not heard of, after:\n%s", s.Output())
			return
		}
	}
	if strings.Contains(s.Output(), "WARNING: DATA RACE") {
		s.tb.Error("the race detector has found something")
	}
	if s.tb.Failed() {
		s.tb.Logf("the server said:\n%s", s.Output())
	}
}
