package grace

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/facebookgo/grace/internal/handoff"
)

var (
	// stopSignals are the signals that are meant for the service as a whole: as from
	// a terminal, every generation gets them, the draining ones too.
	stopSignals = []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP}

	// servingSignals are the signals for the generation that serves.
	servingSignals = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH}
)

func supervise() error {
	g := handoff.Self()
	if g.Err != nil {
		return fmt.Errorf("grace: supervising: %w", g.Err)
	}
	if g.Manager.Supervised() || g.Origin == handoff.Succeeded || g.Origin == handoff.SucceededLegacy {
		return nil
	}

	v := &supervisor{
		manager:  g.Manager,
		signals:  make(chan os.Signal, 64),
		children: make(chan os.Signal, 1),
		asking:   map[int]int{},
	}
	surviveBrokenPipes()
	v.watch()
	s, err := g.Supervise()
	if err != nil {
		signal.Stop(v.signals)
		signal.Stop(v.children)
		signal.Reset(syscall.SIGTTIN, syscall.SIGTTOU)
		return fmt.Errorf("grace: supervising: %w", err)
	}
	v.supervisor, v.group = s, s.First
	v.follow(s.First)
	std.logf("supervising with pid %d: started pid %d", os.Getpid(), s.First)
	status := v.run()
	std.logf("supervising with pid %d: exit status %d, as of pid %d", os.Getpid(), status, v.current.pid)
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	v.manager.Flush(ctx)
	cancel()
	handoff.FlushLog(logTimeout)
	os.Exit(status)
	return nil
}

// A supervisor is owned by one goroutine.
type supervisor struct {
	supervisor  *handoff.Supervisor
	manager     *handoff.Manager
	group       int           // process group of the generations
	current     *generation   // the one that serves
	generations []*generation // that run, and serve or have served
	asked       os.Signal     // to stop, or nil
	held        []os.Signal   // for the next one to be current
	asking      map[int]int   // by process: the descriptor of who wants to know how it ends
	signals     chan os.Signal
	children    chan os.Signal // SIGCHLD
}

// A generation is one that serves, or has served.
type generation struct {
	pid     int
	process *os.Process // cannot be mistaken for another with its number
	ready   bool
	asked   bool                // to stop
	status  *syscall.WaitStatus // nil until it has ended
}

// watch asks for the signals. SIGHUP stays ignored if nohup(1) has started us.
//
// Generations are in the background of our terminal. Those that read from it
// shall get an error, and those that write to it go on, rather than be stopped:
// ignored signals stay so in a new process.
func (v *supervisor) watch() {
	signal.Notify(v.children, syscall.SIGCHLD)
	signal.Notify(v.signals, syscall.SIGTSTP, syscall.SIGCONT)
	signal.Notify(v.signals, servingSignals...)
	for _, sig := range stopSignals {
		if sig != syscall.SIGHUP || !signal.Ignored(sig) {
			signal.Notify(v.signals, sig)
		}
	}
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
}

// run returns the exit status.
//
// What generations say comes first: so a signal reaches the generation that was ready
// when it was sent, and we know which children are generations when they end.
func (v *supervisor) run() int {
	unread := v.supervisor.Unread
	for {
		var sig os.Signal
		childEnded := false
		select {
		case <-unread:
		case <-v.children:
			childEnded = true
		case sig = <-v.signals:
		}

		states, over := v.supervisor.States()
		for _, state := range states {
			v.hear(state)
		}
		if childEnded {
			v.reap()
		}
		if sig != nil {
			v.pass(sig)
		}
		if !over {
			continue
		}

		// No generation is left, or the last one is just ending.
		unread = nil
		last := v.current
		if last.status == nil && last.process.Signal(syscall.Signal(0)) != nil {
			// Its parent took the status, and was killed before it could tell.
			std.logf("supervising with pid %d: how pid %d ended is not known", os.Getpid(), last.pid)
			return 1
		}
		if last.status != nil && last.status.Signaled() {
			return 128 + int(last.status.Signal())
		}
		if last.status != nil {
			return last.status.ExitStatus()
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
	case slices.Contains(stopSignals, sig):
		v.stop(sig)
	case v.current.status != nil, sig == restartSignal && !v.current.ready:
		// It would reach nobody, or end a process that does not look after it yet.
		if !slices.Contains(v.held, sig) {
			v.held = append(v.held, sig)
		}
	default:
		v.current.process.Signal(sig) // fails if it has just ended
	}
}

// stop asks all generations to stop. One that is not known yet, since it is just
// getting ready, is asked when it says so.
func (v *supervisor) stop(sig os.Signal) {
	if sig == syscall.SIGINT || sig == syscall.SIGTERM { // the others may mean something else to it
		v.asked = sig
	}
	for _, g := range v.generations {
		g.process.Signal(sig)
		g.asked = true
	}
	if len(v.generations) == 0 {
		// Those that we know have ended. What is left was started by them.
		syscall.Kill(-v.group, sig.(syscall.Signal))
	}
}

// suspend stops the generations and this process as SIGTSTP does by default,
// which may be not at all: where nobody could continue us.
func (v *supervisor) suspend() {
	syscall.Kill(-v.group, syscall.SIGTSTP)
	stopByDefault()
	syscall.Kill(-v.group, syscall.SIGCONT)
}

// stopByDefault has this process stopped by SIGTSTP, and returns when it runs
// again; at once, if the kernel does not stop it: the first process of a
// container, and one that no shell could continue. signal.Reset does not bring a
// signal's default back, so this does.
func stopByDefault() {
	setSize := uintptr(8) // of a sigset_t
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		setSize = 16
	}
	sigaction := func(action, old *[64]byte) bool { // more than enough for any struct sigaction
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGTSTP),
			uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(old)), setSize, 0, 0)
		return errno == 0
	}
	var byDefault, ours [64]byte // SIG_DFL is all zero
	if !sigaction(&byDefault, &ours) {
		return
	}
	// A signal to this very thread has taken effect when the call returns.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGTSTP)
	sigaction(&ours, nil)
}

// hear acts on what a generation says, and passes it on to the manager, to which
// we are the main process.
func (v *supervisor) hear(state handoff.State) {
	if pid, ok := handoff.AskedStatus(state.Text); ok && len(state.FDs) == 1 && syscall.Kill(pid, 0) == nil {
		v.asking[pid] = state.FDs[0]
		return
	}
	var lines []string
	for _, line := range strings.Split(state.Text, "\n") {
		if text, ok := strings.CutPrefix(line, "MAINPID="); ok {
			if pid, err := strconv.Atoi(text); err == nil {
				v.follow(pid)
			}
		} else if !handoff.IsOwn(line) {
			lines = append(lines, line)
		}
	}
	if len(lines) > 0 {
		v.manager.Forward(strings.Join(lines, "\n"), state.FDs)
		return
	}
	for _, fd := range state.FDs {
		syscall.Close(fd)
	}
}

// follow makes a generation the current one. The first one is so before it is
// ready.
//
// A generation is named twice: by itself, and later by its predecessor, which
// may drain until there is a third one. So one that is known becomes current
// again only if the one that came after it has ended.
func (v *supervisor) follow(pid int) {
	g := v.find(pid)
	if g != nil && g != v.current && !v.hasEnded(v.current) {
		return
	}
	if g == nil {
		if group, err := syscall.Getpgid(pid); err != nil || group != v.group {
			return // not one of ours, or it has ended meanwhile
		}
		g = &generation{pid: pid}
		g.process, _ = os.FindProcess(pid) // never fails on Unix
		v.generations = append(v.generations, g)
	}
	first := v.current == nil
	v.current = g
	if first {
		return
	}
	g.ready = true
	if v.asked != nil && !g.asked {
		g.process.Signal(v.asked)
		g.asked = true
	}
	for _, sig := range v.held {
		g.process.Signal(sig)
	}
	v.held = nil
}

// hasEnded reports whether a generation has, though it may still have to be waited for.
func (v *supervisor) hasEnded(g *generation) bool {
	var status syscall.WaitStatus
	if g.status == nil {
		if pid, err := syscall.Wait4(g.pid, &status, syscall.WNOHANG, nil); err == nil && pid == g.pid {
			v.ended(pid, status)
		}
	}
	return g.status != nil || g.process.Signal(syscall.Signal(0)) != nil
}

// find returns the generation with this process id, nil if there is none.
func (v *supervisor) find(pid int) *generation {
	for _, g := range v.generations {
		if g.pid == pid {
			return g
		}
	}
	return nil
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
		v.ended(pid, status)
	}
}

// ended strikes out a generation. The current one stays current: it may be the
// last.
func (v *supervisor) ended(pid int, status syscall.WaitStatus) {
	if fd, ok := v.asking[pid]; ok {
		handoff.AnswerStatus(fd, status)
		delete(v.asking, pid)
	}
	if g := v.find(pid); g != nil {
		g.status = &status
		g.process.Release()
		v.generations = slices.DeleteFunc(v.generations, func(other *generation) bool { return other == g })
	}
}
