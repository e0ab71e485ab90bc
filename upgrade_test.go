//go:build unix

package grace_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// activate returns a command that runs the test server by systemd's own tool.
// It starts when the first client connects.
func activate(t testing.TB, options []string, args ...string) driver.Command {
	t.Helper()
	tool, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("no systemd-socket-activate here")
	}
	return driver.Command{
		Path: tool,
		Args: append(append(options, driver.Binary(t)), args...),
	}
}

var freePorts atomic.Uint32

// freePort returns an address that nobody listens on: on Linux, where all of
// 127.0.0.0/8 is the loopback device's, one that no other test comes upon.
func freePort(t testing.TB) string {
	t.Helper()
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.0.2.%d", freePorts.Add(1)%250+1)
	}
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestSocketActivation(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.NeedProc(t)
	path := filepath.Join(t.TempDir(), "s")
	one, two := freePort(t), freePort(t)
	for _, test := range driver.Some([]struct {
		name    string
		options []string
		addrs   []string
	}{
		{"tcp", nil, []string{one}},
		{"unix", nil, []string{path}},
		{"two, named", []string{"--fdname=web:admin"}, []string{two, path + "2"}},
	}, 3) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			options := test.options
			for _, addr := range test.addrs {
				options = append(options, "-l", addr)
			}
			s := activate(t, options).Start(t)
			s.Line(`Listening on`)
			// The first client waits in the kernel until the server is there.
			held := dial(t, test.addrs[0])
			first := s.Ready(1)
			held.servedBy(first)
			if !slices.Equal(first.Addrs, test.addrs) {
				t.Errorf("it serves %v, want %v", first.Addrs, test.addrs)
			}
			inheritsNothing(t, "an activated process", held.child())
			held.Close()

			load := startLoad(t, test.addrs...)
			generation := first
			for n := 2; n <= 4; n++ {
				generation.Signal(syscall.SIGUSR2)
				next := s.Ready(n)
				generation.WaitExit(0)
				if !slices.Equal(next.Addrs, test.addrs) {
					t.Errorf("generation %d serves %v, want %v", n, next.Addrs, test.addrs)
				}
				load.atLeast(10)
				generation = next
			}
			load.nothingLost()
			c := dial(t, test.addrs[0])
			inheritsNothing(t, "its successor", c.child())
			c.Close()

			// The paths are systemd's.
			generation.Signal(syscall.SIGTERM)
			generation.WaitExit(0)
			s.WaitEnd()
			for _, addr := range test.addrs {
				if network(addr) != "unix" {
					continue
				}
				if _, err := os.Stat(addr); err != nil {
					t.Errorf("the path of a socket that systemd keeps: %v", err)
				}
			}
		})
	}
}

func TestFailedRestartOfAnActivatedProcess(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	path := filepath.Join(t.TempDir(), "s")
	faults := driver.NewFaults(t)
	s := activate(t, []string{"-l", path}, "-faults", string(faults)).Start(t)
	s.Line(`Listening on`)
	held := dial(t, path)
	first := s.Ready(1)
	held.servedBy(first)
	for _, fault := range []string{"exit", "kill-ready"} {
		mark := s.Mark()
		faults.Set(t, fault)
		first.Signal(syscall.SIGUSR2)
		s.Line("restart failed", mark)
		faults.Clear(t, fault)
		servedBy(t, path, first)
	}
	held.Close()
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the path of a socket that systemd keeps: %v", err)
	}
}

// A stop says that nobody is to accept, although systemd keeps the socket open.
func TestActivatedProcessStopsAccepting(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	addr := freePort(t)
	l, err := net.Listen("tcp", addr) // which stays open, as systemd's does
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := announced(t, "1", []*os.File{fileOf(t, l.(*net.TCPListener))}).Start(t)
	first := s.Ready(1)
	held := dial(t, addr)
	held.servedBy(first)
	first.Signal(syscall.SIGTERM)
	s.Line("draining pid") // now for a while
	waiting := dial(t, addr)
	held.servedBy(first)
	held.Close()
	first.WaitExit(0)

	// Who came meanwhile waits for the next process.
	next := announced(t, "1", []*os.File{fileOf(t, l.(*net.TCPListener))}).Start(t)
	waiting.servedBy(next.Ready(1))
}

// A running service is upgraded from facebookgo/grace to this library, and
// back, and again.
func TestLiveUpgradeFromAndToLegacy(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"grace", "bare", "ownloop", "netloop"}, 4), func(t *testing.T, mode string) {
		link := driver.NewLink(t, driver.Original(t))
		addr := freePort(t)
		s := driver.Command{
			Path: string(link),
			Args: []string{"-mode", mode, "-listen", addr},
		}.Start(t)
		generation := s.Ready(1)
		load := startLoad(t, addr)
		for n, program := range []string{
			driver.Binary(t),   // legacy → ours
			driver.Binary(t),   // ours → ours
			driver.Original(t), // ours → legacy
			driver.Original(t), // legacy → legacy
			driver.Binary(t),   // legacy → ours, that one having been ours before
		} {
			held := dial(t, addr)
			held.servedBy(generation)
			link.Move(t, program)
			generation.Signal(syscall.SIGUSR2)
			next := s.Ready(n + 2)
			awaitServedBy(t, addr, next, generation)
			held.servedBy(generation)
			held.Close()
			generation.Wait()
			s.Line(fmt.Sprintf(`^returned pid=%d`, generation.Pid))
			load.atLeast(20)
			generation = next
		}
		if pids := load.nothingLost(); len(pids) != 6 {
			t.Errorf("answers by pid: %v, want 6 processes", pids)
		}
	})
}

func TestUnixPathSurvivesUpgrades(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, driver.Some([]string{"grace", "ownloop", "netloop"}, 3), func(t *testing.T, mode string) {
		link := driver.NewLink(t, driver.Binary(t))
		path := filepath.Join(t.TempDir(), "s")
		s := driver.Command{
			Path: string(link),
			Args: []string{"-mode", mode, "-listen", "unix:" + path},
		}.Start(t)
		generation := s.Ready(1)
		for n, program := range []string{driver.Original(t), driver.Binary(t), driver.Binary(t)} {
			link.Move(t, program)
			generation.Signal(syscall.SIGUSR2)
			next := s.Ready(n + 2)
			generation.Wait()
			servedBy(t, path, next)
			generation = next
		}
		generation.Signal(syscall.SIGTERM)
		generation.Wait()
		s.Line(fmt.Sprintf(`^returned pid=%d`, generation.Pid))
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the last generation left the unix socket's file: %v", err)
		}
	})
}

// A legacy successor that fails is noticed as any other.
func TestLegacySuccessorThatFails(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for fault, want := range driver.SomeOf(map[string]string{
		"exit": `restart failed: .*exit status 2 after .*; still serving with pid`,
		"kill": `restart failed: .*signal: killed after .*; still serving with pid`,
		"hang": `restart failed: .*not ready within 1s.*; still serving with pid`,
	}, 8) {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			link := driver.NewLink(t, driver.Binary(t))
			timeout := driver.Patience
			if fault == "hang" {
				timeout = time.Second
			}
			s := driver.Command{
				Path: string(link),
				Args: tcp("-faults", string(faults), "-start-timeout", timeout.String()),
			}.Start(t)
			first := s.Ready(1)
			load := startLoad(t, first.Addrs[0])
			link.Move(t, driver.Original(t))
			faults.Set(t, fault)
			first.Signal(syscall.SIGUSR2)
			s.Line(want)
			load.atLeast(10)
			if pids := load.nothingLost(); len(pids) != 1 {
				t.Errorf("answers by pid: %v, want only %d", pids, first.Pid)
			}
		})
	}
}
