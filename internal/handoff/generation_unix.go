//go:build unix

package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// stateTimeout bounds the wait for a predecessor's words about the sockets. It
// says them right after starting us.
const stateTimeout = 10 * time.Second

// inherited is the number of announced descriptors, from firstFD on, that were
// open when the process started; they are close-on-exec from then on.
var inherited = closeOnExec()

// closeOnExec looks at the descriptors that were announced to the process. One
// that was inherited is not close-on-exec (exec would have closed it), one of
// the Go runtime's own is: so a number too large never reaches beyond what was
// inherited.
func closeOnExec() int {
	announced := announcedSockets()
	for _, name := range []string{envControl, envSupervisor} {
		if os.Getenv(name) != "" {
			announced++ // it comes after the sockets
		}
	}
	for n := range announced {
		fd := firstFD + n
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC != 0 {
			return n
		}
		syscall.CloseOnExec(fd)
	}
	return announced
}

// announcedSockets is how many there should be, as far as that can be known.
func announcedSockets() int {
	n, _ := strconv.Atoi(os.Getenv(envFDs))
	return min(max(n, 0), 1<<20)
}

// adopted are those inherited descriptors that have become something else.
var adopted []int

// closeInherited closes the others.
func closeInherited() {
	for fd := firstFD; fd < firstFD+inherited; fd++ {
		if !slices.Contains(adopted, fd) {
			syscall.Close(fd)
		}
	}
}

// parent is who started us, and parentIsSame whether it runs the same program:
// both as of now, since it may end.
var (
	parent       = os.Getppid()
	parentIsSame = os.Getenv(envFDs) != "" && sameProgram(parent)
)

// passedOn says that the control socket was not meant for us, but for our parent:
// that is built on facebookgo/grace, and was started by one built on this library.
// It has passed on the variable and the descriptor without knowing.
var passedOn bool

// earlyControl is the control socket. It is opened, and the predecessor told
// that we speak its protocol, before main starts: a predecessor that does not
// hear it takes SIGTERM for the word of a successor built on facebookgo/grace.
var earlyControl, earlyControlErr = openControl()

func openControl() (*control, error) {
	fd, err := announcedFD(envControl)
	if fd >= 0 && fd != firstFD+announcedSockets() {
		err = fmt.Errorf("%s=%d is not the descriptor after the sockets", envControl, fd)
	}
	if err != nil && parentIsSame {
		passedOn = true
		return nil, nil
	}
	if fd < 0 || err != nil {
		return nil, err
	}
	adopted = append(adopted, fd)
	c, err := newControl(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%d: %w", envControl, fd, err)
	}
	if parentIsSame && !madeBy(c.conn, parent) && !madeBy(earlySupervisor, parent) {
		passedOn = true
		c.close()
		return nil, nil
	}
	if err := c.send(kindHello, helloBody{Takes: true}); err != nil {
		// The predecessor has ended meanwhile. Its sockets are still ours.
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			c.close()
			return nil, fmt.Errorf("%s=%d: %w", envControl, fd, err)
		}
	}
	return c, nil
}

// announcedFD returns the descriptor that a variable names, or -1, and removes
// the variable.
func announcedFD(name string) (int, error) {
	v, ok := os.LookupEnv(name)
	if !ok {
		return -1, nil
	}
	os.Unsetenv(name)
	fd, err := strconv.Atoi(v)
	if err != nil || fd < firstFD || fd >= firstFD+inherited {
		return -1, fmt.Errorf("%s=%q is not an inherited descriptor", name, v)
	}
	return fd, nil
}

// load reads what we were told to inherit. On an error nothing is.
func (g *Generation) load() {
	g.ppid = parent
	if err := errors.Join(earlyControlErr, earlySupervisorErr); err != nil {
		clearEnv()
		g.inheritNothing(err)
		return
	}
	if earlySupervisor != nil {
		g.supervisor = earlySupervisor
		g.unsupervised = make(chan struct{})
		go g.watchSupervisor()
	}
	// If the control socket was passed on, the supervisor is not what has started us.
	supervised := earlySupervisor != nil && !passedOn
	a, err := readEnv(os.Getenv, os.Getpid(), earlyControl != nil, supervised, parentIsSame)
	clearEnv() // also what has leaked to us, and would to our children
	if err != nil {
		g.inheritNothing(err)
		return
	}
	if a.origin == Fresh {
		return
	}
	if err := g.inherit(a, inherited); err != nil {
		g.err = err
		g.pool.closeUnused()
	}
}

// inheritNothing closes what was handed to us, since something is wrong with it.
func (g *Generation) inheritNothing(err error) {
	g.err = err
	closeInherited()
	if earlyControl != nil {
		earlyControl.close()
	}
}

// inherit turns the announced descriptors, of which open are, into sockets.
func (g *Generation) inherit(a announcement, open int) error {
	if a.count > open {
		g.inheritNothing(fmt.Errorf("%s=%d, but descriptor %d is not open", envFDs, a.count, firstFD+open))
		return g.err
	}
	for i := range a.count {
		s := &Socket{Activated: a.origin == Activated, index: i}
		if len(a.names) == a.count {
			s.Name = a.names[i]
		}
		s.open(firstFD + i)
		g.pool.unused = append(g.pool.unused, s)
	}
	g.origin = a.origin
	if a.origin != Succeeded {
		return nil
	}
	g.predecessor = earlyControl
	g.gone = make(chan struct{})
	if err := g.receiveState(); errors.Is(err, syscall.EMFILE) {
		g.predecessor.close()
		close(g.gone)
		return err
	} else if err != nil {
		// The sockets are here and work. Only what was asked for them is
		// unknown, and they can be found by what they are bound to.
		g.logf("grace: what the predecessor has to say is not known: %v; serving its sockets all the same", err)
	}
	go g.receive()
	return nil
}

// open takes a descriptor over and makes of it what it is.
func (s *Socket) open(fd int) {
	s.leave.Store(true) // the predecessor's, until we are ready
	name := s.Name
	if name == "" {
		name = "descriptor " + strconv.Itoa(fd)
	}
	listening, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err == nil {
		// A stranger that shares the socket may have made it blocking.
		syscall.SetNonblock(fd, true)
	}
	f := os.NewFile(uintptr(fd), name)
	s.Kind, s.Open = File, f
	if err != nil {
		return
	}
	if listening != 0 {
		if l, err := net.FileListener(f); err == nil {
			s.Kind, s.Open = Listener, l
		}
	} else if typ, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE); err == nil && typ == syscall.SOCK_DGRAM {
		if c, err := net.FilePacketConn(f); err == nil {
			s.Kind, s.Open = Packet, c
		}
	}
	if s.Kind != File {
		f.Close()
	}
}

// Describe says in words what a socket is, for an error.
func (s *Socket) Describe() string {
	what := string(s.Kind)
	switch s.Kind {
	case Listener:
		what = "a listening socket"
	case Packet:
		what = "a datagram socket"
	case File:
		what = "a file"
		if info, err := s.File().Stat(); err != nil {
			what = err.Error()
		} else if info.Mode()&os.ModeSocket != 0 {
			what = "a socket that does not listen"
		} else if info.Mode()&os.ModeNamedPipe != 0 {
			what = "a pipe"
		} else if info.Mode()&os.ModeDevice != 0 {
			what = "a device"
		} else if info.IsDir() {
			what = "a directory"
		}
	}
	return what
}

// Descriptor returns the number under which the socket was inherited, or -1.
func (s *Socket) Descriptor() int {
	if s.index < 0 {
		return -1
	}
	return firstFD + s.index
}

// receiveState waits for the predecessor's words about what we inherit.
func (g *Generation) receiveState() error {
	g.predecessor.conn.SetReadDeadline(time.Now().Add(stateTimeout))
	defer g.predecessor.conn.SetReadDeadline(time.Time{})
	listener := 0
	for {
		m, err := g.predecessor.receive()
		if err != nil {
			return err
		}
		switch m.kind {
		case kindSocket:
			var b socketBody
			if err := m.decode(&b); err != nil {
				closeAll(m.fds)
				return err
			}
			if b.Kind != Listener {
				if m.truncated {
					closeAll(m.fds)
					return fmt.Errorf("%s %s%s was lost on the way: %w", b.Kind, b.Name, b.Address, syscall.EMFILE)
				}
				for _, fd := range m.fds {
					s := &Socket{Network: b.Network, Address: b.Address, Name: b.Name, Activated: b.Activated, index: -1}
					if b.Kind == File {
						s.Kind, s.Open = File, os.NewFile(uintptr(fd), b.Name)
					} else {
						s.open(fd)
					}
					g.pool.unused = append(g.pool.unused, s)
				}
				continue
			}
			if listener < len(g.pool.unused) && g.pool.unused[listener].index == listener {
				s := g.pool.unused[listener]
				s.Network, s.Address, s.Name, s.Activated = b.Network, b.Address, b.Name, b.Activated
			}
			listener++
		case kindState:
			var b stateBody
			if err := m.decode(&b); err != nil {
				return err
			}
			g.states[b.Name] = b.Value
		case kindBegin:
			return nil
		}
		closeAll(m.fds) // of no use to us
	}
}

// receive serves what the predecessor sends until it ends.
func (g *Generation) receive() {
	defer close(g.gone)
	for {
		m, err := g.predecessor.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
				g.logf("grace: control socket of the predecessor: %v; no more connections are taken over", err)
			}
			g.predecessor.close()
			return
		}
		switch m.kind {
		case kindConns:
			g.takeConns(m)
		case kindStatus:
			var b statusBody
			if m.decode(&b) == nil {
				g.status(b)
			}
			closeAll(m.fds)
		case kindGiveUp:
			g.giveUp()
			closeAll(m.fds)
		case kindStop:
			g.stopTold()
			closeAll(m.fds)
		case kindMessenger:
			var b messengerBody
			if m.decode(&b) == nil {
				g.handed(b.Pid, m.fds)
			} else {
				closeAll(m.fds)
			}
		default:
			closeAll(m.fds)
		}
	}
}

// giveUp lets this process not become ready any more. The end of our words says so to
// the predecessor; if it is too late for that, it hears that we are ready instead.
func (g *Generation) giveUp() {
	g.readying.Lock()
	defer g.readying.Unlock()
	if !g.saidReady {
		g.givenUp = true
		g.predecessor.shutdown()
	}
}

// sayReady reports whether the predecessor has given up before. If it has ended, that
// is an error.
func (g *Generation) sayReady() (givenUp bool, err error) {
	g.readying.Lock()
	if !g.givenUp {
		err = g.predecessor.send(kindReady, nil)
		g.saidReady = err == nil
	}
	g.readying.Unlock()
	if err != nil {
		<-g.gone // all that it had to say is read
	}
	g.readying.Lock()
	defer g.readying.Unlock()
	return g.givenUp, err
}

// takeConns takes a batch of connections over, or refuses all of it.
func (g *Generation) takeConns(m *message) {
	var b connsBody
	if err := m.decode(&b); err != nil || len(m.fds) == 0 {
		closeAll(m.fds)
		return // the predecessor sees the answer's socket closed, and keeps them
	}
	answer, fds := m.fds[0], m.fds[1:]
	defer syscall.Close(answer)
	g.taking.Lock()
	defer g.taking.Unlock()
	take := g.receivers[b.Listener]

	var body takenBody
	switch {
	case take == nil:
		body.Error = fmt.Sprintf("nobody serves listener %d any more", b.Listener)
	case m.truncated:
		body.Error = fmt.Sprintf("descriptors were lost on the way: %v", syscall.EMFILE)
	case nearLimit(fds):
		body.Error = fmt.Sprintf("few descriptors are left: %v", syscall.EMFILE)
	}
	// They are ours only once the predecessor can know.
	text, err := encode(kindTaken, body, 0)
	if err == nil {
		_, err = syscall.Write(answer, text)
	}
	if err != nil || body.Error != "" {
		closeAll(fds)
		return
	}
	conns := make([]*os.File, len(fds))
	for i, fd := range fds {
		syscall.SetNonblock(fd, true)
		conns[i] = os.NewFile(uintptr(fd), "connection")
	}
	if len(b.Waiting) != len(conns) {
		b.Waiting = nil
	}
	take(conns, b.Waiting)
}

// sparedFDs is how many descriptors shall be left when connections are taken: to
// serve them takes some.
const sparedFDs = 16

// nearLimit reports whether new descriptors come near to the process's limit. A
// new one gets the lowest number that is free.
func nearLimit(fds []int) bool {
	var limit syscall.Rlimit
	if len(fds) == 0 || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return false
	}
	return uint64(slices.Max(fds)+sparedFDs) >= uint64(limit.Cur)
}

// Ready tells the predecessor that we serve, once; later calls return what the
// first did. What was inherited and never asked for is closed.
func (g *Generation) Ready() error {
	g.ready.Do(func() {
		switch g.origin {
		case Succeeded:
			givenUp, err := g.sayReady()
			if givenUp {
				g.readyErr = ErrGivenUp
				return
			}
			if err != nil {
				g.logf("grace: the predecessor ended before we were ready; serving on")
			}
		case SucceededLegacy:
			// Not if it has ended, and its number belongs to another.
			if os.Getppid() == g.ppid && sameProgram(g.ppid) {
				if err := syscall.Kill(g.ppid, syscall.SIGTERM); err != nil {
					g.readyErr = fmt.Errorf("telling the predecessor, pid %d, that we are ready: %w", g.ppid, err)
				}
			}
		}
		g.tellSupervisor("MAINPID=" + strconv.Itoa(os.Getpid()))
		g.pool.closeUnused()
		g.pool.keepPaths(false)
	})
	return g.readyErr
}

// Waiting tells the predecessor that this process runs Wait.
func (g *Generation) Waiting() {
	if g.predecessor != nil {
		g.predecessor.send(kindWaits, nil)
	}
}

// ServeAgain tells a predecessor that StepDown no longer holds: our own successor has
// failed.
func (g *Generation) ServeAgain() {
	if g.predecessor != nil {
		g.predecessor.send(kindServeAgain, nil)
	}
}

// StepDown tells a predecessor that still drains not to take over again when
// we end: we are stopping, or have a successor of our own.
func (g *Generation) StepDown(stopping bool) {
	if g.predecessor != nil {
		g.predecessor.send(kindStepDown, stepDownBody{stopping})
	}
}
