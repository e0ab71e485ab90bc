//go:build unix

package grace_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// commandLine returns the one with which the process was started.
func commandLine(t *testing.T, p *driver.Process) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

func TestSuccessorGetsTheCommandLineAndEnvironmentOfTheStart(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	for _, mode := range driver.Some([]string{"grace", "netloop", "http"}, 3) {
		for _, tamper := range driver.Some([]string{"drop", "add"}, 3) {
			t.Run(mode+" "+tamper, func(t *testing.T) {
				t.Parallel()
				s := driver.Command{
					Argv0: filepath.Base(driver.Binary(t)),
					Args:  tcp("-mode", mode, "-tamper", tamper),
					Env:   []string{"SECRET=x", "PATH=" + filepath.Dir(driver.Binary(t))},
				}.Start(t)
				generation := s.Ready(1)
				started := commandLine(t, generation)
				for n := 2; n <= 3; n++ {
					generation.Signal(syscall.SIGUSR2)
					next := s.Ready(n)
					if got := commandLine(t, next); !slices.Equal(got, started) {
						t.Errorf("generation %d was started as %q, the first one as %q", n, got, started)
					}
					if env := next.Env(); !slices.Contains(env, "SECRET=x") || slices.Contains(env, "LATER=1") {
						t.Errorf("generation %d was started with what the program has made of the environment", n)
					}
					generation.Wait()
					generation = next
				}
			})
		}
	}
}

// As by exec -a and exec -l of bash, and @ in systemd's ExecStart=.
func TestMadeUpNameStartsTheFileThatRuns(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"made up", "-testserver", "sh", "/bin/sh", "/no/such/file"}, 4), func(t *testing.T, name string) {
		s := driver.Command{Argv0: name, Args: tcp()}.Start(t)
		generation := s.Ready(1)
		for n := 2; n <= 3; n++ {
			generation.Signal(syscall.SIGUSR2)
			next := s.Ready(n)
			generation.WaitExit(0)
			servedBy(t, next.Addrs[0], next)
			if got := commandLine(t, next)[0]; got != name {
				t.Errorf("the successor is called %q, want %q", got, name)
			}
			generation = next
		}
	})
}

// Programs written for facebookgo/grace ask for LISTEN_FDS after the first Listen.
func TestListenFDSStaysUntilTheProcessIsReady(t *testing.T) {
	t.Parallel()
	f, addr := listeningFile(t)
	activated := announced(t, "1", []*os.File{f}, "-mode", "netloop", "-listen", addr)
	for name, c := range driver.SomeOf(map[string]driver.Command{
		"fresh":     {Args: tcp("-mode", "netloop")},
		"activated": activated,
	}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.Start(t)
			generation := s.Ready(1)
			for n := 1; n <= 3; n++ {
				want := fmt.Sprintf("fds=1 for=%d", generation.Pid)
				if n == 1 && name == "fresh" {
					want = "fds= for="
				}
				if got := s.Line(fmt.Sprintf(`^announced-before pid=%d (.*)`, generation.Pid))[1]; got != want {
					t.Errorf("generation %d finds %q before it is ready, want %q", n, got, want)
				}
				if got := s.Line(fmt.Sprintf(`^announced-after pid=%d (.*)`, generation.Pid))[1]; got != "fds= for=" {
					t.Errorf("generation %d finds %q once it is ready", n, got)
				}
				generation.Signal(syscall.SIGUSR2)
				generation = s.Ready(n + 1)
			}
		})
	}
}

// A test harness or a supervisor of one's own may not know the process id.
func TestListenFDSWithoutListenPID(t *testing.T) {
	t.Parallel()
	f, addr := listeningFile(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, test := range driver.Some([]struct {
		name  string
		fds   string
		files []*os.File
		taken bool
	}{
		{"listening", "1", []*os.File{f}, true},
		{"not all listen", "2", []*os.File{f, null}, false},
		{"not all are there", "2", []*os.File{f}, false},
		{"leaked", "1", nil, false},
	}, 3) {
		t.Run(test.name, func(t *testing.T) {
			s := driver.Command{
				Args: tcp(), Env: []string{"LISTEN_FDS=" + test.fds}, ExtraFiles: test.files,
			}.Start(t)
			first := s.Ready(1)
			if taken := first.Addrs[0] == addr; taken != test.taken {
				t.Errorf("it serves %v; the launcher's socket is %s", first.Addrs, addr)
			}
			first.Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.WaitExit(0)
			servedBy(t, first.Addrs[0], second)
			second.Signal(syscall.SIGTERM)
			second.WaitExit(0)
		})
	}
}

// The program file says who the parent is where the command line cannot.
func TestLiveUpgradeOfAProgramThatChangesItsArguments(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	path := filepath.Join(t.TempDir(), "server")
	copyProgram(t, path, driver.Original(t))
	addr := freePort(t)
	s := driver.Command{Path: path, Args: []string{"-tamper", "add", "-listen", addr}}.Start(t)
	first := s.Ready(1)
	was := commandLine(t, first)
	load := startLoad(t, addr)
	copyProgram(t, path, driver.Binary(t))
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	if slices.Equal(was, commandLine(t, second)) {
		t.Error("the command lines are the same: this shows nothing")
	}
	awaitServedBy(t, addr, second, first)
	first.Wait()
	s.Line(fmt.Sprintf(`^returned pid=%d`, first.Pid))
	load.atLeast(20)
	if pids := load.nothingLost(); len(pids) != 2 {
		t.Errorf("answers by pid: %v, want 2 processes", pids)
	}
}

// What starts is no program of facebookgo/grace, so that a SIGTERM is not its word.
func TestStopWhileAnotherProgramHangsIsAStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := driver.NewLink(t, driver.Binary(t))
	s := driver.Command{Path: string(link), Args: tcp()}.Start(t)
	first := s.Ready(1)
	servedBy(t, first.Addrs[0], first)
	link.Move(t, script)
	first.Signal(syscall.SIGUSR2)
	s.Line(`restart: started pid \d+`)
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
	s.Line(`restart given up: `)
	s.Line(fmt.Sprintf(`terminated: stopping pid %d`, first.Pid))
	s.WaitEnd()
	driver.AwaitRefused(t, "tcp", first.Addrs[0])
}

// A sandbox may refuse all by which the end of a process is seen. It says nothing of that
// process.
func TestRestartsInASandbox(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("no sandbox here")
	}
	for _, supervised := range driver.Some([]bool{false, true}, 3) {
		t.Run(fmt.Sprintf("supervised %v", supervised), func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			s := driver.Start(t, tcp("-sandbox", fmt.Sprintf("-supervise=%v", supervised),
				"-faults", string(faults), "-start-timeout", "3s")...)
			first := s.Ready(1)
			load := startLoad(t, first.Addrs...)
			for fault, want := range map[string]string{
				"exit": "its end.* after .*before it was ready",
				"kill": "its end.* after .*before it was ready",
				"hang": "not ready within 3s.*; killed pid",
			} {
				mark := s.Mark()
				faults.Set(t, fault)
				first.Signal(syscall.SIGUSR2)
				s.Line("restart failed: .*"+want+".*; still serving with pid "+fmt.Sprint(first.Pid), mark)
				faults.Clear(t, fault)
			}
			first.Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.Wait()
			load.atLeast(10)
			if pids := load.nothingLost(); len(pids) != 2 || pids[first.Pid] == 0 || pids[second.Pid] == 0 {
				t.Errorf("answers by pid: %v, want some of %d and of %d", pids, first.Pid, second.Pid)
			}
		})
	}
}

// Whoever insists on a stop is heard, even while a successor that was given up cannot be
// ended.
func TestSecondStopIsHeardWhateverBecomesOfASuccessor(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("no sandbox here")
	}
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-unkillable", "-faults", string(faults))...)
	first := s.Ready(1)
	faults.Set(t, "hang")
	first.Signal(syscall.SIGUSR2)
	successor := s.Started(2)
	s.Line("^hanging")
	first.Insist(syscall.SIGTERM)
	s.Line("terminated again: ending now")
	successor.Signal(syscall.SIGKILL)
	s.WaitEnd()
}

// Programs that had copied it from gracehttp tell their parent themselves, and drain for
// as long as they like.
func TestProgramThatSignalsItsParentDecidesByItself(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-mode", "netloop", "-faults", string(faults))...)
	generation := s.Ready(1)
	faults.Set(t, "kill-parent")
	load := startLoad(t, generation.Addrs...)
	for n := 2; n <= 4; n++ {
		held := dial(t, generation.Addrs[0])
		held.servedBy(generation)
		generation.Signal(syscall.SIGUSR2)
		next := s.Ready(n)
		s.Line(fmt.Sprintf("^got pid=%d signal=terminated", generation.Pid))
		awaitServedBy(t, generation.Addrs[0], next, generation)
		held.servedBy(generation) // it drains
		held.Close()
		generation.WaitExit(0)
		servedBy(t, next.Addrs[0], next)
		generation = next
	}
	load.atLeast(10)
	load.nothingLost()
}

func TestStopOfAProgramWithItsOwnLoopLeavesTheSuccessorThatStarts(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-mode", "netloop", "-faults", string(faults))...)
	first := s.Ready(1)
	waiting, err := net.Dial("tcp", first.Addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	first.Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf("^got pid=%d signal=terminated", first.Pid))
	waiting.Close()
	first.WaitExit(0)
	faults.Clear(t, "slow")
	second := s.Ready(2)
	servedBy(t, second.Addrs[0], second)
}
