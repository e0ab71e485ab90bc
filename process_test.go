//go:build unix

package grace_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

func TestMain(m *testing.M) { os.Exit(driver.Run(m)) }

// A client talks to kit.Echo over one connection.
type client struct {
	t testing.TB
	net.Conn
	answers *bufio.Reader
}

// network returns which network an address belongs to.
func network(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// dial connects to a server.
func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.DialTimeout(network(addr), addr, driver.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, Conn: c, answers: bufio.NewReader(c)}
}

// ask sends a line and returns the answer and who gave it.
func (c *client) ask(line string) (pid int, answer string) {
	c.t.Helper()
	pid, answer, err := exchange(c.Conn, c.answers, line)
	if err != nil {
		c.t.Fatalf("asking %q at %s: %v", line, c.RemoteAddr(), err)
	}
	return pid, answer
}

func exchange(conn net.Conn, answers *bufio.Reader, line string) (pid int, answer string, err error) {
	conn.SetDeadline(time.Now().Add(driver.Patience))
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return 0, "", err
	}
	text, err := answers.ReadString('\n')
	if err != nil {
		return 0, "", err
	}
	first, answer, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	pid, err = strconv.Atoi(first)
	return pid, answer, err
}

// servedBy fails the test unless this process answers on the connection.
func (c *client) servedBy(p *driver.Process) {
	c.t.Helper()
	if pid, _ := c.ask("who"); pid != p.Pid {
		c.t.Fatalf("pid %d answers, want %d", pid, p.Pid)
	}
}

// say sends a line that p answers with a text that contains want.
func (c *client) say(line string, p *driver.Process, want string) {
	c.t.Helper()
	if pid, answer := c.ask(line); pid != p.Pid || !strings.Contains(answer, want) {
		c.t.Fatalf("pid %d answers %q to %q, want pid %d, and %q in it", pid, answer, line, p.Pid, want)
	}
}

// child returns what a process finds that the server starts.
func (c *client) child() kit.Child {
	c.t.Helper()
	_, answer := c.ask("child")
	return parseChild(c.t, answer)
}

func parseChild(t testing.TB, text string) kit.Child {
	t.Helper()
	var child kit.Child
	if err := json.Unmarshal([]byte(text), &child); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if child.Err != "" {
		t.Fatalf("starting a child: %s", child.Err)
	}
	return child
}

// startHeld starts a server, and a client that has a connection to it.
func startHeld(t testing.TB, args ...string) (s *driver.Server, p *driver.Process, held *client) {
	t.Helper()
	s = driver.Start(t, args...)
	p = s.Ready(1)
	held = dial(t, p.Addrs[0])
	held.servedBy(p)
	return s, p, held
}

// servedBy fails the test unless this process answers on a new connection.
func servedBy(t testing.TB, addr string, p *driver.Process) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	c.servedBy(p)
}

// awaitServedBy waits until new connections at addr are answered by p, and by
// nobody but the others until then.
func awaitServedBy(t testing.TB, addr string, p *driver.Process, others ...*driver.Process) {
	t.Helper()
	dialServedBy(t, addr, p, others...).Close()
}

// dialServedBy returns the connection on which that process has answered. Its
// predecessor may still answer on the next one.
func dialServedBy(t testing.TB, addr string, p *driver.Process, others ...*driver.Process) *client {
	t.Helper()
	for deadline := time.Now().Add(driver.Patience); ; {
		c := dial(t, addr)
		pid, _ := c.ask("who")
		if pid == p.Pid {
			return c
		}
		c.Close()
		switch {
		case !slices.ContainsFunc(others, func(o *driver.Process) bool { return o.Pid == pid }):
			t.Fatalf("pid %d answers, want %d", pid, p.Pid)
		case time.Now().After(deadline):
			t.Fatalf("after %v it is still pid %d that answers, want %d", driver.Patience, pid, p.Pid)
		}
	}
}

// A load is clients that connect, ask and disconnect all the time, and never
// retry.
type load struct {
	t      testing.TB
	stop   atomic.Bool
	wg     sync.WaitGroup
	asked  driver.Counter
	mu     sync.Mutex
	pids   map[int]int
	errors []error
}

func startLoad(t testing.TB, addrs ...string) *load {
	l := &load{t: t, pids: map[int]int{}}
	for _, addr := range addrs {
		for range 2 {
			l.wg.Add(1)
			go l.run(addr)
		}
	}
	t.Cleanup(l.end)
	l.atLeast(10)
	return l
}

func (l *load) run(addr string) {
	defer l.wg.Done()
	pace := time.NewTicker(4 * time.Millisecond) // a bounded load
	defer pace.Stop()
	for i := 0; !l.stop.Load(); i++ {
		pid, err := l.once(addr, strconv.Itoa(i))
		l.mu.Lock()
		if err != nil {
			l.errors = append(l.errors, err)
		} else {
			l.pids[pid]++
		}
		l.mu.Unlock()
		l.asked.Add()
		<-pace.C
	}
}

func (l *load) once(addr, line string) (pid int, err error) {
	c, err := net.DialTimeout(network(addr), addr, driver.Patience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	pid, answer, err := exchange(c, bufio.NewReader(c), line)
	if err == nil && answer != line {
		err = fmt.Errorf("got %q, want %q", answer, line)
	}
	return pid, err
}

// atLeast waits until that many more questions were asked.
func (l *load) atLeast(n int64) {
	l.t.Helper()
	l.asked.More(l.t, n)
}

func (l *load) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

// nothingLost ends the load and fails the test if anything went wrong. It
// returns how many questions each process has answered.
func (l *load) nothingLost() map[int]int {
	l.t.Helper()
	l.end()
	for i, err := range l.errors {
		if i == 5 {
			l.t.Errorf("… and %d more", len(l.errors)-i)
			break
		}
		l.t.Errorf("lost: %v", err)
	}
	return l.pids
}

// tcp is a server's flag for one TCP listener.
func tcp(args ...string) []string { return append(args, "-listen", "127.0.0.1:0") }

// announced returns a command whose LISTEN_PID names the process itself, as
// systemd would have it.
func announced(t testing.TB, fds string, files []*os.File, args ...string) driver.Command {
	t.Helper()
	return driver.Command{
		Path:       "/bin/sh",
		Args:       append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, driver.Binary(t)}, args...),
		Env:        []string{"LISTEN_FDS=" + fds},
		ExtraFiles: files,
	}
}

// listeningFile returns the file of a TCP listener, and its address.
func listeningFile(t testing.TB) (f *os.File, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fileOf(t, l.(*net.TCPListener)), l.Addr().String()
}

func fileOf(t testing.TB, x interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := x.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestListenersAreInheritedInTheirOrder(t *testing.T) {
	t.Parallel()
	driver.AlsoShort(t)
	path := filepath.Join(t.TempDir(), "s")
	s := driver.Start(t, "-listen", "127.0.0.1:0", "-listen", "unix:"+path, "-listen", "127.0.0.1:0", "-listen", "127.0.0.1:0")
	first := s.Ready(1)
	generation := first
	for n := 2; n <= 4; n++ {
		generation.Signal(syscall.SIGUSR2)
		next := s.Ready(n)
		if !slices.Equal(next.Addrs, first.Addrs) {
			t.Fatalf("generation %d has %v, the first had %v", n, next.Addrs, first.Addrs)
		}
		generation.WaitExit(0)
		for _, addr := range next.Addrs {
			servedBy(t, addr, next)
		}
		generation = next
	}
	generation.Signal(syscall.SIGTERM)
	generation.WaitExit(0)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the last generation left the unix socket's file: %v", err)
	}
}

func TestInheritErrorsNameTheDescriptor(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)

	listening, _ := listeningFile(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	file, dir, device := open(plain), open(t.TempDir()), open("/dev/zero")
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close(); w.Close() })
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	udp := fileOf(t, packet.(*net.UDPConn))
	_, server := connect(t, listen(t))
	connected := fileOf(t, server.(interface{ File() (*os.File, error) }))

	for _, test := range driver.Some([]struct {
		name  string
		fds   string
		files []*os.File
		want  string // in the error
	}{
		{"not a number", "three", []*os.File{listening}, `"three" is not a number`},
		{"a number and more", "1 ", []*os.File{listening}, `"1 " is not a number`},
		{"negative", "-1", []*os.File{listening}, `"-1" is not a number`},
		{"beyond every number", "99999999999999999999", []*os.File{listening}, "is not a number"},
		{"one too many", "2", []*os.File{listening}, "descriptor 4 is not open"},
		{"a billion too many", "1000000000", []*os.File{listening}, "descriptor 4 is not open"},
		{"none open", "1", nil, "descriptor 3 is not open"},
		{"a file", "2", []*os.File{listening, file}, "descriptor 4 is a file, not a listening socket"},
		{"a directory", "2", []*os.File{listening, dir}, "descriptor 4 is a directory, not a listening socket"},
		{"a pipe", "1", []*os.File{pipe}, "descriptor 3 is a pipe, not a listening socket"},
		{"a device", "1", []*os.File{device}, "descriptor 3 is a device, not a listening socket"},
		{"a datagram socket", "3", []*os.File{listening, udp, listening}, "descriptor 4 is a datagram socket, not a listening socket"},
		{"a connection", "2", []*os.File{connected, listening}, "descriptor 3 is a socket that does not listen, not a listening socket"},
	}, 4) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := announced(t, test.fds, test.files, "-mode", "inherit").Start(t)
			m := s.Line(`^inherited pid=\d+ count=(\d+) error=(.*)`)
			if m[1] != "0" || !strings.Contains(m[2], test.want) {
				t.Errorf("Inherit returned %s listeners and %q, want an error with %q", m[1], m[2], test.want)
			}
			if !strings.Contains(test.want, "number") { // then nobody knows which were meant
				given := targets(t, test.files)
				for _, d := range s.First().Descriptors() {
					if slices.Contains(given, d.Target) {
						t.Errorf("left open: %v", d)
					}
				}
			}
			if kib := peakMemory(t, s.First()); kib > 256<<10 {
				t.Errorf("the process took %d KiB of memory", kib)
			}
			s.First().Signal(syscall.SIGTERM)
			s.First().WaitExit(0)
		})
	}
}

// targets returns what files are, as in driver.Descriptor.
func targets(t testing.TB, files []*os.File) (all []string) {
	t.Helper()
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			var target string
			if target, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
				all = append(all, target)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// peakMemory returns the most that the process has had in memory, in KiB.
func peakMemory(t testing.TB, p *driver.Process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib
}

// The loop of such a program calls Restart, and ends on the SIGTERM that follows.
func TestPredecessorWithItsOwnLoopGetsSIGTERM(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"ownloop", "netloop"}, 3), func(t *testing.T, mode string) {
		path := filepath.Join(t.TempDir(), "s")
		s := driver.Start(t, "-mode", mode, "-listen", "127.0.0.1:0", "-listen", "unix:"+path)
		first := s.Ready(1)
		load := startLoad(t, first.Addrs...)
		held := dial(t, first.Addrs[0])
		held.servedBy(first)

		first.Signal(syscall.SIGUSR2)
		second := s.Ready(2)
		s.Line(fmt.Sprintf("^got pid=%d signal=terminated", first.Pid))
		held.servedBy(first)
		held.Close()
		first.WaitExit(0)

		second.Signal(syscall.SIGUSR2)
		third := s.Ready(3)
		second.WaitExit(0)
		load.atLeast(10)
		if pids := load.nothingLost(); pids[first.Pid] == 0 || pids[third.Pid] == 0 {
			t.Errorf("answers by pid: %v; want some of %d and of %d", pids, first.Pid, third.Pid)
		}
		third.Signal(syscall.SIGTERM)
		third.WaitExit(0)
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the last generation left the unix socket's file: %v", err)
		}
	})
}

// The kernel ends all processes of a container when its first one ends.
func TestFirstProcessOfAContainerStays(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"grace", "ownloop"}, 3), func(t *testing.T, mode string) {
		s := driver.Command{Args: tcp("-mode", mode)}.StartAsPID1(t)
		p := s.Ready(1)
		p.Signal(syscall.SIGUSR2)
		s.Line("restart failed: .*pid 1 cannot hand over.*Supervise.*; still serving with pid 1")
		p.Signal(syscall.SIGTERM)
		s.First().WaitExit(0)
		if n := s.Count(`^start `); n != 1 {
			t.Errorf("%d processes were started, want 1", n)
		}
	})
}

func TestRestartSaysWhyThereIsNoSuccessor(t *testing.T) {
	t.Parallel()
	program := func(content string, mode os.FileMode) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "program")
			writeProgram(t, path, []byte(content), mode)
			return path
		}
	}
	for _, test := range driver.Some([]struct {
		name    string
		fault   string
		program func(t *testing.T) string // to move the link to
		cause   string                    // what a program can find in the error
		want    string                    // what a person reads, a pattern
	}{
		{"exit status", "exit", nil, "exit-2",
			`successor \S+: exit status 2 after \S+ \(before it was ready\)$`},
		{"signal", "kill", nil, "signal-killed",
			`successor \S+: signal: killed after \S+ \(before it was ready\)$`},
		{"timeout", "hang", nil, "deadline",
			`successor \S+: not ready within 1s, it has called neither Serve nor CloseParent: context deadline exceeded; killed pid \d+$`},
		{"hook", "prestart", nil, "exist", `before the start: checking \S+: file already exists$`},
		{"not executable", "", program("text", 0o600), "permission",
			`starting \S+: (fork/exec \S+: )?permission denied$`},
		{"no program", "", program("text", 0o700), "not-executable",
			`starting \S+: (fork/exec \S+: )?exec format error$`},
		{"gone", "", func(t *testing.T) string { return filepath.Join(t.TempDir(), "nothing") }, "not-exist",
			`starting \S+: (fork/exec \S+: )?no such file or directory$`},
		{"other program", "", program("#!/bin/sh\nexit 7\n", 0o700), "exit-7",
			`successor \S+: exit status 7 after \S+ \(before it was ready\)$`},
	}, 4) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			link := driver.NewLink(t, driver.Binary(t))
			faults := driver.NewFaults(t)
			timeout := driver.Patience // only the test about it runs into it
			if test.name == "timeout" {
				timeout = time.Second
			}
			s := driver.Command{
				Path: string(link),
				Args: tcp("-mode", "ownloop", "-faults", string(faults), "-start-timeout", timeout.String()),
			}.Start(t)
			first := s.Ready(1)
			held := dial(t, first.Addrs[0])
			held.servedBy(first)

			if test.fault != "" {
				faults.Set(t, test.fault)
			}
			if test.program != nil {
				link.Move(t, test.program(t))
			}
			first.Signal(syscall.SIGUSR2)
			m := s.Line(`^failed-restart pid=\d+ cause=(\S+) error=(.*)`)
			if m[1] != test.cause {
				t.Errorf("errors.Is and errors.As find %s, want %s in: %s", m[1], test.cause, m[2])
			}
			if !regexp.MustCompile(test.want).MatchString(m[2]) {
				t.Errorf("the error is %q, want %q", m[2], test.want)
			}
			if zombies := first.Zombies(); len(zombies) > 0 {
				t.Errorf("nobody has waited for %v", zombies)
			}
			held.servedBy(first)
			servedBy(t, first.Addrs[0], first)
			if test.name == "timeout" {
				return // it is too short for a healthy successor, at times
			}

			// The next one may succeed.
			if test.fault != "" {
				faults.Clear(t, test.fault)
			}
			link.Move(t, driver.Binary(t))
			first.Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			held.Close()
			first.WaitExit(0)
			servedBy(t, first.Addrs[0], second)
		})
	}
}

func TestTimedOutSuccessorIsGoneWhenRestartReturns(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	faults.Set(t, "hang")
	link := driver.NewLink(t, driver.Binary(t))
	s := driver.Command{
		Path: string(link),
		// The first does not know of the faults.
		Args: tcp("-mode", "ownloop", "-start-timeout", "3s", "-faults", string(faults)+"/now"),
	}.Start(t)
	first := s.Ready(1)
	if err := os.Symlink(string(faults), string(faults)+"/now"); err != nil {
		t.Fatal(err)
	}
	first.Signal(syscall.SIGUSR2)
	s.Line("^hanging")
	m := s.Line(`^failed-restart .*killed pid (\d+)`)
	pid, _ := strconv.Atoi(m[1])
	hanging := s.Process(pid)
	if pid == first.Pid || hanging != s.Started(2) {
		t.Errorf("killed pid %d, want %d", pid, s.Started(2).Pid)
	}
	hanging.Wait()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("pid %d is still there: %v", pid, err)
	}
	servedBy(t, first.Addrs[0], first)
}

// Whoever shares a socket shares its mode: if any start made it blocking, the
// server could not be stopped any more.
func TestSocketsNeverBecomeBlocking(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	driver.Each(t, driver.Some([]string{"grace", "bare", "ownloop", "netloop"}, 4), func(t *testing.T, mode string) {
		faults := driver.NewFaults(t)
		path := filepath.Join(t.TempDir(), "s")
		args := []string{"-mode", mode, "-faults", string(faults), "-listen", "127.0.0.1:0", "-listen", "unix:" + path}
		if mode == "bare" { // its own listener lets close remove the path
			args = args[:len(args)-2]
		}
		s, first, held := startHeld(t, args...)
		noneBlocks := func(p *driver.Process, when string) {
			t.Helper()
			listening := 0
			for _, d := range p.Sockets() {
				listening++
				if d.Blocking() {
					t.Errorf("%s, in pid %d: %v blocks", when, p.Pid, d)
				}
			}
			if listening < len(first.Addrs) {
				t.Errorf("%s, pid %d has %d sockets", when, p.Pid, listening)
			}
		}
		noneBlocks(first, "at the start")
		held.child()
		noneBlocks(first, "after a child process")

		faults.Set(t, "exit")
		first.Signal(syscall.SIGUSR2)
		s.Line(`^failed-restart|restart failed: `)
		faults.Clear(t, "exit")
		noneBlocks(first, "after a failed restart")

		faults.Set(t, "slow")
		first.Signal(syscall.SIGUSR2)
		s.Line("^waiting")
		noneBlocks(first, "while a successor starts")
		faults.Clear(t, "slow")

		second := s.Ready(2)
		noneBlocks(first, "while it drains")
		noneBlocks(second, "in the successor")
		held.Close()
		first.WaitExit(0)
		noneBlocks(second, "in the successor, alone")
	})
}

func TestSocketsThatAStrangerMadeBlockingAreNotSo(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	f, addr := listeningFile(t)
	f.Fd() // which makes it blocking, for all who share it
	s := announced(t, "1", []*os.File{f}, "-term-timeout", "1m").Start(t)
	first := s.Ready(1)
	for _, d := range first.Sockets() {
		if d.Blocking() {
			t.Errorf("%v blocks", d)
		}
	}
	servedBy(t, addr, first)
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
}

// One more connection after a failed restart used to be enough to make SIGTERM
// hang until the next.
func TestServerCanBeStoppedAfterAFailedRestart(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-faults", string(faults))...)
	first := s.Ready(1)
	faults.Set(t, "exit")
	first.Signal(syscall.SIGUSR2)
	s.Line("restart failed: ")
	c := dial(t, first.Addrs[0])
	c.servedBy(first)
	c.Close()
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
}

// announcements returns those variables that announce descriptors.
func announcements(env []string) (found []string) {
	for _, v := range env {
		if strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "GRACE_") {
			found = append(found, v)
		}
	}
	return found
}

// inheritsNothing fails the test if a child process of the server finds sockets,
// or variables that speak of them.
func inheritsNothing(t testing.TB, who string, c kit.Child) {
	t.Helper()
	if found := announcements(c.Env); len(found) > 0 {
		t.Errorf("a child of %s finds the variables %v", who, found)
	}
	for _, fd := range c.FDs {
		if strings.Contains(fd, "socket:") {
			t.Errorf("a child of %s finds descriptor %s", who, fd)
		}
	}
	if len(c.FDs) == 0 {
		t.Errorf("a child of %s finds no descriptors at all: %v", who, c)
	}
}

func TestChildProcessesFindNeitherDescriptorsNorVariables(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	f, addr := listeningFile(t)
	other, _ := listeningFile(t)
	faults := driver.NewFaults(t)
	c := announced(t, "2", []*os.File{f, other}, "-faults", string(faults))
	c.Env = append(c.Env, "LISTEN_FDNAMES=a:b", "LISTEN_PIDFDID=1")
	s := c.Start(t)
	first := s.Ready(1)
	held := dial(t, addr)
	inheritsNothing(t, "an activated process", held.child())

	faults.Set(t, "exit")
	first.Signal(syscall.SIGUSR2)
	s.Line("restart failed: ")
	faults.Clear(t, "exit")
	inheritsNothing(t, "a process after a failed restart", held.child())

	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	inheritsNothing(t, "a process with a successor", held.child())
	faults.Clear(t, "slow")

	second := s.Ready(2)
	inheritsNothing(t, "a process that drains", held.child())
	inheritsNothing(t, "a successor", dial(t, addr).child())
	for _, d := range second.Sockets() {
		if !d.CloseOnExec() {
			t.Errorf("in the successor: %v is not close-on-exec", d)
		}
	}
}

// Before the program has asked for anything, too.
func TestInheritedDescriptorsAreCloseOnExecFromTheFirstMoment(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	f, _ := listeningFile(t)
	s := announced(t, "1", []*os.File{f}, "-early-child").Start(t)
	generation := s.Ready(1)
	for n := 2; n <= 3; n++ {
		generation.Signal(syscall.SIGUSR2)
		generation = s.Ready(n)
	}
	early := s.All(`^early-child pid=\d+ found=(.*)`)
	if len(early) != 3 {
		t.Fatalf("%d generations have started a child, want 3", len(early))
	}
	for i, m := range early {
		for _, fd := range parseChild(t, m[1]).FDs {
			if strings.Contains(fd, "socket:") {
				t.Errorf("generation %d: a child finds descriptor %s", i+1, fd)
			}
		}
	}
}

func TestStaleListenPIDIsNeverPassedOn(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	f, _ := listeningFile(t)
	stale := func(p *driver.Process) (found []string) {
		for _, v := range p.Env() {
			if strings.HasPrefix(v, "LISTEN_PID") {
				found = append(found, v)
			}
		}
		return found
	}
	for name, c := range driver.SomeOf(map[string]driver.Command{
		"activated": announced(t, "1", []*os.File{f}),
		"leaked": {
			Args: tcp(),
			Env:  []string{"LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_PIDFDID=2"},
		},
	}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.Start(t)
			generation := s.Ready(1)
			if len(stale(generation)) == 0 {
				t.Fatal("the first generation was started without LISTEN_PID")
			}
			for n := 2; n <= 3; n++ {
				generation.Signal(syscall.SIGUSR2)
				generation = s.Ready(n)
				if found := stale(generation); len(found) > 0 {
					t.Errorf("generation %d, pid %d, was started with %v", n, generation.Pid, found)
				}
			}
		})
	}
}

// Under a subreaper, a container's init or a user's systemd, the parent is a
// stranger, whatever the environment says.
func TestParentThatIsAStrangerGetsNoSignal(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"grace", "netloop"}, 3), func(t *testing.T, mode string) {
		s := driver.Command{
			Path: driver.Stranger(t),
			Args: tcp("-mode", mode, "-play", "parent:"+driver.Binary(t)),
		}.Start(t)
		server := s.Ready(1)
		if server.Pid == s.First().Pid {
			t.Fatal("it is the stranger that says that it is ready")
		}
		// It has opened a socket of its own, and works.
		c := dial(t, server.Addrs[0])
		c.servedBy(server)
		if env := announcements(c.child().Env); len(env) > 0 {
			t.Errorf("a child of the server finds the variables %v that leaked to it", env)
		}
		c.Close()
		server.Signal(syscall.SIGUSR2)
		second := s.Ready(2)
		s.Line(fmt.Sprintf(`^returned pid=%d`, server.Pid))
		servedBy(t, server.Addrs[0], second)

		// The stranger tells of each signal; of the last, too, which is ours.
		s.First().Signal(syscall.SIGHUP)
		s.Line(fmt.Sprintf(`^got pid=%d signal=hangup`, s.First().Pid))
		if n := s.Count(fmt.Sprintf(`^got pid=%d`, s.First().Pid)); n != 1 {
			t.Errorf("the stranger got %d signals, want only ours", n)
		}
	})
}

// A program of facebookgo/grace that ends before its successor is ready leaves
// it with a stranger for a parent: here, this test.
func TestSuccessorOfADeadPredecessorSignalsNobody(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	link := driver.NewLink(t, driver.Original(t))
	s := driver.Command{
		Path: string(link),
		Args: tcp("-faults", string(faults)),
	}.Start(t)
	first := s.Ready(1)
	link.Move(t, driver.Binary(t))
	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	first.Signal(syscall.SIGKILL)
	first.Wait()
	if parent := s.Started(2).Parent(); parent != os.Getpid() {
		t.Skipf("the parent of an orphan is pid %d here, not the test", parent)
	}
	faults.Clear(t, "slow")
	second := s.Ready(2) // and this test was not ended by SIGTERM
	servedBy(t, first.Addrs[0], second)
	second.Signal(syscall.SIGUSR2)
	servedBy(t, first.Addrs[0], s.Ready(3))
}

func TestSuccessorRunsInTheDirectoryOfTheStart(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	releases := t.TempDir()
	current := filepath.Join(t.TempDir(), "current")
	for _, name := range []string{"1", "2"} {
		dir := filepath.Join(releases, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(driver.Binary(t), filepath.Join(dir, "server")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(releases, "1"), current); err != nil {
		t.Fatal(err)
	}
	s := driver.Command{
		Path:  "./server", // in a directory that is reached through a symlink
		Dir:   current,
		Args:  tcp(),
		Argv0: "./server",
	}.Start(t)
	first := s.Ready(1)
	program := filepath.Join(releases, "1", "server")
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	first.Signal(syscall.SIGUSR2)
	s.Line("restart failed: .*starting ./server in " + current + ": no such file or directory")

	// A deployment moves the symlink, and removes what was there before.
	next := current + ".next"
	if err := os.Symlink(filepath.Join(releases, "2"), next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, current); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(releases, "1")); err != nil {
		t.Fatal(err)
	}
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.WaitExit(0)
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", second.Pid)); dir != filepath.Join(releases, "2") {
		t.Errorf("the successor runs in %q, %v, want %s", dir, err, filepath.Join(releases, "2"))
	}
	servedBy(t, first.Addrs[0], second)
}

// writeProgram writes a file that can be run at once: no process that another
// test starts meanwhile has it open for writing.
func writeProgram(t testing.TB, path string, content []byte, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}

// copyProgram copies a program to where it can be replaced.
func copyProgram(t testing.TB, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeProgram(t, to+".next", b, 0o700)
	if err := os.Rename(to+".next", to); err != nil {
		t.Fatal(err)
	}
}

func TestReplacedBinaryIsWhatRuns(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "server")
	copyProgram(t, path, driver.Binary(t))
	for name, c := range driver.SomeOf(map[string]driver.Command{
		"absolute": {Path: path, Args: tcp()},
		"relative": {Path: "./server", Dir: dir, Args: tcp()},
		"looked up": {
			// As a shell would find it in its PATH.
			Path: path, Argv0: "server", Args: tcp(), Env: []string{"PATH=" + dir + ":/usr/bin:/bin"},
		},
	}, 3) {
		t.Run(name, func(t *testing.T) {
			s := c.Start(t)
			first := s.Ready(1)
			inode := fileID(t, fmt.Sprintf("/proc/%d/exe", first.Pid))
			copyProgram(t, path, driver.Binary(t))
			first.Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.WaitExit(0)
			ran := fileID(t, fmt.Sprintf("/proc/%d/exe", second.Pid))
			if ran == inode || ran != fileID(t, path) {
				t.Errorf("the successor runs file %v, the first ran %v, the new one is %v", ran, inode, fileID(t, path))
			}
			servedBy(t, first.Addrs[0], second)
		})
	}
}

func fileID(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestMovedSymlinkIsFollowed(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	dir := t.TempDir()
	v1, v2 := filepath.Join(dir, "v1"), filepath.Join(dir, "v2")
	copyProgram(t, v1, driver.Binary(t))
	copyProgram(t, v2, driver.Binary(t))
	link := driver.NewLink(t, v1)
	s := driver.Command{Path: string(link), Args: tcp()}.Start(t)
	first := s.Ready(1)
	link.Move(t, v2)
	if err := os.Remove(v1); err != nil {
		t.Fatal(err)
	}
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.WaitExit(0)
	if ran := fileID(t, fmt.Sprintf("/proc/%d/exe", second.Pid)); ran != fileID(t, v2) {
		t.Errorf("the successor does not run %s", v2)
	}
	servedBy(t, first.Addrs[0], second)
}

// go run waits for the first generation, and may then remove the program.
func TestGoRun(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command here")
	}
	s := driver.Command{
		Path: goTool,
		Args: append([]string{"run", "github.com/facebookgo/grace/internal/testserver"}, tcp()...),
	}.Start(t)
	first := s.Ready(1)
	load := startLoad(t, first.Addrs[0])
	held := dial(t, first.Addrs[0])
	held.servedBy(first)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	awaitServedBy(t, first.Addrs[0], second, first)
	held.servedBy(first)
	held.Close()
	s.First().WaitExit(0) // go run

	// Whether its program is still there depends on the version of Go. Whoever
	// serves then, nothing is lost.
	second.Signal(syscall.SIGUSR2)
	s.Line(fmt.Sprintf(`restart failed: .*; still serving with pid %d|pid %[1]d drains`, second.Pid))
	load.atLeast(10)
	load.nothingLost()
}

func TestSendfileAndSpliceStillHappen(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	dir := t.TempDir()
	trace, data := filepath.Join(dir, "trace"), filepath.Join(dir, "data")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	if err := os.WriteFile(data, content, 0o600); err != nil {
		t.Fatal(err)
	}
	probe := exec.Command(strace, "-o", trace, "/bin/true")
	if out, err := probe.CombinedOutput(); err != nil {
		t.Skipf("strace does not work here: %v: %s", err, out)
	}
	s := driver.Command{
		Path: strace,
		Args: append([]string{"-ff", "-o", trace, "-e", "trace=/^sendfile(64)?$,splice", "-e", "signal=none", driver.Binary(t)}, tcp()...),
	}.Start(t)
	server := s.Ready(1)

	c := dial(t, server.Addrs[0])
	c.ask("sendfile " + data)
	got := make([]byte, len(content))
	if _, err := readFull(c, got); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file came back changed, %v", err)
	}
	c = dial(t, server.Addrs[0])
	c.ask("splice")
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := readFull(c, got); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the bytes came back changed, %v", err)
	}
	c.Close()
	server.Signal(syscall.SIGTERM)
	s.WaitEnd()
	files, err := filepath.Glob(trace + ".*") // one for each thread
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, file := range files {
		calls, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, calls...)
	}
	for _, call := range []string{
		`sendfile(?:64)?\(\d+, \d+, .*\) += [1-9]\d*`,
		`splice\(.*\) += [1-9]\d*`,
	} {
		if !regexp.MustCompile(call).Match(b) {
			t.Errorf("no call like %s in the trace:\n%s", call, b)
		}
	}
}

func readFull(c *client, b []byte) (n int, err error) {
	c.SetDeadline(time.Now().Add(driver.Patience))
	return io.ReadFull(c.answers, b)
}
