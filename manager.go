package grace

import (
	"fmt"
	"os"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// What a service manager is told: states by sd_notify(3), if it has asked for them with
// NOTIFY_SOCKET. It listens to its main process alone, which only that one can change:
// so a predecessor stays the main process until it ends, and names its successor then.

// A role is what a process is to the service manager, or to the supervisor.
type role int

const (
	notMain     role = iota // a predecessor is its main process
	mainProcess             // this one is
	formerMain              // this one was, and has named its successor
)

func pid() int { return os.Getpid() }

// lingers reports whether this process has named its successor, and only stays for what
// was on its way to it.
func (l *loop) lingers() bool { return l.finishing && l.role == formerMain }

// namesMain reports whether a service manager listens to its main process, and so has to
// be told of another.
func (p *Process) namesMain() bool {
	m := handoff.Self().Manager
	return m.Listens() && !m.Supervised()
}

func mainPID(pid int) string {
	return fmt.Sprintf("MAINPID=%d\nREADY=1\nWATCHDOG=1\nSTATUS=Serving with pid %d", pid, pid)
}

// tellServing says that this process is ready. A successor need not: its
// predecessor does, which the manager trusts. One of facebookgo/grace does not
// know how.
func (l *loop) tellServing() {
	supervised := l.g.Manager.Supervised()
	switch {
	case l.g.Origin == handoff.Succeeded:
		if supervised {
			l.becomeMain("")
		}
		return
	case l.g.Origin == handoff.SucceededLegacy, supervised: // CloseParent may not have been called
		l.g.Manager.Tell(mainPID(pid()))
	default:
		l.g.Manager.Tell(fmt.Sprintf("READY=1\nSTATUS=Serving with pid %d", pid()))
	}
	l.role = mainProcess
	l.storeListeners()
}

// becomeMain is called when the service manager takes this process for the main one.
func (l *loop) becomeMain(also string) {
	if l.role == formerMain {
		return
	}
	first := l.role == notMain
	l.role = mainProcess
	switch {
	case !first:
	case l.finishing:
		l.finish()
	case l.third && !l.gone:
		l.nameMain()
	}
	if l.state >= draining || l.state == lameDuck {
		return // our own successor serves, or we stop
	}
	status := "STATUS=" + systemd.Escape(fmt.Sprintf("Serving with pid %d%s", pid(), also))
	if !first {
		if also != "" {
			l.g.Manager.Tell(status)
		}
		return
	}
	// systemd may know us from the PID file, and not take our predecessor's word any more.
	l.g.Manager.Tell("READY=1\n" + status)
	if l.p.namesMain() {
		l.p.writePIDFile()
	}
	l.storeListeners()
}

// predecessorSays passes on how the predecessor's drain goes, which it cannot say
// itself when this is the main process.
func (l *loop) predecessorSays(s handoff.Status) {
	also := ""
	if s.Text != "" {
		also = "; " + s.Text
	}
	switch {
	case s.Main:
		l.becomeMain(also)
	case l.role == mainProcess && l.state < lameDuck:
		l.g.Manager.Tell("STATUS=" + systemd.Escape(fmt.Sprintf("Serving with pid %d%s", pid(), also)))
	}
}

// tell tells the manager something that it would take from its main process alone.
func (l *loop) tell(state string) {
	if l.role == mainProcess || !l.p.namesMain() {
		l.g.Manager.Tell(state)
	}
}

// nameMain makes the successor the manager's main process, if we are. Its watchdog starts
// anew, so that the successor has time to take that over.
func (l *loop) nameMain() {
	if l.role != mainProcess || !l.g.Manager.Listens() {
		return
	}
	l.role = formerMain
	if l.p.namesMain() {
		l.p.replacePIDFile(l.successor.Pid) // systemd may read it, too
	}
	l.g.Manager.Tell(mainPID(l.successor.Pid))
	s := l.successor
	l.g.Manager.Then(func() { s.Status("", true) })
}

func (l *loop) storeListeners() {
	if l.p.StoreListeners {
		l.g.Manager.StoreListeners()
	}
}
