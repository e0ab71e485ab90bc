// Package restarttest builds an example, starts it, and restarts it under load.
package restarttest

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long anything may take.
const Patience = 30 * time.Second

// A Server is an example, through all its generations.
type Server struct {
	Addr string // where it listens
	Pid  int    // of the generation that serves

	t *testing.T

	mu    sync.Mutex // guards what follows
	lines []string
	ended bool          // no generation is left
	more  chan struct{} // closed at the next change
	alive map[int]bool
}

// Build builds the example in the current directory and returns its path.
func Build(t *testing.T, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "example")
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race")
			}
		}
	}
	args = append(args, flags...) // a package, if there is one, is the last
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return path
}

// Start builds the example in the current directory, starts it on a free port, and
// waits until it serves. It ends with the test.
func Start(t *testing.T, args ...string) *Server {
	t.Helper()
	return StartFile(t, Build(t), args...)
}

// StartFile is Start of a program that is built already.
func StartFile(t *testing.T, path string, args ...string) *Server {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=10")
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	s := &Server{t: t, more: make(chan struct{}), alive: map[int]bool{cmd.Process.Pid: true}}
	go s.read(r)
	t.Cleanup(s.end)
	s.Addr = s.serves(0)
	return s
}

var (
	started = regexp.MustCompile(`restart: started pid (\d+)`)
	ends    = regexp.MustCompile(`pid (\d+) ends`)
)

func (s *Server) read(r io.Reader) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		s.mu.Lock()
		s.lines = append(s.lines, in.Text())
		if m := started.FindStringSubmatch(in.Text()); m != nil {
			pid, _ := strconv.Atoi(m[1])
			s.alive[pid] = true
		}
		if m := ends.FindStringSubmatch(in.Text()); m != nil {
			pid, _ := strconv.Atoi(m[1])
			delete(s.alive, pid)
		}
		s.change()
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.ended = true
	s.change()
	s.mu.Unlock()
}

// change wakes those that wait. The caller holds s.mu.
func (s *Server) change() {
	close(s.more)
	s.more = make(chan struct{})
}

// Mark returns how many lines the server has written.
func (s *Server) Mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lines)
}

// Line waits for a line that matches, after the first from, and returns its
// submatches.
func (s *Server) Line(from int, pattern string) []string {
	s.t.Helper()
	expr := regexp.MustCompile(pattern)
	timeout := time.After(Patience)
	for {
		s.mu.Lock()
		for ; from < len(s.lines); from++ {
			if m := expr.FindStringSubmatch(s.lines[from]); m != nil {
				s.mu.Unlock()
				return m
			}
		}
		ended, more := s.ended, s.more
		s.mu.Unlock()
		if ended {
			s.t.Fatalf("all generations have ended without a line %q", pattern)
		}
		select {
		case <-more:
		case <-timeout:
			s.t.Fatalf("no line %q within %v", pattern, Patience)
		}
	}
}

// serves waits for the line of a generation that serves, and returns where.
func (s *Server) serves(from int) (addr string) {
	s.t.Helper()
	m := s.Line(from, `[Ss]erving ([^\s,]+).* with pid (\d+)`)
	s.Pid, _ = strconv.Atoi(m[2])
	return m[1]
}

// Signal sends a signal to the generation that serves.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(s.Pid, sig); err != nil {
		s.t.Fatalf("%v for pid %d: %v", sig, s.Pid, err)
	}
}

// Restart restarts the server, and returns when the successor serves and the
// predecessor has ended.
func (s *Server) Restart() {
	s.t.Helper()
	old, from := s.Pid, s.Mark()
	s.Signal(syscall.SIGUSR2)
	if addr := s.serves(from); addr != s.Addr {
		s.t.Errorf("the successor serves %s instead of %s", addr, s.Addr)
	}
	s.Line(from, fmt.Sprintf(`pid %d ends`, old))
}

// Stop stops the server, and returns when no generation is left.
func (s *Server) Stop() {
	s.t.Helper()
	s.Signal(syscall.SIGTERM)
	s.WaitEnd()
}

// WaitEnd waits until no generation is left.
func (s *Server) WaitEnd() {
	s.t.Helper()
	timeout := time.After(Patience)
	for {
		s.mu.Lock()
		ended, more := s.ended, s.more
		s.mu.Unlock()
		if ended {
			return
		}
		select {
		case <-more:
		case <-timeout:
			s.t.Fatal("it does not end")
		}
	}
}

// Output returns what the server has written.
func (s *Server) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func (s *Server) end() {
	s.mu.Lock()
	if !s.ended {
		for pid := range s.alive {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	s.mu.Unlock()
	s.WaitEnd()
	if strings.Contains(s.Output(), "DATA RACE") {
		s.t.Error("the race detector has found something")
	}
	s.t.Logf("the server wrote:\n%s", s.Output())
}

// An Ask sends one request, never twice, and returns the process id in the answer.
// An error is a lost request.
type Ask func() (pid int, err error)

// RestartUnderLoad restarts the server so many times, each time after every client has
// asked on. Each client asks by an Ask of its own, one request after the other. All
// must be answered, by all generations. It returns how many there were.
func (s *Server) RestartUnderLoad(restarts, clients int, connect func() (Ask, error)) (asked int) {
	s.t.Helper()
	var mu sync.Mutex
	answers := map[int]int{}
	lost := 0
	answered := make(chan struct{}, 1)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	defer asking.Wait()
	stopOnce := sync.OnceFunc(func() { close(stop) })
	defer stopOnce()
	for range clients {
		ask, err := connect()
		if err != nil {
			s.t.Fatal(err)
		}
		asking.Add(1)
		go func() {
			defer asking.Done()
			for {
				pid, err := ask()
				mu.Lock()
				asked++
				answers[pid]++
				if err != nil {
					if lost++; lost <= 5 {
						s.t.Errorf("lost: %v", err)
					}
				}
				mu.Unlock()
				select {
				case answered <- struct{}{}:
				default:
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond): // a bounded load
				}
			}
		}()
	}
	// by waits until the generation that serves has answered so many times.
	by := func(n int) {
		s.t.Helper()
		timeout := time.After(Patience)
		for {
			mu.Lock()
			got := answers[s.Pid]
			mu.Unlock()
			if got >= n {
				return
			}
			select {
			case <-answered:
			case <-timeout:
				s.t.Fatalf("pid %d has answered %d times within %v", s.Pid, got, Patience)
			}
		}
	}
	by(10 * clients)
	for range restarts {
		s.Restart()
		by(10 * clients)
	}
	stopOnce()
	asking.Wait()
	s.t.Logf("%d requests, %d restarts, %d lost", asked, restarts, lost)
	return asked
}

// HTTP returns an Ask over an HTTP connection that is kept open. The answer is the
// process id.
func (s *Server) HTTP(path string) func() (Ask, error) {
	return func() (Ask, error) {
		client := &http.Client{Transport: &http.Transport{}, Timeout: Patience}
		return func() (int, error) {
			// A body that can be read only once keeps the client from sending the
			// request again.
			resp, err := client.Post("http://"+s.Addr+path, "text/plain", io.NopCloser(strings.NewReader("who")))
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				return 0, err
			}
			if resp.StatusCode != http.StatusOK {
				return 0, fmt.Errorf("%s: %s", resp.Status, b)
			}
			return strconv.Atoi(strings.TrimSpace(string(b)))
		}, nil
	}
}
