//go:build unix

package grace_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestStopWaitsForOpenConnections(t *testing.T) {
	t.Parallel()
	for _, mode := range driver.Some([]string{"grace", "bare"}, 3) {
		for _, sig := range driver.Some([]syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 3) {
			t.Run(mode+" "+sig.String(), func(t *testing.T) {
				t.Parallel()
				s := driver.Start(t, "-mode", mode, "-listen", "127.0.0.1:0", "-listen", "127.0.0.1:0")
				p := s.Ready(1)
				one, two := dial(t, p.Addrs[0]), dial(t, p.Addrs[1])
				one.servedBy(p)
				two.servedBy(p)
				p.Signal(sig)
				// All listeners are closed, though the first still waits.
				driver.AwaitRefused(t, network(p.Addrs[0]), p.Addrs[0])
				driver.AwaitRefused(t, network(p.Addrs[1]), p.Addrs[1])
				one.servedBy(p)
				two.servedBy(p)
				one.Close()
				two.servedBy(p)
				two.Close()
				p.WaitExit(0)
				s.Line(fmt.Sprintf(`%v: stopping pid %d`, sig, p.Pid))
				s.Line(fmt.Sprintf(`pid %d ends: drained within`, p.Pid))
			})
		}
	}
}

func TestStopWithoutConnectionsIsPrompt(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, tcp()...)
	p := s.Ready(1)
	start := time.Now()
	p.Signal(syscall.SIGTERM)
	p.WaitExit(0)
	if took := time.Since(start); took > patience {
		t.Errorf("it took %v", took)
	}
}

func TestTermTimeoutSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	const left = `grace: not drained within 200ms, left: 2 connections, the oldest open for \S+s$`
	start := func(t *testing.T) (*driver.Server, *driver.Process) {
		t.Parallel()
		s := driver.Start(t, tcp("-term-timeout", "200ms")...)
		p := s.Ready(1)
		for range 2 {
			dial(t, p.Addrs[0]).servedBy(p)
		}
		return s, p
	}
	t.Run("stop", func(t *testing.T) {
		s, p := start(t)
		p.Signal(syscall.SIGTERM)
		p.WaitExit(1)
		s.Line(`^failed pid=\d+ cause=deadline`)
		// Once in the log, once as the error that the program prints.
		for _, pattern := range []string{fmt.Sprintf(`pid %d ends after \S+: `, p.Pid) + left, `\d\d:\d\d:\d\d ` + left} {
			s.Line(pattern)
		}
	})
	t.Run("handoff", func(t *testing.T) {
		s, p := start(t)
		p.Signal(syscall.SIGUSR2)
		second := s.Ready(2)
		p.WaitExit(1)
		s.Line(left)
		servedBy(t, p.Addrs[0], second)
	})
}

func TestSecondSignalEndsTheProcessByDefault(t *testing.T) {
	t.Parallel()
	for _, signals := range driver.Some([][2]syscall.Signal{
		{syscall.SIGTERM, syscall.SIGTERM},
		{syscall.SIGINT, syscall.SIGINT},
		{syscall.SIGTERM, syscall.SIGINT},
	}, 3) {
		t.Run(signals[0].String()+" "+signals[1].String(), func(t *testing.T) {
			t.Parallel()
			s := driver.Start(t, tcp()...)
			p := s.Ready(1)
			dial(t, p.Addrs[0]).servedBy(p)
			p.Signal(signals[0])
			driver.AwaitRefused(t, network(p.Addrs[0]), p.Addrs[0])
			p.Insist(signals[1])
			status := p.Wait()
			if status == nil || !status.Signaled() || status.Signal() != signals[1] {
				t.Errorf("it ended with %s, want signal: %v", driver.Describe(status), signals[1])
			}
			s.Line(fmt.Sprintf(`%v again: ending now; left: 1 connection`, signals[1]))
		})
	}
	t.Run("ignored at the start", func(t *testing.T) { // as by a shell's job in the background
		t.Parallel()
		s := driver.Command{
			Path: "/bin/sh",
			Args: append([]string{"-c", `trap "" INT; exec "$@"`, "sh", driver.Binary(t)}, tcp()...),
		}.Start(t)
		p := s.Ready(1)
		dial(t, p.Addrs[0]).servedBy(p)
		p.Signal(syscall.SIGINT)
		driver.AwaitRefused(t, network(p.Addrs[0]), p.Addrs[0])
		p.Insist(syscall.SIGINT)
		p.WaitExit(128 + int(syscall.SIGINT))
	})
	t.Run("in a handoff", func(t *testing.T) {
		t.Parallel()
		s := driver.Start(t, tcp()...)
		p := s.Ready(1)
		dial(t, p.Addrs[0]).servedBy(p)
		p.Signal(syscall.SIGUSR2)
		second := s.Ready(2)
		s.Line(`drains 1 connection`)
		p.Signal(syscall.SIGTERM)
		s.Line(`terminated: pid \d+ is ending already; left: 1 connection`)
		p.Insist(syscall.SIGTERM)
		if status := p.Wait(); status == nil || !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Errorf("it ended with %s, want signal: terminated", driver.Describe(status))
		}
		servedBy(t, p.Addrs[0], second)
	})
}

func TestPredecessorFinishesWhatItHolds(t *testing.T) {
	t.Parallel()
	s, first, held := startHeld(t, tcp()...)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf(`restart: pid %d is ready after \S+; pid %d drains 1 connection`, second.Pid, first.Pid))
	awaitServedBy(t, first.Addrs[0], second, first)
	held.servedBy(first)
	s.Line(fmt.Sprintf(`draining pid %d: 1 connection, the oldest open for \S+`, first.Pid))
	held.servedBy(first)
	held.Close()
	first.WaitExit(0)
	servedBy(t, first.Addrs[0], second)
}

func TestNothingIsLostOverRestarts(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"grace", "plain", "bare"}, 3), func(t *testing.T, mode string) {
		args := tcp("-mode", mode)
		if mode != "bare" { // its own listener lets close remove the path
			args = append(args, "-listen", "unix:"+filepath.Join(t.TempDir(), "s"))
		}
		s := driver.Start(t, args...)
		generation := s.Ready(1)
		load := startLoad(t, generation.Addrs...)
		for n := 2; n <= 6; n++ {
			generation.Signal(syscall.SIGUSR2)
			next := s.Ready(n)
			generation.WaitExit(0)
			load.atLeast(20)
			generation = next
		}
		if pids := load.nothingLost(); len(pids) != 6 {
			t.Errorf("answers by pid: %v, want 6 processes", pids)
		}
	})
}

func TestRestartSignalWhileStoppingIsAnsweredInTheLog(t *testing.T) {
	t.Parallel()
	s, p, held := startHeld(t, tcp()...)
	p.Signal(syscall.SIGTERM)
	driver.AwaitRefused(t, network(p.Addrs[0]), p.Addrs[0])
	p.Signal(syscall.SIGUSR2)
	s.Line(fmt.Sprintf(`restart signal ignored: pid %d is stopping`, p.Pid))
	held.Close()
	p.WaitExit(0)
	if n := s.Count(`^start `); n != 1 {
		t.Errorf("%d processes were started, want 1", n)
	}
}

// A stop is meant for the service: a successor that is not ready ends with it, also where
// the listeners cannot be paused.
func TestStopWhileASuccessorStartsEndsBoth(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-mode", "bare", "-faults", string(faults))...)
	first := s.Ready(1)
	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	s.Line(`^waiting`)
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
	s.Started(2).Wait()
	s.WaitEnd()
	driver.AwaitRefused(t, network(first.Addrs[0]), first.Addrs[0])
}

// Wait takes over a restart that was asked for before it, and the signals with it.
func TestStopWhileARestartFromBeforeWaitIsUnderWay(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	faults.Set(t, "restart-first")
	s := driver.Start(t, tcp("-faults", string(faults))...)
	first := s.Ready(1)
	s.Line("^hanging")
	first.Signal(syscall.SIGTERM)
	first.WaitExit(0)
	s.Started(2).Wait()
	s.Line("^restarted .*this process is stopping")
}

func TestStopAfterTakingBackRemovesTheUnixPath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	faults := driver.NewFaults(t)
	s := driver.Start(t, "-faults", string(faults), "-listen", "unix:"+path)
	first := s.Ready(1)
	held := dial(t, path)
	held.servedBy(first)
	faults.Set(t, "kill-ready")
	first.Signal(syscall.SIGUSR2)
	s.Line(`serving again with pid`)
	first.Signal(syscall.SIGTERM)
	driver.AwaitRefused(t, network(path), path)
	held.Close()
	first.WaitExit(0)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the unix socket's file was left: %v", err)
	}
}

// Whoever stops the successor on purpose does not want its predecessor back.
func TestSuccessorThatWasStoppedIsNotTakenBack(t *testing.T) {
	t.Parallel()
	s, first, held := startHeld(t, tcp()...)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("drains 1 connection")
	other := dial(t, first.Addrs[0])
	other.servedBy(second)
	second.Signal(syscall.SIGTERM)
	// The predecessor's copies of the sockets do not take connections that nobody serves.
	driver.AwaitRefused(t, network(first.Addrs[0]), first.Addrs[0])
	other.servedBy(second)
	other.Close()
	second.Wait()
	s.Line(fmt.Sprintf(`pid %d ends: drained`, second.Pid))
	held.servedBy(first)
	drainsOn(t, s, first, held)
}

// drainsOn fails the test if the first generation has taken over again: it drains until
// this connection is closed.
func drainsOn(t *testing.T, s *driver.Server, first *driver.Process, held *client) {
	t.Helper()
	mark := s.Mark()
	s.Line(fmt.Sprintf(`draining pid %d`, first.Pid), mark)
	if n := s.Count("serving again"); n > 0 {
		t.Errorf("the predecessor has taken over again")
	}
	held.Close()
	first.WaitExit(0)
	s.WaitEnd()
}

// Not even if it then ends badly.
func TestSuccessorThatIsStoppingIsNotTakenBackIfItFails(t *testing.T) {
	t.Parallel()
	s, first, held := startHeld(t, tcp()...)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	dialServedBy(t, first.Addrs[0], second, first)
	second.Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf(`draining pid %d`, second.Pid)) // it has been at it for a while
	second.Signal(syscall.SIGKILL)
	second.Wait()
	drainsOn(t, s, first, held)
}

func TestGenerationsOverlap(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, tcp()...)
	const generations = 4
	var processes [generations]*driver.Process
	var held [generations]*client
	for n := range generations {
		processes[n] = s.Ready(n + 1)
		held[n] = dialServedBy(t, processes[0].Addrs[0], processes[n], processes[:n]...)
		if n < generations-1 {
			processes[n].Signal(syscall.SIGUSR2)
		}
	}
	for n := range generations {
		held[n].servedBy(processes[n])
	}
	// The middle ones end first.
	for _, n := range []int{1, 2, 0} {
		held[n].Close()
		processes[n].Wait()
		s.Line(fmt.Sprintf(`^returned pid=%d`, processes[n].Pid))
	}
	held[3].servedBy(processes[3])
	held[3].Close()
	processes[3].Signal(syscall.SIGTERM)
	processes[3].WaitExit(0)
}

// The third generation fails while the first two still drain: it is the second
// that takes over again.
func TestOnlyTheLastPredecessorTakesBack(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s, first, one := startHeld(t, tcp("-faults", string(faults))...)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	two := dialServedBy(t, first.Addrs[0], second, first)

	faults.Set(t, "kill-ready")
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	s.Line(fmt.Sprintf(`restart failed: successor pid %d: signal: killed, .*; serving again with pid %d`, third.Pid, second.Pid))
	for range 20 {
		servedBy(t, first.Addrs[0], second)
	}
	one.servedBy(first)
	if n := s.Count(fmt.Sprintf("serving again with pid %d", first.Pid)); n > 0 {
		t.Error("the first generation has taken over too")
	}
	one.Close()
	first.WaitExit(0)
	two.servedBy(second)
}

func TestRepeatedRestartsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-faults", string(faults))...)
	p := s.Ready(1)
	faults.Set(t, "exit")
	count := func() int {
		mark := s.Mark()
		p.Signal(syscall.SIGUSR2)
		s.Line("restart failed", mark)
		return len(p.Descriptors())
	}
	count() // what is opened once, such as for signals
	before := count()
	for range 5 {
		if after := count(); after > before {
			t.Fatalf("%d descriptors were open, and after another restart there are %d: %v", before, after, p.Descriptors())
		}
	}

	// Over generations too.
	faults.Clear(t, "exit")
	p.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	p.WaitExit(0)
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	second.WaitExit(0)
	servedBy(t, p.Addrs[0], third)
	third.Signal(syscall.SIGUSR2)
	fourth := s.Ready(4)
	third.WaitExit(0)
	servedBy(t, p.Addrs[0], fourth)
	if n := len(fourth.Sockets()); n > 3 {
		t.Errorf("the fourth generation has %s sockets open: %v", strconv.Itoa(n), fourth.Sockets())
	}
}

// A stop that comes at any moment of a restart never looks like a crash, and what
// is left afterwards works.
func TestStopAroundReadiness(t *testing.T) {
	t.Parallel()
	for i := range 10 {
		if !driver.Part(i, 8) {
			continue
		}
		after := time.Duration(i) * 5 * time.Millisecond
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			s, first, held := startHeld(t, tcp("-listen", "unix:"+path)...) // it does not end before the signal
			first.Signal(syscall.SIGUSR2)
			second := s.Started(2)
			driver.Instant(t, after)
			first.Signal(syscall.SIGTERM)
			held.servedBy(first)
			held.Close()
			first.Wait()
			// The signal may arrive when Wait has returned, and end what is left.
			s.Line(fmt.Sprintf(`^returned pid=%d`, first.Pid))

			// Either it was a stop, and the successor ends too; or the handoff was
			// faster, and the successor serves.
			serves := regexp.QuoteMeta(fmt.Sprintf("ready pid=%d ", second.Pid))
			for s.Count(serves) == 0 {
				select {
				case <-second.Exited():
					s.WaitEnd()
					driver.AwaitRefused(t, network(first.Addrs[0]), first.Addrs[0])
					return
				case <-time.After(time.Millisecond):
				}
			}
			for _, addr := range first.Addrs {
				servedBy(t, addr, second)
			}
			if n := s.Count(fmt.Sprintf("stopping pid %d", first.Pid)); n > 0 {
				t.Error("the process has stopped as if there were no successor")
			}
		})
	}
}

func TestLinesGoToTheLogger(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-log-prefix", "mine: ", "-faults", string(faults))...)
	first := s.Ready(1)
	faults.Set(t, "exit")
	first.Signal(syscall.SIGUSR2)
	s.Line(`^mine: restart failed: `)
	faults.Clear(t, "exit")
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.WaitExit(0)
	second.Signal(syscall.SIGTERM)
	second.WaitExit(0)
	s.WaitEnd()
	for _, line := range []string{`restart: started pid`, `drains no connections`, `ends: drained`, `terminated: stopping`} {
		if s.Count(`^mine: .*`+line) == 0 {
			t.Errorf("the logger got no line with %q", line)
		}
	}
	if n := s.Count(`^\d{4}/`); n > 0 {
		t.Errorf("%d lines went to the standard logger:\n%s", n, s.Output())
	}
}
