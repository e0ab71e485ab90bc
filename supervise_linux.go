package grace

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

var (
	// stopping are the signals that are meant for the service as a whole: as from
	// a terminal, every generation gets them, the draining ones too.
	stopping = []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP}

	// passedOn are the signals for the generation that serves.
	passedOn = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH}
)

func supervise() error {
	g := handoff.Self()
	if err := g.Err(); err != nil {
		return fmt.Errorf("grace: supervising: %w", err)
	}
	if g.Supervised() || g.Origin() == handoff.Succeeded || g.Origin() == handoff.SucceededLegacy {
		return nil
	}

	v := &supervisor{
		signals:      make(chan os.Signal, 64),
		children:     make(chan os.Signal, 1),
		notifySocket: os.Getenv(systemd.EnvSocket),
	}
	v.watch()
	s, err := g.Supervise()
	if err != nil {
		signal.Stop(v.signals)
		signal.Stop(v.children)
		signal.Reset(syscall.SIGTTIN, syscall.SIGTTOU)
		return fmt.Errorf("grace: supervising: %w", err)
	}
	v.group, v.states = s.First, s.States
	v.follow(s.First)
	std.logf("supervising with pid %d: started pid %d", os.Getpid(), s.First)
	status := v.run()
	std.logf("supervising with pid %d: exit status %d, as of pid %d", os.Getpid(), status, v.current.pid)
	os.Exit(status)
	return nil
}

// A supervisor is owned by one goroutine.
type supervisor struct {
	group        int           // process group of the generations
	current      *generation   // the one that serves
	generations  []*generation // that have served and may still run
	asked        os.Signal     // to stop, or nil
	held         bool          // a restart signal came before current was ready
	strangers    []ended       // the last ones
	states       <-chan handoff.State
	signals      chan os.Signal
	children     chan os.Signal // SIGCHLD
	notifySocket string
}

// A generation is one that serves, or has served.
type generation struct {
	pid     int
	process *os.Process // cannot be mistaken for another with its number
	ready   bool
	asked   bool                // to stop
	status  *syscall.WaitStatus // nil until it has ended
}

// An ended process was waited for.
type ended struct {
	pid    int
	status syscall.WaitStatus
}

// watch asks for the signals. SIGHUP stays ignored if nohup(1) has started us.
//
// Generations are in the background of our terminal. Those that read from it
// shall get an error, and those that write to it go on, rather than be stopped:
// ignored signals stay so in a new process.
func (v *supervisor) watch() {
	signal.Notify(v.children, syscall.SIGCHLD)
	signal.Notify(v.signals, syscall.SIGTSTP, syscall.SIGCONT)
	signal.Notify(v.signals, passedOn...)
	for _, sig := range stopping {
		if sig != syscall.SIGHUP || !signal.Ignored(sig) {
			signal.Notify(v.signals, sig)
		}
	}
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
}

// run returns the exit status.
func (v *supervisor) run() int {
	for {
		select {
		case state, ok := <-v.states:
			if ok {
				v.told(state)
			} else {
				v.states = nil // no generation is left, or the last one is just ending
			}
		case <-v.children:
			v.reap()
		case sig := <-v.signals:
			v.pass(sig)
		}

		switch last := v.current; {
		case v.states != nil:
		case last.status != nil:
			if last.status.Signaled() {
				return 128 + int(last.status.Signal())
			}
			return last.status.ExitStatus()
		case last.process.Signal(syscall.Signal(0)) != nil:
			// Its parent took the status, and was killed before it could tell.
			std.logf("supervising with pid %d: how pid %d ended is not known", os.Getpid(), last.pid)
			return 1
		}
	}
}

// pass passes a signal on.
func (v *supervisor) pass(sig os.Signal) {
	switch {
	case sig == syscall.SIGTSTP:
		v.suspend()
	case sig == syscall.SIGCONT:
		syscall.Kill(-v.group, syscall.SIGCONT)
	case slices.Contains(stopping, sig):
		v.stop(sig)
	case sig == restartSignal && !v.current.ready:
		v.held = true // it would end a process that does not look after it yet
	default:
		v.current.process.Signal(sig) // fails if it has just ended
	}
}

// stop asks all generations to stop. One that is not known yet, since it is just
// getting ready, is asked when it says so.
func (v *supervisor) stop(sig os.Signal) {
	if sig != syscall.SIGHUP { // which a generation may take for something else
		v.asked = sig
	}
	none := true
	for _, g := range v.generations {
		if g.status == nil {
			g.process.Signal(sig)
			g.asked, none = true, false
		}
	}
	if none {
		// Those that we know have ended. What is left was started by them.
		syscall.Kill(-v.group, sig.(syscall.Signal))
	}
}

// suspend stops the generations and this process as SIGTSTP does by default,
// which may be not at all: where nobody could continue us.
func (v *supervisor) suspend() {
	syscall.Kill(-v.group, syscall.SIGTSTP)
	// A signal to this very thread has taken effect when the call returns.
	runtime.LockOSThread()
	signal.Reset(syscall.SIGTSTP)
	syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGTSTP)
	signal.Notify(v.signals, syscall.SIGTSTP)
	runtime.UnlockOSThread()
	syscall.Kill(-v.group, syscall.SIGCONT)
}

// told acts on what a generation says, and passes it on to the manager, to which
// we are the main process.
func (v *supervisor) told(state handoff.State) {
	var lines []string
	for _, line := range strings.Split(state.Text, "\n") {
		if text, ok := strings.CutPrefix(line, "MAINPID="); ok {
			if pid, err := strconv.Atoi(text); err == nil {
				v.follow(pid)
			}
		} else if text, ok := strings.CutPrefix(line, handoff.StateEnded); ok {
			var e ended
			if _, err := fmt.Sscan(text, &e.pid, &e.status); err == nil {
				v.remember(e)
			}
		} else {
			lines = append(lines, line)
		}
	}
	if v.notifySocket != "" && len(lines) > 0 {
		if err := systemd.Notify(v.notifySocket, strings.Join(lines, "\n"), state.FDs...); err != nil {
			std.logf("supervising with pid %d: telling the service manager: %v", os.Getpid(), err)
		}
	}
	for _, fd := range state.FDs {
		syscall.Close(fd)
	}
}

// follow makes a generation the current one. The first one is so before it is
// ready.
func (v *supervisor) follow(pid int) {
	first := v.current == nil
	g := v.find(pid)
	if g == nil {
		if group, err := syscall.Getpgid(pid); err == nil && group != v.group {
			std.logf("supervising with pid %d: pid %d is not a generation of ours", os.Getpid(), pid)
			return
		}
		g = v.add(pid)
	}
	v.current = g
	if first {
		return
	}
	g.ready = true
	if v.asked != nil && !g.asked {
		g.process.Signal(v.asked)
		g.asked = true
	}
	if v.held {
		v.held = false
		g.process.Signal(restartSignal)
	}
}

func (v *supervisor) find(pid int) *generation {
	for _, g := range v.generations {
		if g.pid == pid && (g.status == nil || g == v.current) {
			return g
		}
	}
	return nil
}

// add enters a new generation, and strikes out those that have ended.
func (v *supervisor) add(pid int) *generation {
	v.generations = slices.DeleteFunc(v.generations, func(g *generation) bool { return g.status != nil })
	g := &generation{pid: pid}
	g.process, _ = os.FindProcess(pid) // never fails on Unix
	if g.process.Signal(syscall.Signal(0)) != nil {
		for _, e := range v.strangers {
			if e.pid == pid {
				g.status = &e.status // the last one with this number
			}
		}
	}
	v.generations = append(v.generations, g)
	return g
}

// reap waits for all children that have ended: generations, and whatever else
// this process has become the parent of.
func (v *supervisor) reap() {
	for {
		var e ended
		var err error
		e.pid, err = syscall.Wait4(-1, &e.status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || e.pid <= 0 {
			return
		}
		v.remember(e)
	}
}

// remember keeps how a process has ended. It may be a generation of which we are
// still to hear that it was ready.
func (v *supervisor) remember(e ended) {
	if g := v.find(e.pid); g != nil {
		g.status = &e.status
		g.process.Release()
		return
	}
	if len(v.strangers) == 16 {
		v.strangers = v.strangers[1:]
	}
	v.strangers = append(v.strangers, e)
}
