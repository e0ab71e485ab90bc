package handoff

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A birth is what this process was started with. It does not change: what the program
// does to os.Args and the environment later is not for its successors.
type birth struct {
	args        []string
	env         []string
	dir         string // by the name that the shell had for it: a successor follows its symlinks anew
	dirErr      error
	file        string // the program's own path, if args[0] does not lead to it
	pid, ppid   int
	parent      parent
	descriptors int   // announced ones, from firstFD on, that were there; close-on-exec since
	taken       []int // those of them that have become something else

	control    *control // nil without one
	supervisor *net.UnixConn
	err        error // what was wrong with these two
}

// born is set before main starts.
var born = inherit()

// inherit is all that happens before main: what is inherited becomes close-on-exec, and
// our variables leave the environment, before anybody can start a process.
func inherit() *birth {
	b := &birth{args: slices.Clone(os.Args), pid: os.Getpid(), ppid: os.Getppid()}
	b.dir, b.dirErr = os.Getwd()
	if !inherits {
		return b
	}
	b.env = os.Environ()
	b.closeOnExec()
	if b.getenv(envFDs) != "" {
		b.parent = parentOf(b.ppid)
	}
	supervisor, supervisorErr := b.takeConn(envSupervisor)
	control, controlErr := b.takeConn(envControl)
	if madeBy(b.ppid, control) || madeBy(b.ppid, supervisor) {
		b.parent.program = Ours // though its file may be closed to us
	}
	if b.parent.original() {
		// They were meant for our parent. That is built on facebookgo/grace, was started by
		// one built on this library, and has passed them on without knowing. What that one
		// sees of its end is the end of the control socket: it must not be open here.
		if control != nil {
			control.Close()
		}
		control, controlErr, supervisorErr = nil, nil, nil
	}
	if control != nil {
		b.control = newControl(control)
		// If the predecessor has ended meanwhile, its sockets are still ours.
		if err := b.control.send(kindHello, helloBody{Takes: true, Moves: true}); err != nil && !isGone(err) {
			controlErr = fmt.Errorf("%s=%s: %w", envControl, b.getenv(envControl), err)
		}
	}
	b.supervisor, b.err = supervisor, errors.Join(controlErr, supervisorErr)
	if b.getenv(envFDs) != "" && b.getenv(envPID) == "" && (b.control != nil || b.supervised()) {
		// Whoever has started us could not know our number. No child of ours may take the
		// sockets for its own.
		os.Setenv(envPID, strconv.Itoa(os.Getpid()))
	}
	if len(b.args) > 0 && !b.leadsHere() {
		b.file, _ = os.Executable()
	}
	return b
}

// getenv is os.Getenv as it was at the start.
func (b *birth) getenv(name string) string {
	for _, v := range b.env {
		if n, value, _ := strings.Cut(v, "="); n == name {
			return value
		}
	}
	return ""
}

// closeOnExec looks at the descriptors that were announced to the process. A number too
// large never reaches beyond what was inherited.
func (b *birth) closeOnExec() {
	announced := b.announcedSockets()
	for _, name := range []string{envControl, envSupervisor} {
		if b.getenv(name) != "" {
			announced++ // it comes after the sockets
		}
	}
	for b.descriptors < announced && claim(firstFD+b.descriptors) {
		b.descriptors++
	}
}

// announcedSockets is how many there should be, as far as that can be known.
func (b *birth) announcedSockets() int {
	n, _ := strconv.Atoi(b.getenv(envFDs))
	return min(max(n, 0), 1<<20)
}

// takeConn opens the unix socket at the descriptor that a variable names; nil without one.
func (b *birth) takeConn(name string) (*net.UnixConn, error) {
	fd, err := b.announcedFD(name)
	if fd < 0 {
		return nil, err
	}
	b.taken = append(b.taken, fd)
	c, err := newUnixConn(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%d: %w", name, fd, err)
	}
	return c, nil
}

// madeBy reports whether a process has made a socket pair, of which we have an end.
func madeBy(pid int, c *net.UnixConn) bool { return c != nil && peerPid(c) == pid }

// announcedFD returns the descriptor that a variable names, or -1, and removes
// the variable.
func (b *birth) announcedFD(name string) (int, error) {
	v := b.getenv(name)
	os.Unsetenv(name)
	if v == "" {
		return -1, nil
	}
	fd, err := strconv.Atoi(v)
	if err != nil || fd < firstFD+b.announcedSockets() || fd >= firstFD+b.descriptors {
		return -1, fmt.Errorf("%s=%q is not an inherited descriptor after the sockets", name, v)
	}
	return fd, nil
}

// supervised reports whether a supervisor has started us. If the control socket was passed
// on, so was the supervisor's.
func (b *birth) supervised() bool {
	return b.supervisor != nil && (b.control != nil || b.getenv(envControl) == "")
}

// closeInherited closes what has not become something else, and the control socket: the
// predecessor sees that nobody takes over.
func (b *birth) closeInherited() {
	for fd := firstFD; fd < firstFD+b.descriptors; fd++ {
		if !slices.Contains(b.taken, fd) {
			closeAll([]int{fd})
		}
	}
	if b.control != nil {
		b.control.close()
	}
}

// listening reports whether the first n announced descriptors are listening sockets.
func (b *birth) listening(n int) bool {
	if n > b.descriptors {
		return false
	}
	for fd := firstFD; fd < firstFD+n; fd++ {
		if !isListening(fd) {
			return false
		}
	}
	return true
}

// leadsHere reports whether args[0] leads to the file that runs. It may have been made
// up, as by exec -a.
func (b *birth) leadsHere() bool {
	self, err := os.Executable()
	if err != nil {
		return true // nothing better is known
	}
	path, err := b.lookUp()
	if err == nil && !filepath.IsAbs(path) {
		path = filepath.Join(b.dir, path)
	}
	return err == nil && sameFile(path, self)
}

// lookUp finds the program anew, as it was given: a file that was replaced, or
// a symlink that was moved, is what runs.
func (b *birth) lookUp() (string, error) {
	name := b.args[0]
	if strings.Contains(name, "/") {
		return name, nil // relative to the directory of the start
	}
	for _, dir := range filepath.SplitList(b.getenv("PATH")) { // the program may have changed its own
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(b.dir, dir)
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

func sameFile(a, b string) bool {
	is, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(is, other)
}

// load makes of what was inherited what it is. On an error nothing is.
func (g *Generation) load() {
	b := born
	g.Manager = newManager(g, b)
	unsetenv(managing...)
	a, err := b.announcement(b.listening)
	unsetenv(announcing...) // also what has leaked to us, and would to our children
	if err = cmp.Or(b.err, err); err == nil && a.count > b.descriptors {
		err = fmt.Errorf("%s=%d, but descriptor %d is not open", envFDs, a.count, firstFD+b.descriptors)
	}
	if err != nil {
		g.Err = err
		b.closeInherited()
		return
	}
	if a.origin == Fresh {
		return
	}
	if g.Err = g.inherit(a); g.Err != nil {
		g.Discard()
		return
	}
	if a.count > 0 {
		// Programs that were written for facebookgo/grace ask for it until they are ready.
		os.Setenv(envFDs, strconv.Itoa(a.count))
		os.Setenv(envPID, strconv.Itoa(os.Getpid()))
	}
}

// inherit turns the announced descriptors into sockets.
func (g *Generation) inherit(a announcement) error {
	for i := range a.count {
		s := &Socket{Activated: a.origin == Activated, index: i}
		if len(a.names) == a.count {
			s.Name = a.names[i]
		}
		s.open(firstFD + i)
		g.sockets = append(g.sockets, s)
	}
	g.Origin = a.origin
	if a.origin != Succeeded {
		return nil
	}
	p := newPredecessor(g, born.control)
	g.Predecessor = p
	if err := p.receiveState(); errors.Is(err, syscall.EMFILE) {
		p.control.close()
		p.end()
		return err
	} else if err != nil {
		// The sockets are here and work. Only what was asked for them is
		// unknown, and they can be found by what they are bound to.
		g.Undescribed = err
		g.Logf("grace: what the predecessor has to say is not known: %v; serving its sockets all the same", err)
	}
	g.Number = p.number() + 1
	go p.receive()
	return nil
}
