package grace

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// passedOn are the signals that a supervisor passes on to the current
// generation.
var passedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
	syscall.SIGALRM, syscall.SIGTERM, syscall.SIGWINCH,
}

func supervise() error {
	g := handoff.Self()
	if err := g.Err(); err != nil {
		return fmt.Errorf("grace: supervising: %w", err)
	}
	if g.Supervised() || g.Origin() == handoff.Succeeded || g.Origin() == handoff.SucceededLegacy {
		return nil
	}

	signals := make(chan os.Signal, 64)
	signal.Notify(signals, append([]os.Signal{syscall.SIGCHLD, syscall.SIGTSTP, syscall.SIGCONT}, passedOn...)...)
	s, err := g.Supervise()
	if err != nil {
		signal.Stop(signals)
		return fmt.Errorf("grace: supervising: %w", err)
	}
	v := &supervisor{group: s.First, notifySocket: os.Getenv(systemd.EnvSocket)}
	v.follow(s.First)
	std.logf("supervising with pid %d: started pid %d", os.Getpid(), s.First)
	os.Exit(v.run(s.States, signals))
	return nil
}

// A supervisor is owned by one goroutine.
type supervisor struct {
	group        int // process group of the generations
	current      int // process id of the one that serves
	process      *os.Process
	ended        map[int]syscall.WaitStatus // children that were waited for
	notifySocket string
}

// run returns the exit status.
func (v *supervisor) run(states <-chan handoff.State, signals <-chan os.Signal) int {
	for {
		select {
		case state, ok := <-states:
			if !ok {
				return v.exitStatus() // no generation is left
			}
			v.told(state)

		case sig := <-signals:
			switch sig {
			case syscall.SIGCHLD:
				v.reap()
			case syscall.SIGTSTP:
				syscall.Kill(-v.group, syscall.SIGTSTP)
				syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			case syscall.SIGCONT:
				syscall.Kill(-v.group, syscall.SIGCONT)
			default:
				v.process.Signal(sig) // fails if it has just ended
			}
		}
	}
}

// told acts on what a generation says, and passes it on to the manager, to which
// we are the main process.
func (v *supervisor) told(state handoff.State) {
	var lines []string
	for _, line := range strings.Split(state.Text, "\n") {
		if pid, ok := strings.CutPrefix(line, "MAINPID="); ok {
			if n, err := strconv.Atoi(pid); err == nil && n != v.current {
				v.follow(n)
			}
			continue
		}
		lines = append(lines, line)
	}
	if v.notifySocket != "" {
		if err := systemd.Notify(v.notifySocket, strings.Join(lines, "\n"), state.FDs...); err != nil {
			std.logf("supervising with pid %d: telling the service manager: %v", os.Getpid(), err)
		}
	}
	for _, fd := range state.FDs {
		syscall.Close(fd)
	}
}

// follow makes a generation the current one.
func (v *supervisor) follow(pid int) {
	v.current = pid
	v.process, _ = os.FindProcess(pid) // never fails on Unix
}

// reap waits for all children that have ended: generations, and whatever else
// this process has become the parent of.
func (v *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		v.remember(pid, status)
	}
}

func (v *supervisor) remember(pid int, status syscall.WaitStatus) {
	if v.ended == nil {
		v.ended = map[int]syscall.WaitStatus{}
	}
	v.ended[pid] = status
}

// exitStatus waits for the current generation, which has ended or is about to.
func (v *supervisor) exitStatus() int {
	for {
		if status, ok := v.ended[v.current]; ok {
			if status.Signaled() {
				return 128 + int(status.Signal())
			}
			return status.ExitStatus()
		}
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			std.logf("supervising with pid %d: how pid %d ended is not known: %v", os.Getpid(), v.current, err)
			return 1
		default:
			v.remember(pid, status)
		}
	}
}
