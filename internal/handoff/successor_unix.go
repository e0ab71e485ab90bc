//go:build unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// helloTimeout is how long a SIGTERM that comes while a successor starts
// may stay undecided: one built on this library says hello before its main
// runs, one built on facebookgo/grace never does.
const helloTimeout = 500 * time.Millisecond

// tellTimeout is how long one who tells the successor much keeps others from it.
const tellTimeout = 100 * time.Millisecond

// startDir is where the process was started, by the name that the shell had
// for it: if that leads through a symlink, a successor follows the symlink anew.
var startDir, startDirErr = os.Getwd()

// A Successor is a process that was started to take our place.
type Successor struct {
	Pid     int
	Started time.Time

	g         *Generation
	process   *os.Process
	control   *control
	listeners []net.Listener   // what Start was called with
	passed    map[socketID]int // which listening sockets it has, and where
	bare      []net.Listener   // those of listeners that are not in the pool

	hello       chan struct{} // closed when it has said that it is built on this library
	takes       bool          // it takes connections over; set before hello is closed
	ready       chan struct{} // closed when it serves
	markOnce    sync.Once
	givenUp     chan struct{} // closed when we no longer wait for ready
	giveUpOnce  sync.Once
	heard       chan struct{} // closed when it can say no more
	mute        chan struct{} // closed when it can no longer say that it is ready
	hearing     sync.Mutex    // held while its words are read and acted on
	exited      chan struct{} // closed when it has ended and was waited for
	stepsDown   chan struct{} // brings a word when it says that it is ending itself
	steppedDown atomic.Bool   // it has said so
	stopping    atomic.Bool   // and that it was told to
	waits       atomic.Bool   // it runs Wait
	moved       atomic.Int64  // connections that it has taken
	parted      chan struct{} // closed when it does not need us any more, see Part
	settled     chan struct{} // closed when it is ready, or gone
	serves      bool          // it is ready; set before settled is closed
	state       *os.ProcessState
	waitErr     error
}

func newSuccessor(g *Generation, listeners []net.Listener) *Successor {
	return &Successor{
		g:         g,
		listeners: listeners,
		hello:     make(chan struct{}),
		ready:     make(chan struct{}),
		givenUp:   make(chan struct{}),
		heard:     make(chan struct{}),
		exited:    make(chan struct{}),
		stepsDown: make(chan struct{}, 1),
		parted:    make(chan struct{}),
		settled:   make(chan struct{}),
		mute:      make(chan struct{}),
		passed:    map[socketID]int{},
	}
}

// Start starts the same command line as a successor, which inherits the
// listeners in their order, then all that is in the pool and not among them.
// It returns as soon as the process runs. Only one may be there at a time.
func (g *Generation) Start(listeners []net.Listener) (*Successor, error) {
	s := newSuccessor(g, listeners)
	g.mu.Lock()
	if err := g.refuses(); err != nil {
		g.mu.Unlock()
		return nil, err
	}
	g.successor = s
	providers := maps.Clone(g.providers)
	g.mu.Unlock()

	if err := s.start(providers); err != nil {
		s.TakeBack()
		g.forget(s)
		close(s.settled)
		return nil, err
	}
	return s, nil
}

// forget lets another successor be started.
func (g *Generation) forget(s *Successor) {
	g.mu.Lock()
	if g.successor == s {
		g.successor = nil
	}
	g.mu.Unlock()
}

func (s *Successor) start(providers map[string]func() []byte) error {
	open, told, release, err := s.sockets()
	defer release()
	if err != nil {
		return fmt.Errorf("starting %s: %w", os.Args[0], err)
	}
	control, theirs, err := controlPair()
	if err != nil {
		return fmt.Errorf("starting %s: %w", os.Args[0], err)
	}
	defer syscall.Close(theirs)

	// From now on closing a socket here must not take its path from the
	// successor: one built on facebookgo/grace may be ready without our knowing.
	s.keepPaths(true)

	// What it inherits, in this order: listening sockets, control socket, and
	// the supervisor's.
	what := inheritance{count: len(open), control: true, supervisor: s.g.Supervised()}
	if what.supervisor {
		open = append(open, s.g.supervisor)
	}
	err = withFDs(open, func(fds []int) error {
		fds = slices.Insert(slices.Clone(fds), what.count, theirs)
		s.Started = time.Now()
		pid, err := fork(fds, what.environ(os.Environ()), nil)
		s.g.mu.Lock()
		s.Pid, s.control = pid, control
		s.g.mu.Unlock()
		return err
	})
	if err != nil {
		control.close()
		return err
	}

	s.process, _ = os.FindProcess(s.Pid) // never fails on Unix
	go s.wait()
	go s.receive()
	go s.tell(told, providers)
	return nil
}

// fork starts our own command line, in the directory in which we were started,
// with the standard streams and then fds.
func fork(fds []int, env []string, attr *syscall.SysProcAttr) (pid int, err error) {
	path, err := lookUp(os.Args[0])
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", os.Args[0], err)
	}
	if startDirErr != nil {
		return 0, fmt.Errorf("starting %s: the directory of the start is not known: %w", path, startDirErr)
	}
	if _, err := os.Stat(startDir); err != nil {
		return 0, fmt.Errorf("starting %s in the directory of the start: %w", path, err)
	}
	files := []uintptr{standard(0), standard(1), standard(2)}
	for _, fd := range fds {
		files = append(files, uintptr(fd))
	}
	pid, err = syscall.ForkExec(path, os.Args, &syscall.ProcAttr{Dir: startDir, Env: env, Files: files, Sys: attr})
	if err != nil {
		if !filepath.IsAbs(path) {
			path += " in " + startDir
		}
		return 0, fmt.Errorf("starting %s: %w", path, err)
	}
	return pid, nil
}

// lookUp finds the program anew, as it was given: a file that was replaced, or
// a symlink that was moved, is what runs.
func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // relative to startDir
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		return path, nil
	}
	if err != nil {
		// The name is not one that can be looked up: argv[0] was made up.
		if self, selfErr := os.Executable(); selfErr == nil {
			if _, statErr := os.Stat(self); statErr == nil {
				return self, nil
			}
		}
	}
	return path, err
}

// standard returns a standard stream's descriptor; one that is closed here
// stays closed in the successor.
func standard(fd int) uintptr {
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil {
		return ^uintptr(0)
	}
	return uintptr(fd)
}

// sockets returns what is open for the successor, in its order: s.listeners,
// then those of the pool; and what to tell of them and of what else travels.
// release closes what was opened for that.
func (s *Successor) sockets() (open []syscall.Conn, told []*Socket, release func(), err error) {
	var files []*os.File
	release = func() {
		for _, f := range files {
			f.Close()
		}
	}
	pool := s.g.pool.all()
	byID := make(map[socketID]*Socket, len(pool))
	for _, sock := range pool {
		if sock.Kind != Listener {
			continue
		}
		if id, err := identify(sock.conn()); err == nil {
			byID[id] = sock
		}
	}

	pass := func(c syscall.Conn, sock *Socket) error {
		id, err := identify(c)
		if err != nil {
			return err
		}
		if known := byID[id]; known != nil {
			sock = known
		}
		if _, twice := s.passed[id]; twice {
			return nil
		}
		s.passed[id] = len(open)
		open, told = append(open, c), append(told, sock)
		return nil
	}
	for _, l := range s.listeners {
		c, ok := l.(syscall.Conn)
		if ok {
			_, err := c.SyscallConn()
			ok = !errors.Is(err, errors.ErrUnsupported) // a wrapper of one that has only File
		}
		if !ok {
			filer, ok := l.(interface{ File() (*os.File, error) })
			if !ok {
				return nil, nil, release, fmt.Errorf("listener %s: %T gives access to no descriptor", l.Addr(), l)
			}
			f, err := filer.File()
			if err != nil {
				return nil, nil, release, fmt.Errorf("listener %s: %w", l.Addr(), err)
			}
			files = append(files, f)
			c = f
		}
		if err := pass(c, &Socket{Kind: Listener, index: -1}); err != nil {
			return nil, nil, release, fmt.Errorf("listener %s: %w", l.Addr(), err)
		}
		if id, err := identify(c); err == nil && byID[id] == nil {
			s.bare = append(s.bare, l)
		}
	}
	for _, sock := range pool {
		if sock.Kind == Listener {
			// One that is closed meanwhile is not passed on.
			_ = pass(sock.conn(), sock)
		}
	}
	for _, sock := range pool {
		if sock.Kind != Listener {
			told = append(told, sock)
		}
	}
	return open, told, release, nil
}

// A socketID is the same for all descriptors of one socket.
type socketID struct {
	dev, ino uint64
	addr     string // where sockets have no inode number: on macOS and the BSDs
}

func identify(c syscall.Conn) (id socketID, err error) {
	err = withFDs([]syscall.Conn{c}, func(fds []int) error {
		var st syscall.Stat_t
		if err := syscall.Fstat(fds[0], &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		id = socketID{dev: uint64(st.Dev), ino: uint64(st.Ino)}
		if id.ino == 0 {
			addr, err := syscall.Getsockname(fds[0])
			if err != nil {
				return os.NewSyscallError("getsockname", err)
			}
			id.addr = fmt.Sprintf("%T%+v", addr, addr)
		}
		return nil
	})
	return id, err
}

// tell sends what the successor must know of its sockets, and our state.
func (s *Successor) tell(sockets []*Socket, providers map[string]func() []byte) {
	// What cannot be said is left out: the successor waits for the end.
	check := func(err error) {
		if err != nil && !isGone(err) && !errors.Is(err, net.ErrClosed) {
			s.g.logf("grace: telling the successor, pid %d, about its sockets: %v", s.Pid, err)
		}
	}
	// It may read the first of this long after its start. Others have something to say
	// meanwhile.
	send := func(k kind, body any, fds ...int) error {
		for {
			err := s.control.sendWithin(tellTimeout, k, body, fds...)
			if !errors.Is(err, os.ErrDeadlineExceeded) || isClosed(s.heard) {
				return err
			}
		}
	}
	for _, sock := range sockets {
		body := socketBody{sock.Kind, sock.Network, sock.Address, sock.Name, sock.Activated}
		if sock.Kind == Listener {
			check(send(kindSocket, body))
			continue
		}
		check(withFDs([]syscall.Conn{sock.conn()}, func(fds []int) error {
			return send(kindSocket, body, fds...)
		}))
	}
	for name, provide := range providers {
		check(send(kindState, stateBody{name, provide()}))
	}
	check(send(kindBegin, nil))
}

// isGone reports whether an error says that the other end is closed.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}

// wait waits for the successor's end, so that it does not stay as a zombie.
func (s *Successor) wait() {
	if s.g.Supervised() {
		// Before its status is taken: if we end in between, the supervisor takes it.
		if status, ok := awaitEnd(s.Pid); ok {
			s.g.tellSupervisor(fmt.Sprintf("%s%d %d", StateEnded, s.Pid, status))
		}
	}
	s.state, s.waitErr = s.process.Wait()
	s.control.shutdown() // its children may still hold the other end
	<-s.heard
	s.g.forget(s)
	close(s.exited)
}

// receive takes the successor's words until it can say no more.
func (s *Successor) receive() {
	defer close(s.heard)
	defer s.control.close()
	raw, err := s.control.conn.SyscallConn()
	for err == nil {
		if err = waitReadable(raw); err == nil {
			err = s.hear(raw)
		}
	}
	// One built on facebookgo/grace never says anything.
	if isClosed(s.hello) && !isClosed(s.ready) {
		close(s.mute)
	}
}

// hear acts on all that the successor has said by now.
func (s *Successor) hear(raw syscall.RawConn) error {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	for {
		unread := false
		if err := raw.Control(func(fd uintptr) { unread = readable(fd) }); err != nil || !unread {
			return err
		}
		// The rest of a message comes with its beginning.
		s.control.conn.SetReadDeadline(time.Now().Add(sendTimeout))
		m, err := s.control.receive()
		s.control.conn.SetReadDeadline(time.Time{})
		if err != nil {
			s.control.shutdown() // what follows could not be read
			return err
		}
		s.told(m)
	}
}

// told acts on a message.
func (s *Successor) told(m *message) {
	closeAll(m.fds)
	switch m.kind {
	case kindHello:
		var b helloBody
		if m.decode(&b) == nil && !isClosed(s.hello) {
			s.takes = b.Takes
			close(s.hello)
		}
	case kindReady:
		s.markReady()
	case kindWaits:
		s.waits.Store(true)
	case kindParted:
		if !isClosed(s.parted) {
			close(s.parted)
		}
	case kindStepDown:
		var b stepDownBody
		m.decode(&b) // one that says nothing has a successor
		if b.Stopping {
			s.stopping.Store(true)
		}
		s.steppedDown.Store(true)
		select {
		case s.stepsDown <- struct{}{}:
		default:
		}
	case kindServeAgain:
		s.steppedDown.Store(false)
	}
}

// Ready reports whether the successor has said by now that it is ready.
func (s *Successor) Ready() bool {
	s.g.mu.Lock()
	c := s.control
	s.g.mu.Unlock()
	if c == nil {
		return false // it is just being started
	}
	if raw, err := c.conn.SyscallConn(); err == nil {
		s.hear(raw) // after an error receive ends too
	}
	return isClosed(s.ready)
}

func (s *Successor) markReady() {
	s.markOnce.Do(func() { close(s.ready) })
}

// TakeBack makes the sockets' paths ours again when the successor has failed.
func (s *Successor) TakeBack() { s.keepPaths(false) }

// keepPaths says of every socket that the successor has whether closing it here
// leaves its path.
func (s *Successor) keepPaths(keep bool) {
	s.g.pool.keepPaths(keep)
	for _, l := range s.bare {
		keepPath(l, keep)
	}
}

// awaitReady waits until the successor is ready. If it ends before, is not
// ready within timeout, or is given up, the error says so and it is gone: what
// still runs of it has been killed.
func (s *Successor) awaitReady(timeout time.Duration) (err error) {
	defer func() {
		s.serves = err == nil
		close(s.settled)
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()

	var why error
	select {
	case <-s.ready:
		return nil
	case <-s.exited:
	case <-timer.C:
		why = fmt.Errorf("not ready within %v, it has called neither Serve nor CloseParent: %w", timeout, context.DeadlineExceeded)
	case <-s.givenUp:
		why = ErrStopping
	case <-s.mute:
		select {
		case <-s.exited: // that is why
		case <-time.After(helloTimeout):
			why = errors.New("its end of the control socket is closed, but it runs")
		}
	}

	if isClosed(s.ready) || why != nil && s.readyAfterAll() {
		return nil
	}
	if why != nil {
		s.process.Kill()
		<-s.exited
		s.TakeBack()
		return fmt.Errorf("%w; killed pid %d", why, s.Pid)
	}
	s.TakeBack()
	return fmt.Errorf("%w after %v (before it was ready)", s.ExitError(), time.Since(s.Started).Round(time.Millisecond))
}

// readyAfterAll gives the successor up, unless it is ready by now.
func (s *Successor) readyAfterAll() bool {
	s.control.sendWithin(helloTimeout, kindGiveUp, nil)
	if s.Ready() {
		return true
	}
	if isClosed(s.hello) {
		// It ends its words, unless it says just now that it is ready.
		select {
		case <-s.ready:
			return true
		case <-s.heard:
			return isClosed(s.ready)
		case <-time.After(helloTimeout):
		}
	}
	// It hangs, or does not know what we say. From here on it would not be heard.
	s.control.shutdown()
	<-s.heard
	return isClosed(s.ready) && !isClosed(s.hello)
}

// TermMeansReady decides what a SIGTERM means that this process got while the
// successor was starting: the word of being ready from one that is built on
// facebookgo/grace, or, for all others, a request to stop. It takes up to half
// a second.
func (s *Successor) TermMeansReady() bool {
	s.g.mu.Lock()
	pid := s.Pid
	s.g.mu.Unlock()
	if pid == 0 || sameFile(pid) {
		return false // it is not there yet, or built on this library
	}
	select {
	case <-s.hello:
		return false
	case <-s.exited:
		return false
	case <-s.ready:
		return false
	case <-time.After(helloTimeout):
		s.markReady()
		return true
	}
}

// HandOver waits until the successor is ready and lets this process know:
// through OnReady's function, or else by SIGTERM. If the successor ends before,
// is not ready within timeout, or is refused meanwhile, the error says so and it
// is gone: what still ran of it has been killed.
func (s *Successor) HandOver(timeout time.Duration) error {
	onReady := s.g.readyHook(nil)
	if onReady != nil {
		if err := s.awaitReady(timeout); err != nil {
			return err
		}
		onReady(s)
		return nil
	}
	termed, err := s.awaitReadyOrTerm(timeout)
	if err != nil {
		return err
	}
	if onReady = s.g.readyHook(s); onReady != nil {
		onReady(s) // Wait was called meanwhile
		return nil
	}
	if termed {
		return nil
	}
	return syscall.Kill(os.Getpid(), syscall.SIGTERM)
}

// readyHook returns OnReady's function. If there is none, a later one gets s.
func (g *Generation) readyHook(s *Successor) func(*Successor) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.onReady == nil {
		g.missed = s
	}
	return g.onReady
}

// awaitReadyOrTerm is awaitReady for a program with a signal loop of its own. It reports
// whether that has got SIGTERM already.
func (s *Successor) awaitReadyOrTerm(timeout time.Duration) (termed bool, err error) {
	// It cannot tell a SIGTERM that means ready from another, so we look at them too.
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	defer signal.Stop(terms)
	outcome := make(chan error, 1)
	go func() { outcome <- s.awaitReady(timeout) }()
	select {
	case <-s.hello: // it speaks for itself
		signal.Stop(terms)
		err = <-outcome
	case err = <-outcome:
	case <-terms: // the program has it too
		if !s.TermMeansReady() {
			signal.Stop(terms) // another one is for the program alone
		}
		return true, <-outcome
	}
	signal.Stop(terms) // a program without a handler shall die of it
	return false, err
}

// Settled is closed when the successor is ready, or gone.
func (s *Successor) Settled() <-chan struct{} { return s.settled }

// Serves reports, once Settled is closed, whether the successor is ready.
func (s *Successor) Serves() bool { return s.serves }

// giveUp ends awaitReady.
func (s *Successor) giveUp() { s.giveUpOnce.Do(func() { close(s.givenUp) }) }

// Exited is closed when the successor has ended.
func (s *Successor) Exited() <-chan struct{} { return s.exited }

// StepsDown brings a word when SteppedDown becomes true.
func (s *Successor) StepsDown() <-chan struct{} { return s.stepsDown }

// SteppedDown reports whether the successor has said that it is ending itself: it
// was told to, or has a successor of its own.
func (s *Successor) SteppedDown() bool { return s.steppedDown.Load() }

// Stopping reports whether it has said that it was told to stop.
func (s *Successor) Stopping() bool { return s.stopping.Load() }

// Waits reports whether it runs Wait, and so does what Stop and Part say.
func (s *Successor) Waits() bool { return s.waits.Load() }

// Stop passes on that this process was told to stop, as the service manager's main
// process: it is meant for the service. A successor that has heard it already does
// nothing, nor does one that does not run Wait.
func (s *Successor) Stop() {
	if s.Waits() {
		s.control.send(kindStop, nil)
	}
}

// ExitError says how the successor ended, or nil if it has not. It is an
// *exec.ExitError unless the process could not be waited for.
func (s *Successor) ExitError() error {
	if !isClosed(s.exited) {
		return nil
	}
	if s.waitErr != nil {
		return s.waitErr
	}
	return &exec.ExitError{ProcessState: s.state}
}

// Signal sends a signal, unless the successor has ended.
func (s *Successor) Signal(sig os.Signal) { s.process.Signal(sig) }

// Failed reports whether the successor's end is one that calls for taking over
// again: it did not say that it was stepping down, nor exit with status 0.
func (s *Successor) Failed() bool {
	return isClosed(s.exited) && !s.SteppedDown() && (s.state == nil || !s.state.Success())
}

// Moves reports whether it takes connections over.
func (s *Successor) Moves() bool { return isClosed(s.hello) && s.takes && !isClosed(s.heard) }

// Status tells the successor how our drain goes; main, that it is the service
// manager's main process now.
func (s *Successor) Status(text string, main bool) {
	if isClosed(s.hello) {
		s.control.send(kindStatus, statusBody{text, main})
	}
}

// Move hands connections of a listener over, at most MaxMove at a time, and
// waits for the answer. The successor learns how long each has been waiting for its
// next request. After nil they are the successor's: close them here.
// After an error they are still ours, and nobody else reads them. That may be
// ErrGone, or that one of them was closed: the others may be moved without it.
// After the timeout no more can be moved.
func (s *Successor) Move(listener syscall.Conn, conns []syscall.Conn, waiting []Waiting, timeout time.Duration) error {
	if isClosed(s.heard) {
		return ErrGone
	}
	id, err := identify(listener)
	if err != nil {
		return errors.New("the listener is closed")
	}
	place, ok := s.passed[id]
	if !ok {
		return errors.New("the successor does not have this listener")
	}

	answer, theirs, err := controlPair()
	if err != nil {
		return err
	}
	defer answer.close()
	err = withFDs(conns, func(fds []int) error {
		return s.sendConns(connsBody{place, waiting}, append([]int{theirs}, fds...))
	})
	syscall.Close(theirs)
	if err != nil {
		if isGone(err) {
			err = ErrGone
		}
		return err
	}
	if err := s.awaitAnswer(answer, timeout); err != nil {
		return err
	}
	s.moved.Add(int64(len(conns)))
	return nil
}

// awaitAnswer waits for the answer to a batch.
func (s *Successor) awaitAnswer(answer *control, timeout time.Duration) error {
	received := make(chan error, 1)
	go func() { received <- answer.receiveAnswer() }()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	late := ErrGone
	select {
	case err := <-received:
		return err
	case <-s.heard:
	case <-timer.C:
		late = fmt.Errorf("no answer within %v", timeout.Round(time.Millisecond))
	}
	// An answer now fails at the successor, or is among what we still read.
	answer.shutdown()
	if err := <-received; !errors.Is(err, ErrGone) {
		return err
	}
	return late
}

// receiveAnswer returns why a batch was refused, ErrGone if there is no answer, or nil.
func (c *control) receiveAnswer() error {
	var b takenBody
	m, err := c.receive()
	if err != nil || m.decode(&b) != nil {
		return ErrGone
	}
	closeAll(m.fds)
	if b.Error != "" {
		return errors.New(b.Error)
	}
	return nil
}

// Moved returns how many connections the successor has taken over.
func (s *Successor) Moved() int { return int(s.moved.Load()) }

// MaxMove is how many connections fit in one batch.
const MaxMove = maxFDs - 1

// sendConns sends a batch. The kernel limits the descriptors on their way
// (ETOOMANYREFS): others' must arrive first.
func (s *Successor) sendConns(body connsBody, fds []int) error {
	var err error
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		if err = s.control.send(kindConns, body, fds...); !errors.Is(err, syscall.ETOOMANYREFS) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-s.heard:
		}
	}
	return err
}
