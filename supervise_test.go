//go:build linux

package grace_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// supervised starts the test server under a supervisor of its own.
func supervised(t *testing.T, args ...string) (s *driver.Server, supervisor, first *driver.Process) {
	t.Helper()
	s = driver.Start(t, httpArgs(append([]string{"-supervise"}, args...)...)...)
	return s, s.First(), s.Ready(1)
}

// restartUnderLoad restarts up to so many times, which is what restart does once, while
// clients send requests. It returns the last generation, and how many restarts there were.
// What the manager knows of shall stay as it is: sees returns the process ids.
func restartUnderLoad(t *testing.T, s *driver.Server, atMost int, restart func(), sees func() []int) (last *driver.Process, restarts int) {
	t.Helper()
	restarts = driver.Times(atMost, 10)
	current, known := s.Ready(1), sees()
	load := driver.StartLoad(t, current.Addrs[0], "/pid")
	for n := range restarts {
		restart()
		next := s.Ready(n + 2)
		load.Await(n + 2)
		current.Wait()
		if now := sees(); !slices.Equal(now, known) {
			t.Errorf("after restart %d the manager sees pids %v, before %v", n+1, now, known)
		}
		current = next
	}
	t.Logf("%d requests over %d restarts", load.NothingLost(), restarts)
	if n := s.Count("restart: started pid"); n != restarts {
		t.Errorf("%d restarts were asked for, %d begun", restarts, n)
	}
	return current, restarts
}

// inState waits until a process is in one of the states, see proc(5).
func inState(t *testing.T, s *driver.Server, p *driver.Process, states string) {
	t.Helper()
	driver.Eventually(t, fmt.Sprintf("pid %d to be in a state of %s", p.Pid, states), func() bool {
		return strings.Contains(states, p.State())
	})
}

func TestSupervisorIsTheParentOfAllGenerations(t *testing.T) {
	t.Parallel()
	s, supervisor, first := supervised(t)
	if first.Pid == supervisor.Pid || first.Parent() != supervisor.Pid {
		t.Fatalf("the first generation, pid %d, has parent %d, want the process that was started, %d", first.Pid, first.Parent(), supervisor.Pid)
	}
	if first.Group() != first.Pid {
		t.Errorf("the first generation is in process group %d, want its own, %d", first.Group(), first.Pid)
	}

	descriptors := len(supervisor.Descriptors())
	last, restarts := restartUnderLoad(t, s, 20, func() { supervisor.Signal(syscall.SIGUSR2) }, func() []int { return []int{supervisor.Parent()} })
	descriptors++ // it is asked how the last one will end
	if now := supervisor.Descriptors(); len(now) != descriptors {
		t.Errorf("the supervisor had %d descriptors, and has %v", descriptors, now)
	}
	if children := supervisor.Children(); !slices.Equal(children, []int{last.Pid}) {
		t.Errorf("the supervisor's children are %v, want the last generation, %d", children, last.Pid)
	}
	if last.Group() != first.Pid {
		t.Errorf("the last generation is in process group %d, want %d as the first", last.Group(), first.Pid)
	}
	if zombies := append(supervisor.Zombies(), last.Zombies()...); len(zombies) > 0 {
		t.Errorf("zombies: %v", zombies)
	}
	if n, own := s.Count("^supervised pid="), s.Count(fmt.Sprintf("^supervised pid=%d$", supervisor.Pid)); n != restarts+1 || own != 0 {
		t.Errorf("Supervise has returned in %d processes, %d times in the supervisor; want in %d generations", n, own, restarts+1)
	}

	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
	s.WaitEnd()
}

func TestSuperviseReturnsInASuccessorThatIsNotSupervised(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	script := filepath.Join(t.TempDir(), "server")
	content := fmt.Sprintf("#!/bin/sh\nexec %s -supervise \"$@\"\n", driver.Binary(t))
	if err := os.WriteFile(script, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	link := driver.NewLink(t, driver.Binary(t))
	s := driver.Command{Path: string(link), Args: httpArgs()}.Start(t)
	first := s.Ready(1)
	link.Move(t, script)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf("^supervised pid=%d$", second.Pid))
	first.WaitExit(0)
	if n := s.Count("supervising with pid"); n != 0 {
		t.Errorf("a supervisor was begun %d times", n)
	}
}

func TestSignalsReachAGenerationOnce(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t, "-report-signals")
	got := func(p *driver.Process, sig syscall.Signal) string {
		return fmt.Sprintf("^got pid=%d signal=%s$", p.Pid, strings.ReplaceAll(sig.String(), " ", "-"))
	}
	check := func(p *driver.Process) {
		t.Helper()
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGALRM, syscall.SIGWINCH} {
			mark := s.Mark()
			supervisor.Signal(sig)
			s.Line(got(p, sig), mark)
			// What was sent twice would have come before this one.
			supervisor.Signal(syscall.SIGUSR1)
			s.Line(got(p, syscall.SIGUSR1), mark)
			if n := s.Count(got(p, sig)); n != 1 {
				t.Errorf("%v has reached pid %d %d times", sig, p.Pid, n)
			}
		}
		if n := s.Count(got(p, syscall.SIGUSR1)); n != 4 {
			t.Errorf("%v was sent 4 times, and has reached pid %d %d times", syscall.SIGUSR1, p.Pid, n)
		}
	}
	check(first)
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.Wait()
	check(second)
	if n := s.Count("restart: started pid|restart signal ignored"); n != 1 {
		t.Errorf("SIGUSR2 was heard %d times", n)
	}
	supervisor.Signal(syscall.SIGINT)
	supervisor.WaitExit(0)
	s.WaitEnd()
	if n := s.Count("interrupt"); n != 1 {
		t.Errorf("SIGINT was heard %d times", n)
	}
}

// A predecessor that drains long names its successor when that one has a
// successor itself, which serves already.
func TestSignalsReachTheLatestOfThreeGenerations(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	m := newManager(t)
	s := m.start(httpArgs("-supervise", "-report-signals")...)
	supervisor, first := s.First(), s.Ready(1)
	slow(t, s, first.Addrs[0])
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	slow(t, s, second.Addrs[0])
	s.Line(fmt.Sprintf("pid %d drains", first.Pid))
	supervisor.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	m.next(fmt.Sprintf("WATCHDOG=1\nSTATUS=Serving with pid %d", second.Pid)) // that is when it is named
	supervisor.Signal(syscall.SIGUSR1)
	s.Line(fmt.Sprintf("^got pid=%d signal=%s$", third.Pid, strings.ReplaceAll(syscall.SIGUSR1.String(), " ", "-")))

	// Both drains are reported every second.
	m.next(fmt.Sprintf("WATCHDOG=1\nSTATUS=Serving with pid %d", third.Pid))
	known := len(m.all())
	for range 2 {
		m.next(fmt.Sprintf("STATUS=Serving with pid %d; pid %d drains .*", third.Pid, second.Pid))
	}
	for _, st := range m.all()[known:] {
		if !strings.Contains(st.text, fmt.Sprintf("Serving with pid %d", third.Pid)) {
			t.Errorf("pid %d serves, not: %v", third.Pid, st)
		}
	}
}

// A restart signal would end a process that does not look after it yet.
func TestRestartSignalWaitsForTheFirstGeneration(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	faults := driver.NewFaults(t)
	faults.Set(t, "slow")
	s := driver.Start(t, httpArgs("-supervise", "-faults", string(faults))...)
	s.Line("^waiting")
	s.First().Signal(syscall.SIGUSR2)
	// The next signal is passed on when this one has been dealt with.
	s.First().Signal(syscall.SIGCONT)
	faults.Clear(t, "slow")
	first := s.Ready(1)
	s.Ready(2)
	first.Wait()
	s.First().Signal(syscall.SIGTERM)
	s.First().WaitExit(0)
}

// As programs do that were written for facebookgo/grace.
func TestRestartSignalReachesAFirstGenerationThatOnlyWaits(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	faults.Set(t, "no-parent") // so that it calls no CloseParent
	s := driver.Start(t, tcp("-supervise", "-faults", string(faults))...)
	first := s.Ready(1)
	faults.Clear(t, "no-parent")
	s.First().Signal(syscall.SIGUSR2)
	s.Ready(2)
	first.Wait()
	s.First().Signal(syscall.SIGTERM)
	s.First().WaitExit(0)
}

func TestSupervisorExitsAsTheLastGeneration(t *testing.T) {
	t.Parallel()
	type server = driver.Server
	for name, test := range driver.SomeOf(map[string]struct {
		want  int
		fault string
		args  []string
		do    func(t *testing.T, s *server)
	}{
		"stopped": {0, "", nil, func(t *testing.T, s *server) {
			s.Ready(1)
			s.First().Signal(syscall.SIGTERM)
		}},
		"failed":                      {2, "exit", nil, func(*testing.T, *server) {}},
		"crashed before it was ready": {128 + 9, "kill", nil, func(*testing.T, *server) {}},
		"stopped before it was ready": {128 + 15, "hang", nil, func(t *testing.T, s *server) {
			s.Line("^hanging")
			s.First().Signal(syscall.SIGTERM)
		}},
		"killed": {128 + 9, "", nil, func(t *testing.T, s *server) {
			s.Ready(1).Signal(syscall.SIGKILL)
		}},
		"killed after a restart": {128 + 9, "", nil, func(t *testing.T, s *server) {
			first := s.Ready(1)
			s.First().Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.Wait()
			second.Signal(syscall.SIGKILL)
		}},
		"cut off": {1, "", []string{"-term-timeout", "50ms"}, func(t *testing.T, s *server) {
			slow(t, s, s.Ready(1).Addrs[0])
			s.First().Signal(syscall.SIGTERM)
		}},
		// Its predecessor is its parent, and takes its status.
		"stopped while its predecessor drains": {0, "", nil, func(t *testing.T, s *server) {
			first := s.Ready(1)
			answer := sleeper(t, s, first.Addrs[0], time.Second)
			s.First().Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			s.First().Signal(syscall.SIGTERM)
			second.Wait()
			if pid := <-answer; pid != first.Pid {
				t.Errorf("pid %d answers, want the predecessor, %d", pid, first.Pid)
			}
		}},
		"stopped, and its predecessor cut off": {0, "", []string{"-term-timeout", "1s"}, func(t *testing.T, s *server) {
			first := s.Ready(1)
			slow(t, s, first.Addrs[0])
			s.First().Signal(syscall.SIGUSR2)
			s.Ready(2)
			s.First().Signal(syscall.SIGTERM)
			s.Line(fmt.Sprintf("^failed pid=%d", first.Pid))
		}},
	}, 4) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			if test.fault != "" {
				faults.Set(t, test.fault)
			}
			args := append([]string{"-supervise", "-faults", string(faults)}, test.args...)
			s := driver.Start(t, httpArgs(args...)...)
			test.do(t, s)
			s.First().WaitExit(test.want)
			s.WaitEnd()
		})
	}
}

// As in server 2>&1 | head -1.
func TestSupervisorOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	reader, log, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	s := driver.Command{Args: tcp("-supervise"), Stderr: log}.Start(t)
	log.Close()
	first := s.Ready(1)
	s.First().Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.Wait()
	servedBy(t, second.Addrs[0], second)
	s.First().Signal(syscall.SIGTERM)
	s.First().WaitExit(0)
	s.WaitEnd()
}

// slow begins a request that is never answered, and returns when the server has
// it.
func slow(t *testing.T, s *driver.Server, addr string) {
	t.Helper()
	mark := s.Mark()
	c, err := net.DialTimeout("tcp", addr, driver.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, "GET /sleep?duration=1h HTTP/1.1\r\nHost: x\r\n\r\n")
	s.Line("^sleeping", mark)
}

func TestSecondStopEndsADrainingPredecessorToo(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t)
	slow(t, s, first.Addrs[0])
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	s.Line(fmt.Sprintf("pid %d drains", first.Pid))
	supervisor.Signal(syscall.SIGINT)
	s.Line(fmt.Sprintf("interrupt: pid %d is ending already", first.Pid))
	for range 2 { // a second later it cannot be the same request
		s.Line(fmt.Sprintf("draining pid %d", first.Pid), s.Mark())
	}
	supervisor.Signal(syscall.SIGINT)
	first.Wait()
	supervisor.Wait()
	s.WaitEnd()
}

// systemd's KillMode=control-group and pkill(1) send SIGTERM to the supervisor
// and to each generation.
func TestStopSentToAllProcessesIsOneStop(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t)
	one := hold(t, first.Addrs[0])
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf("^outcome pid=%d .*error=<nil>", first.Pid)) // it accepts no more
	other := hold(t, second.Addrs[0])
	for _, p := range []*driver.Process{first, second, supervisor} {
		p.Signal(syscall.SIGTERM)
	}
	other.finish(second)
	one.finish(first)
	supervisor.WaitExit(0)
	s.WaitEnd()
}

func TestStopReachesTheSuccessorOfAPredecessorOnStandby(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t, "-standby", "1h")
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	s.Line(fmt.Sprintf("pid %d is drained and stands by", first.Pid))
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
	s.WaitEnd()
}

func TestStopWhileASupervisedSuccessorStartsEndsAll(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	faults := driver.NewFaults(t)
	s, supervisor, _ := supervised(t, "-faults", string(faults))
	faults.Set(t, "hang")
	supervisor.Signal(syscall.SIGUSR2)
	s.Line("^hanging")
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
	s.WaitEnd()
}

func TestSupervisorFollowsARollback(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	faults := driver.NewFaults(t)
	s, supervisor, first := supervised(t, "-faults", string(faults))
	slow(t, s, first.Addrs[0])
	faults.Set(t, "kill-ready")
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	s.Line(fmt.Sprintf("serving again with pid %d", first.Pid))
	faults.Clear(t, "kill-ready")
	supervisor.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	if third.Parent() != supervisor.Pid {
		t.Errorf("the next successor's parent is pid %d, want the supervisor, %d", third.Parent(), supervisor.Pid)
	}
	first.Signal(syscall.SIGKILL)
	first.Wait()
	third.Signal(syscall.SIGSYS) // status 2 of the Go runtime
	supervisor.WaitExit(2)
	s.WaitEnd()
}

// Also when it has no time to see that the successor has ended before it hears who serves.
func TestSupervisorFollowsARollbackThatIsFasterThanItself(t *testing.T) {
	t.Parallel()
	s, supervisor, first := supervised(t)
	h := hold(t, first.Addrs[0])
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf("restart: pid %d is ready", second.Pid))
	hold(t, first.Addrs[0]).finish(second) // and the supervisor has heard of it, most likely
	thaw := supervisor.Freeze()
	second.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf("serving again with pid %d", first.Pid))
	thaw()
	supervisor.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	h.finish(first)
	first.Wait()
	third.Signal(syscall.SIGSYS) // status 2 of the Go runtime
	supervisor.WaitExit(2)
	s.WaitEnd()
}

func TestSupervisorFollowsASuccessorWhosePredecessorWasKilled(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	faults := driver.NewFaults(t)
	s, supervisor, first := supervised(t, "-faults", string(faults))
	faults.Set(t, "slow")
	supervisor.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	first.Signal(syscall.SIGKILL)
	first.Wait()
	faults.Clear(t, "slow")
	second := s.Ready(2)
	if second.Addrs[0] != first.Addrs[0] {
		t.Errorf("the successor listens on %v, the predecessor on %v", second.Addrs, first.Addrs)
	}
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(3)
	second.Wait()
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
	s.WaitEnd()
}

func TestSupervisorFollowsProgramsWithTheirOwnLoop(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, driver.Some([]string{"grace", "bare", "ownloop", "netloop"}, 4), func(t *testing.T, mode string) {
		s := driver.Start(t, tcp("-supervise", "-mode", mode)...)
		supervisor, current := s.First(), s.Ready(1)
		for n := range 3 {
			supervisor.Signal(syscall.SIGUSR2)
			next := s.Ready(n + 2)
			current.Wait()
			current = next
		}
		servedBy(t, current.Addrs[0], current)
		supervisor.Signal(syscall.SIGTERM)
		supervisor.WaitExit(0)
		s.WaitEnd()
	})
}

func TestSupervisorFollowsASuccessorOfTheOldLibrary(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for name, replace := range map[string]func(t *testing.T, path, program string){
		"by a link": func(t *testing.T, path, program string) { driver.Link(path).Move(t, program) },
		"in place":  func(t *testing.T, path, program string) { copyProgram(t, path, program) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "server")
			replace(t, path, driver.Binary(t))
			s := driver.Command{Path: path, Args: tcp("-supervise")}.Start(t)
			first := s.Ready(1)
			replace(t, path, driver.Original(t))
			s.First().Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.Wait()
			servedBy(t, first.Addrs[0], second)

			// And back.
			replace(t, path, driver.Binary(t))
			s.First().Signal(syscall.SIGUSR2)
			third := s.Ready(3)
			second.Wait()
			servedBy(t, first.Addrs[0], third)
			s.First().Signal(syscall.SIGUSR2)
			fourth := s.Ready(4)
			third.Wait()
			servedBy(t, first.Addrs[0], fourth)
			s.First().Signal(syscall.SIGTERM)
			s.First().WaitExit(0)
			s.WaitEnd()
		})
	}
}

func TestGenerationsStopWhenTheirSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t)
	one := sleeper(t, s, first.Addrs[0], 4*time.Second) // longer than a restart
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf("^outcome pid=%d .*error=<nil>", first.Pid)) // it accepts no more
	other := sleeper(t, s, second.Addrs[0], 500*time.Millisecond)
	supervisor.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf("the supervisor has ended: stopping pid %d", second.Pid))
	if pid := <-one; pid != first.Pid {
		t.Errorf("pid %d answers, want the predecessor, %d", pid, first.Pid)
	}
	if pid := <-other; pid != second.Pid {
		t.Errorf("pid %d answers, want the successor, %d", pid, second.Pid)
	}
	first.WaitExit(0)
	s.WaitEnd()
}

// One that takes over again, since the successor has not heard of it, does so for nobody.
func TestGenerationThatServesAgainStopsIfItsSupervisorWasKilled(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t)
	busy := sleeper(t, s, first.Addrs[0], 2*time.Second)
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line(fmt.Sprintf("^outcome pid=%d .*error=<nil>", first.Pid))
	second.Freeze()
	supervisor.Signal(syscall.SIGKILL)
	supervisor.Wait()
	second.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf("serving again with pid %d", first.Pid))
	s.Line(fmt.Sprintf("the supervisor has ended: stopping pid %d", first.Pid))
	if pid := <-busy; pid != first.Pid {
		t.Errorf("pid %d answers, want %d", pid, first.Pid)
	}
	s.WaitEnd()
}

func TestStartingGenerationsStopWhenTheirSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for name, restarted := range driver.SomeOf(map[string]bool{"first": false, "successor": true}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			if !restarted {
				faults.Set(t, "slow")
			}
			s := driver.Start(t, httpArgs("-supervise", "-faults", string(faults))...)
			if restarted {
				s.Ready(1)
				faults.Set(t, "slow")
				s.First().Signal(syscall.SIGUSR2)
			}
			s.Line("^waiting")
			s.First().Signal(syscall.SIGKILL)
			s.First().Wait()
			faults.Clear(t, "slow")
			s.WaitEnd()
		})
	}
}

func TestProgramsWithTheirOwnLoopGetSIGTERMWhenTheirSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, driver.Some([]string{"ownloop", "netloop"}, 3), func(t *testing.T, mode string) {
		s := driver.Start(t, tcp("-supervise", "-mode", mode)...)
		first := s.Ready(1)
		s.First().Signal(syscall.SIGKILL)
		s.Line(fmt.Sprintf("^got pid=%d signal=terminated", first.Pid))
		first.WaitExit(0)
		s.WaitEnd()
	})
}

func TestSupervisorReapsOrphansOfTheApplication(t *testing.T) {
	t.Parallel()
	s, supervisor, first := supervised(t, "-orphan")
	orphan, err := strconv.Atoi(s.Line(`^orphan .* child=(\d+)`)[1])
	if err != nil {
		t.Fatal(err)
	}
	p, _ := os.FindProcess(orphan)
	defer p.Kill()
	if children := supervisor.Children(); !slices.Contains(children, orphan) {
		t.Fatalf("the supervisor's children are %v, want pid %d among them", children, orphan)
	}
	p.Kill()
	driver.Eventually(t, "the orphan to be waited for", func() bool { return p.Signal(syscall.Signal(0)) != nil })
	if zombies := supervisor.Zombies(); len(zombies) > 0 {
		t.Errorf("zombies: %v", zombies)
	}

	// One that runs on does not keep the supervisor.
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	first.Wait()
	later, _ := strconv.Atoi(s.Line(fmt.Sprintf(`^orphan pid=%d child=(\d+)`, s.Ready(2).Pid))[1])
	if q, err := os.FindProcess(later); err == nil {
		defer q.Kill()
	}
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
}

// A process outside that gets hold of the generations' socket must not be able
// to have a stranger signalled.
func TestSupervisorFollowsOnlyGenerationsOfItsOwn(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	stranger := exec.Command("sleep", "1000")
	stranger.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Process.Kill()
	s, supervisor, first := supervised(t, "-report-signals")

	fd := stateSocket(t, first)
	defer syscall.Close(fd)
	for _, pid := range []int{stranger.Process.Pid, os.Getpid(), 1, 0, -1} {
		if err := syscall.Sendto(fd, fmt.Appendf(nil, "MAINPID=%d", pid), syscall.MSG_NOSIGNAL, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} { // one for all, one for the current
		supervisor.Signal(sig)
		s.Line(fmt.Sprintf("^got pid=%d signal=%s$", first.Pid, strings.ReplaceAll(sig.String(), " ", "-")))
	}
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatal(err)
	}
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stranger.Process.Pid)); err != nil || strings.Contains(string(state), ") Z") {
		t.Errorf("the stranger has ended: %s %v", state, err)
	}
}

// stateSocket returns a copy of the socket on which a generation talks to its
// supervisor.
func stateSocket(t *testing.T, p *driver.Process) int {
	t.Helper()
	const pidfdOpen, pidfdGetfd = 434, 438
	pidfd, _, errno := syscall.Syscall(pidfdOpen, uintptr(p.Pid), 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer syscall.Close(int(pidfd))
	for _, d := range p.Sockets() {
		fd, _, errno := syscall.Syscall(pidfdGetfd, pidfd, uintptr(d.FD), 0)
		if errno != 0 {
			t.Skipf("another process's descriptors cannot be had here: pidfd_getfd: %v", errno)
		}
		if kind, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE); err == nil && kind == syscall.SOCK_SEQPACKET {
			return int(fd)
		}
		syscall.Close(int(fd))
	}
	t.Fatalf("pid %d has no such socket: %v", p.Pid, p.Sockets())
	return -1
}

func TestStatesReachTheManagerFromTheSupervisor(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.startWith([]string{"WATCHDOG_USEC=400000"}, httpArgs("-supervise", "-store")...)
	supervisor, first := s.First(), s.Ready(1)
	m.next("READY=1")
	if st := m.next("FDSTORE=1"); st.fds != 1 {
		t.Errorf("%v: want one descriptor", st)
	}
	m.next("WATCHDOG=1")
	if env := first.Env(); slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") }) {
		t.Errorf("a generation has the manager's socket, which does not trust it")
	}

	supervisor.Signal(syscall.SIGUSR2)
	m.next("RELOADING=1")
	m.next("READY=1")
	first.Wait()
	m.next("WATCHDOG=1")
	supervisor.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	supervisor.WaitExit(0)
	for _, st := range m.all() {
		if st.from != supervisor.Pid {
			t.Errorf("from pid %d, want all from the supervisor, %d: %v", st.from, supervisor.Pid, st)
		}
		if strings.Contains(st.text, "MAINPID=") || strings.Contains(st.text, "GRACE_") || strings.TrimSpace(st.text) == "" {
			t.Errorf("not for the manager: %v", st)
		}
	}
}

func TestSocketsOfTheManagerReachTheGenerations(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("no systemd-socket-activate here")
	}
	dir, err := os.MkdirTemp("", "sockets") // a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	web, admin := filepath.Join(dir, "web"), filepath.Join(dir, "admin")
	s := driver.Command{Path: activate, Args: []string{
		"--listen=" + web, "--listen=" + admin, "--fdname=web:admin", "--setenv=PATH",
		driver.Binary(t), "-supervise", "-mode", "http", "-listen", "systemd:admin", "-listen", "unix:" + web,
	}}.Start(t)
	s.Line("Listening on .*admin")
	c, err := net.Dial("unix", web)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	supervisor, first := s.First(), s.Ready(1)
	if want := []string{admin, web}; !slices.Equal(first.Addrs, want) {
		t.Errorf("the first generation listens on %v, want %v", first.Addrs, want)
	}
	if sockets := supervisor.Sockets(); len(sockets) != 1 {
		t.Errorf("the supervisor has %v, want none but that to the generations", sockets)
	}
	load := driver.StartLoad(t, admin, "/pid")
	supervisor.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	first.Wait()
	load.NothingLost()
	if !slices.Equal(second.Addrs, first.Addrs) {
		t.Errorf("the second generation listens on %v, the first on %v", second.Addrs, first.Addrs)
	}
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
	for _, path := range []string{web, admin} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("a socket of the manager's: %v", err)
		}
	}
}

func TestSupervisorSaysWhyThereIsNoFirstGeneration(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	// The program's file is gone before it can be started again.
	path := filepath.Join(t.TempDir(), "server")
	copyProgram(t, path, driver.Binary(t))
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s := driver.Command{Path: "/proc/self/fd/3", Argv0: path, Args: httpArgs("-supervise"), ExtraFiles: []*os.File{file}}.Start(t)
	s.Line("grace: supervising: starting " + path + ": no such file or directory")
	s.First().WaitExit(1)
}

func TestSupervisorCostsNothingWhileGenerationsServe(t *testing.T) {
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t)
	load := driver.StartPacedLoad(t, first.Addrs[0], "/pid", time.Millisecond)
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	first.Wait()
	requests := driver.Times(4000, 12)
	var used time.Duration
	for range 5 { // what the restart has cost may be counted late
		before := supervisor.CPU()
		load.More(requests)
		if used = supervisor.CPU() - before; used == 0 {
			break
		}
	}
	if used != 0 {
		t.Errorf("the supervisor has used %v of processor time while its generation answered %d requests", used, requests)
	}
	load.NothingLost()
	resident, own := supervisor.Memory("VmRSS"), supervisor.Memory("RssAnon")
	t.Logf("supervisor: %.1f MiB resident, of which %.1f MiB its own, the rest the program's file", float64(resident)/(1<<20), float64(own)/(1<<20))
	if generation := s.Ready(2).Memory("RssAnon"); own > generation {
		t.Errorf("the supervisor has %d bytes of memory for itself, a generation %d", own, generation)
	}
	if sockets := supervisor.Sockets(); len(sockets) != 1 {
		t.Errorf("the supervisor has %v open, want one socket, to the generations", sockets)
	}
}

func TestSupervisorUnderNohupOutlivesTheHangup(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s := driver.Command{Path: "nohup", Args: append([]string{driver.Binary(t)}, httpArgs("-supervise")...)}.Start(t)
	supervisor, first := s.First(), s.Ready(1)
	supervisor.Signal(syscall.SIGHUP)
	first.Signal(syscall.SIGHUP)
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	first.Wait()
	supervisor.Signal(syscall.SIGTERM)
	supervisor.WaitExit(0)
}

func TestSupervisorAsPID1(t *testing.T) {
	t.Parallel()
	s := driver.Command{Args: httpArgs("-supervise", "-orphan")}.StartAsPID1(t)
	s.Ready(1)
	supervisor := s.Started(2)
	last, restarts := restartUnderLoad(t, s, 20, func() { supervisor.Signal(syscall.SIGUSR2) }, func() []int { return s.First().Children() })
	if last.Parent() != supervisor.Pid {
		t.Errorf("the last generation's parent is pid %d, want %d", last.Parent(), supervisor.Pid)
	}
	if zombies := append(supervisor.Zombies(), last.Zombies()...); len(zombies) > 0 {
		t.Errorf("zombies: %v", zombies)
	}

	// Nobody could continue the first process of a container; nor is it stopped.
	supervisor.Signal(syscall.SIGTSTP)
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(restarts + 2)
	last.Wait()
	supervisor.Signal(syscall.SIGTERM)
	s.First().WaitExit(0) // of unshare, which exits as its child
	s.WaitEnd()
}

func TestSupervisorAsPID1ExitsAsTheLastGeneration(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s := driver.Command{Args: httpArgs("-supervise")}.StartAsPID1(t)
	s.Ready(1).Signal(syscall.SIGKILL)
	s.First().WaitExit(128 + 9)
	s.WaitEnd()
}

func TestSupervisorUnderTini(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	tini, err := exec.LookPath("tini")
	if err != nil {
		t.Skip("no tini here")
	}
	s := driver.Command{Path: tini, Args: append([]string{"--", driver.Binary(t)}, httpArgs("-supervise")...)}.StartAsPID1(t)
	s.Ready(1)
	supervisor := s.Started(2)
	init, err := os.FindProcess(supervisor.Parent())
	if err != nil {
		t.Fatal(err)
	}
	sees := func() []int { return s.First().Children() }
	if children := sees(); !slices.Equal(children, []int{init.Pid}) {
		t.Fatalf("unshare's children are %v, want tini, %d", children, init.Pid)
	}
	restartUnderLoad(t, s, 20, func() { init.Signal(syscall.SIGUSR2) }, func() []int { return childrenOf(t, init.Pid) })
	init.Signal(syscall.SIGTERM)
	s.First().WaitExit(0)
	s.WaitEnd()
}

// childrenOf returns the children of a process that is none of the server's.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(b)) {
		child, _ := strconv.Atoi(field)
		children = append(children, child)
	}
	return children
}

// A shell's foreground job: what a person types reaches it, and it stays the
// same job over restarts.
func TestSupervisorIsAShellsForegroundJob(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	term := driver.StartTerminal(t)
	s, output := driver.Follow(t)
	term.Type(fmt.Sprintf("%s %s >%s 2>&1", driver.Binary(t), strings.Join(httpArgs("-supervise"), " "), output))
	current := s.Ready(1)
	supervisor := s.Started(1)
	inForeground := func() []int { return []int{supervisor.Group(), supervisor.Foreground()} }
	if supervisor.Foreground() != supervisor.Pid {
		t.Fatalf("process group %d is in the foreground, want the supervisor's, %d", supervisor.Foreground(), supervisor.Pid)
	}
	if current.Group() == supervisor.Pid {
		t.Errorf("the first generation is in the supervisor's process group: Ctrl-C reaches it twice")
	}

	suspend := func() {
		t.Helper()
		load := driver.StartLoad(t, current.Addrs[0], "/pid")
		for _, further := range []string{"bg", "fg"} {
			term.Press("C-z")
			term.See("Stopped")
			inState(t, s, supervisor, "T")
			inState(t, s, current, "T")
			term.Type("clear; " + further)
			inState(t, s, supervisor, "SR")
			load.More(100)
			if further == "bg" {
				if supervisor.Foreground() == supervisor.Pid {
					t.Errorf("after bg the job is still in the foreground")
				}
				term.Type("clear; fg")
			}
			driver.Eventually(t, "the job to be in the foreground", func() bool { return supervisor.Foreground() == supervisor.Pid })
		}
		load.NothingLost()
	}
	suspend()
	current, _ = restartUnderLoad(t, s, 20, func() { supervisor.Signal(syscall.SIGUSR2) }, inForeground)
	suspend()

	answer := sleeper(t, s, current.Addrs[0], 500*time.Millisecond)
	term.Press("C-c")
	if pid := <-answer; pid != current.Pid {
		t.Errorf("after Ctrl-C pid %d answers what has begun, want %d", pid, current.Pid)
	}
	s.WaitEnd()
	if n := s.Count("interrupt"); n != 1 {
		t.Errorf("Ctrl-C has reached the generation %d times", n)
	}
	term.Type("clear; echo status=$?")
	term.See("status=0")
}

func TestClosedTerminalEndsAllGenerations(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for _, suspended := range driver.Some([]bool{false, true}, 3) {
		t.Run(fmt.Sprintf("suspended=%v", suspended), func(t *testing.T) {
			t.Parallel()
			term := driver.StartTerminal(t)
			s, output := driver.Follow(t)
			term.Type(fmt.Sprintf("%s %s >%s 2>&1", driver.Binary(t), strings.Join(httpArgs("-supervise"), " "), output))
			first := s.Ready(1)
			supervisor := s.Started(1)
			slow(t, s, first.Addrs[0])
			supervisor.Signal(syscall.SIGUSR2)
			s.Ready(2)
			s.Line("drains 1 connection")
			if suspended {
				term.Press("C-z")
				inState(t, s, supervisor, "T")
			}
			term.Close()
			s.WaitEnd()
		})
	}
}

// Without a shell, as under ssh or docker run -it, nobody could continue what
// Ctrl-Z stops.
func TestCtrlZWithoutAShellStopsNothing(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, output := driver.Follow(t)
	command := fmt.Sprintf("exec %s %s >%s 2>&1", driver.Binary(t), strings.Join(httpArgs("-supervise"), " "), output)
	term := driver.StartTerminal(t, "sh", "-c", command)
	first := s.Ready(1)
	supervisor := s.Started(1)
	for n := range 3 {
		term.Press("C-z")
		supervisor.Signal(syscall.SIGUSR2)
		s.Ready(n + 2)
	}
	last := s.Ready(4)
	inState(t, s, supervisor, "SR")
	inState(t, s, last, "SR")
	first.Wait()
	term.Press("C-c")
	s.WaitEnd()
}

// The terminal stops what writes to it or reads from it in the background.
func TestGenerationsAreNotStoppedByTheirTerminal(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	dir, err := os.MkdirTemp("", "tostop") // a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	client := &http.Client{
		Timeout: driver.Patience,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	}
	get := func(path string) int {
		t.Helper()
		resp, err := client.Get("http://server" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			t.Fatalf("%s: %s", path, b)
		}
		return pid
	}

	term := driver.StartTerminal(t)
	term.Type("stty tostop; " + driver.Binary(t) + " -supervise -read-stdin -mode http -listen unix:" + socket)
	term.See("ready pid=")
	term.See("stdin pid=") // it was not stopped when it read
	second := get("/restart")
	term.See("stdin pid=" + strconv.Itoa(second))
	for deadline := time.Now().Add(driver.Patience); get("/pid") != second; {
		if time.Now().After(deadline) {
			t.Fatalf("after %v the successor, pid %d, does not answer", driver.Patience, second)
		}
	}
	term.Press("C-c")
	term.Type("clear; echo status=$?")
	term.See("status=0")
}

// The ways of those who know the process by its file: monit, or a script.
func TestRestartByPIDFile(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for _, supervise := range driver.Some([]bool{false, true}, 3) {
		t.Run(fmt.Sprintf("supervised=%v", supervise), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "server.pid")
			s := driver.Start(t, httpArgs("-pidfile", file, fmt.Sprintf("-supervise=%v", supervise))...)
			names := func(p *driver.Process) {
				t.Helper()
				driver.Eventually(t, fmt.Sprintf("the file to name pid %d", p.Pid), func() bool {
					pid, _ := readPIDFile(file)
					return pid == p.Pid
				})
			}
			names(s.Ready(1))
			stop, read := make(chan bool), make(chan int)
			go func() { // whoever reads the file finds a process
				n := 0
				for ; ; n++ {
					if pid, err := readPIDFile(file); err != nil || pid < 2 {
						t.Errorf("the file names pid %d: %v", pid, err)
					}
					select {
					case <-stop:
						read <- n
						return
					case <-time.After(100 * time.Microsecond):
					}
				}
			}()
			generation := 0
			last, _ := restartUnderLoad(t, s, 5, func() {
				generation++
				names(s.Ready(generation))
				if out, err := exec.Command("sh", "-c", "kill -USR2 $(cat "+file+")").CombinedOutput(); err != nil {
					t.Errorf("kill: %v: %s", err, out)
				}
			}, func() []int { return nil })
			stop <- true
			t.Logf("the file was read %d times", <-read)
			names(last)
			last.Signal(syscall.SIGTERM)
			s.First().Wait()
			s.WaitEnd()
			if entries, _ := os.ReadDir(filepath.Dir(file)); len(entries) > 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func readPIDFile(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
}

func TestPIDFileNamesWhoServesAfterARollback(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	faults, file := driver.NewFaults(t), filepath.Join(t.TempDir(), "server.pid")
	s := driver.Start(t, httpArgs("-pidfile", file, "-faults", string(faults))...)
	first := s.Ready(1)
	slow(t, s, first.Addrs[0])
	faults.Set(t, "kill-ready")
	first.Signal(syscall.SIGUSR2)
	s.Line(fmt.Sprintf("serving again with pid %d", first.Pid))
	driver.Eventually(t, "the file to name the first generation again", func() bool {
		pid, _ := readPIDFile(file)
		return pid == first.Pid
	})
}

func TestPIDFileIsGoneAfterASecondStop(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	file := filepath.Join(t.TempDir(), "server.pid")
	s := driver.Start(t, httpArgs("-pidfile", file)...)
	first := s.Ready(1)
	slow(t, s, first.Addrs[0])
	first.Signal(syscall.SIGTERM)
	s.Line("stopping pid")
	first.Insist(syscall.SIGTERM)
	s.WaitEnd()
	if pid, err := readPIDFile(file); !os.IsNotExist(err) {
		t.Errorf("the file names pid %d (%v), which has ended", pid, err)
	}
}

func TestPIDFileOfAKilledProcessIsReplaced(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	file := filepath.Join(t.TempDir(), "server.pid")
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := driver.Start(t, httpArgs("-pidfile", file)...)
	first := s.Ready(1)
	driver.Eventually(t, "the file to name the new process", func() bool {
		pid, _ := readPIDFile(file)
		return pid == first.Pid
	})
}

// A background job of an interactive shell, without a supervisor: the job ends
// with the first generation, and the server goes on.
func TestServerOutlivesTheShellsJob(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	file := filepath.Join(t.TempDir(), "server.pid")
	term := driver.StartTerminal(t)
	s, output := driver.Follow(t)
	term.Type(fmt.Sprintf("%s %s -pidfile %s >%s 2>&1 &", driver.Binary(t), strings.Join(httpArgs(), " "), file, output))
	s.Ready(1)
	generation := 0
	last, _ := restartUnderLoad(t, s, 5, func() {
		generation++
		driver.Eventually(t, "the file to name the generation that serves", func() bool {
			pid, _ := readPIDFile(file)
			return pid == s.Ready(generation).Pid
		})
		term.Type("kill -USR2 $(cat " + file + ")")
	}, func() []int { return nil })
	term.Press("C-c") // is for the shell
	term.Type("clear; jobs; echo jobs=$(jobs | wc -l)")
	term.See("jobs=0")
	answer := sleeper(t, s, last.Addrs[0], time.Millisecond)
	if pid := <-answer; pid != last.Pid {
		t.Errorf("pid %d answers, want %d", pid, last.Pid)
	}
	term.Type("kill $(cat " + file + ")")
	s.WaitEnd()
}

// What is meant for all processes may come twice.
func TestTwoSignalsAtOnceEndStandby(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	s, supervisor, first := supervised(t, "-standby", "1h")
	supervisor.Signal(syscall.SIGUSR2)
	s.Ready(2)
	s.Line("stands by")
	thaw := first.Freeze()
	first.Signal(syscall.SIGTERM)
	first.Signal(syscall.SIGINT)
	thaw()
	first.Wait()
}

// A predecessor, or a supervisor, need not be looked into: whoever has made the control
// socket speaks over it.
func TestRestartsWhereProgramFilesAreClosedToOthers(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for _, supervised := range []bool{false, true} {
		t.Run(fmt.Sprintf("supervised %v", supervised), func(t *testing.T) {
			t.Parallel()
			c := driver.Command{Args: tcp("-closed", fmt.Sprintf("-supervise=%v", supervised))}
			if os.Getuid() == 0 {
				c.User = anotherUser // to root nothing is closed
			}
			s := c.Start(t)
			current := s.Ready(1)
			load := startLoad(t, current.Addrs...)
			for n := 2; n <= 3; n++ {
				current.Signal(syscall.SIGUSR2)
				next := s.Ready(n)
				current.Wait()
				current = next
				servedBy(t, current.Addrs[0], current)
			}
			load.nothingLost()
		})
	}
}
