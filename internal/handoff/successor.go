package handoff

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// A process is one that we have started.
type process interface {
	pid() int
	// wait waits for its end. Where that cannot be waited for, silent is closed when it
	// can say no more, which it can until its end.
	wait(silent <-chan struct{}) exit
	Signal(sig os.Signal) error
}

// An exit is how a process has ended.
type exit struct {
	err     error // in words
	success bool  // it is known that the status is 0
}

// A Successor is a process that was started to take our place. Whoever has called Start
// owns it, and receives what Events brings.
type Successor struct {
	Pid     int
	Started time.Time

	g         *Generation
	process   process
	control   *control
	listeners []net.Listener   // what Start was called with
	passed    map[socketID]int // which listening sockets it has, and where
	bare      []*Socket        // those of listeners that are not in the pool

	events  chan Event
	reading atomic.Bool   // a message that is not understood yet
	ready   atomic.Bool   // it has said so, though Events may not have brought it
	heard   chan struct{} // closed when it can say no more
	ended   chan struct{} // closed when it has ended, though it may still be heard
	exit    exit          // how; set before ended is closed

	takes    atomic.Bool               // it takes connections over
	movesOwn atomic.Bool               // those of the program's own too
	waits    atomic.Bool               // it runs Wait
	serves   atomic.Pointer[readyBody] // what it has said of its sockets, if it has
}

// An Event is what a successor says, or what becomes of it, in order.
type Event int

const (
	Said        Event = iota + 1 // something that needs no answer
	Ready                        // it serves
	HandsOver                    // it has a successor of its own
	Stops                        // it was told to stop
	ServesAgain                  // HandsOver no longer holds
	Silent                       // it can say no more, and may run
	Ended                        // it has ended; the last event
)

func newSuccessor(g *Generation, listeners []net.Listener) *Successor {
	return &Successor{
		g:         g,
		listeners: listeners,
		passed:    map[socketID]int{},
		events:    make(chan Event),
		heard:     make(chan struct{}),
		ended:     make(chan struct{}),
	}
}

// Start starts the same command line as a successor, which inherits the
// listeners in their order, then all that is in the pool and not among them.
// It returns as soon as the process runs. Only one may be there at a time.
//
// Whoever waits for processes above us becomes its parent, if sibling and if that is
// possible: it must not signal its parent then.
func (g *Generation) Start(listeners []net.Listener, sibling bool) (*Successor, error) {
	s := newSuccessor(g, listeners)
	g.mu.Lock()
	if err := g.refuses(); err != nil {
		g.mu.Unlock()
		return nil, err
	}
	g.successor = s
	providers := maps.Clone(g.providers)
	g.mu.Unlock()

	if err := s.start(providers, sibling); err != nil {
		s.TakeBack()
		g.forget(s)
		return nil, err
	}
	return s, nil
}

// StartAlone starts a successor for a program with a signal loop of its own, which gets
// SIGTERM when it is ready. The program decides what follows: nothing is done about a
// successor that is late, or fails later.
func (g *Generation) StartAlone() (pid int, err error) {
	s, err := g.Start(nil, false)
	if err != nil {
		return 0, err
	}
	go s.followAlone()
	return s.Pid, nil
}

func (s *Successor) followAlone() {
	ready := false
	for e := range s.events {
		switch e {
		case Ready:
			if !ready {
				ready = true
				kill(os.Getpid(), syscall.SIGTERM)
			}
		case Ended:
			if !ready && !s.Succeeded() {
				s.TakeBack()
				s.g.Logf("restart failed: %v after %v (before it was ready); still serving with pid %d",
					s.ExitError(), time.Since(s.Started).Round(time.Millisecond), os.Getpid())
			}
			return
		}
	}
}

// forget lets another successor be started.
func (g *Generation) forget(s *Successor) {
	g.mu.Lock()
	if g.successor == s {
		g.successor = nil
	}
	g.mu.Unlock()
}

func (s *Successor) start(providers map[string]func() []byte, sibling bool) error {
	open, described, release, err := s.sockets()
	defer release()
	if err != nil {
		return fmt.Errorf("starting %s: %w", Program0(), err)
	}
	control, theirs, err := controlPair()
	if err != nil {
		return fmt.Errorf("starting %s: %w", Program0(), err)
	}
	defer closeAll([]int{theirs})

	// From now on closing a socket here must not take its path from the
	// successor: one built on facebookgo/grace may be ready without our knowing.
	s.keepPaths(true)

	// What it inherits, in this order: listening sockets, control socket, and
	// the supervisor's.
	what := inheritance{count: len(open), control: true, supervisor: s.g.Manager.Supervised()}
	var last []syscall.Conn
	if what.supervisor {
		last = append(last, s.g.Manager.supervisor)
	}
	fork := func(fds []int) (err error) {
		s.Started = time.Now()
		s.process, err = s.g.fork(fds, what.environ(born.env), sibling)
		return err
	}
	err = withFDs(open, func(fds []int) error { return withFDs(last, fork, append(fds, theirs)...) })
	if err != nil {
		control.close()
		return err
	}
	s.g.mu.Lock()
	s.Pid, s.control = s.process.pid(), control
	s.g.mu.Unlock()
	providers[numberState] = func() []byte { return []byte(strconv.Itoa(s.g.Number)) }
	go s.wait()
	go s.receive()
	s.control.posts.then(func() { s.tell(described, providers) })
	return nil
}

// sockets returns what is open for the successor, in its order: s.listeners,
// then those of the pool; and what to tell of them and of what else travels.
// release closes what was opened for that.
func (s *Successor) sockets() (open []syscall.Conn, described []*Socket, release func(), err error) {
	var copies []*os.File
	release = func() {
		for _, f := range copies {
			f.Close()
		}
	}
	var rest []*Socket // that do not listen
	pool := map[socketID]*Socket{}
	inOrder := []socketID{}
	for _, sock := range s.g.all() {
		if sock.Kind != Listener {
			rest = append(rest, sock)
		} else if id, err := identify(sock.conn()); err == nil { // else it was closed meanwhile
			pool[id] = sock
			inOrder = append(inOrder, id)
		}
	}
	pass := func(id socketID, c syscall.Conn, sock *Socket) {
		if _, twice := s.passed[id]; !twice {
			s.passed[id] = len(open)
			open, described = append(open, c), append(described, sock)
		}
	}
	for _, l := range s.listeners {
		c, err := connOf(l)
		if f, ok := c.(*os.File); ok {
			copies = append(copies, f)
		}
		var id socketID
		if err == nil {
			id, err = identify(c)
		}
		if err != nil {
			return nil, nil, release, fmt.Errorf("listener %s: %w", l.Addr(), err)
		}
		sock := pool[id]
		if sock == nil {
			sock = &Socket{Kind: Listener, Open: l}
			s.bare = append(s.bare, sock)
		}
		pass(id, c, sock)
	}
	for _, id := range inOrder {
		pass(id, pool[id].conn(), pool[id])
	}
	return open, append(described, rest...), release, nil
}

// connOf returns what gives access to a listener's descriptor: the listener itself, or a
// copy of its file.
func connOf(l net.Listener) (syscall.Conn, error) {
	if c, ok := l.(syscall.Conn); ok {
		if _, err := c.SyscallConn(); !errors.Is(err, errors.ErrUnsupported) { // a wrapper of one that has only File
			return c, nil
		}
	}
	if l, ok := l.(interface{ File() (*os.File, error) }); ok {
		f, err := l.File()
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("%T gives access to no descriptor", l)
}

// tell sends what the successor must know of its sockets, and our state. It may read that
// long after its start.
func (s *Successor) tell(sockets []*Socket, providers map[string]func() []byte) {
	// What cannot be said is left out: the successor waits for the end.
	check := func(err error) {
		if err != nil && !isGone(err) && !errors.Is(err, net.ErrClosed) {
			s.g.Logf("grace: telling the successor, pid %d, about its sockets: %v", s.Pid, err)
		}
	}
	for _, sock := range sockets {
		body := socketBody{sock.Kind, sock.Network, sock.Address, sock.Name, sock.Activated, sock.alone.Load()}
		var travels []syscall.Conn
		if sock.Kind != Listener {
			travels = append(travels, sock.conn())
		}
		check(withFDs(travels, func(fds []int) error { return s.control.sendLater(kindSocket, body, fds...) }))
	}
	for name, provide := range providers {
		check(s.control.sendLater(kindState, stateBody{name, provide()}))
	}
	check(s.control.sendLater(kindBegin, nil))
}

// isGone reports whether an error says that the other end is closed.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}

// wait waits for the successor's end.
func (s *Successor) wait() {
	s.exit = s.process.wait(s.heard)
	close(s.ended)
	s.control.shutdown() // its children may still hold the other end
}

// receive takes the successor's words until it can say no more, then waits for its end.
func (s *Successor) receive() {
	raw, err := s.control.conn.SyscallConn()
	for err == nil && raw.Read(readable) == nil {
		s.reading.Store(true)
		var e Event
		e, err = s.hear()
		s.reading.Store(false)
		if err == nil {
			s.events <- e
		}
	}
	s.control.shutdown() // what follows could not be read
	close(s.heard)
	s.control.close()
	if !isClosed(s.ended) {
		s.events <- Silent
	}
	<-s.ended
	s.g.forget(s)
	s.events <- Ended
	close(s.events)
}

// hear receives a message, acts on it, and returns which event it is.
func (s *Successor) hear() (Event, error) {
	m, err := s.control.receive()
	if err != nil {
		return 0, err
	}
	closeAll(m.fds)
	var b struct {
		helloBody
		readyBody
		stepDownBody
	}
	m.decode(&b) // one of an earlier version has no body
	switch m.kind {
	case kindHello:
		s.takes.Store(b.Takes)
		s.movesOwn.Store(b.Moves)
	case kindReady:
		if b.Kept != nil {
			s.serves.Store(&b.readyBody)
		}
		s.ready.Store(true)
		return Ready, nil
	case kindWaits:
		s.waits.Store(true)
	case kindStepDown:
		if b.Stopping {
			return Stops, nil
		}
		return HandsOver, nil // or it says nothing, as earlier versions
	case kindServeAgain:
		return ServesAgain, nil
	}
	return Said, nil
}

// Events brings what the successor says, in order, until Ended.
func (s *Successor) Events() <-chan Event { return s.events }

// Release says that nobody receives events any more.
func (s *Successor) Release() {
	go func() {
		for range s.events {
		}
	}()
}

// MayBeReady reports whether it has said that it is ready, or something that was not
// understood yet and may be that: then another event follows.
func (s *Successor) MayBeReady() bool {
	unread := false
	if raw, err := s.control.conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unread = readable(fd) })
	}
	return unread || s.reading.Load() || s.ready.Load() // in the order of a message's way
}

// HasEnded reports whether it has ended, though Events may still have to say so.
func (s *Successor) HasEnded() bool { return isClosed(s.ended) }

// Waits reports whether it runs Wait.
func (s *Successor) Waits() bool { return s.waits.Load() }

// Succeeded reports whether it has ended with status 0.
func (s *Successor) Succeeded() bool { return s.HasEnded() && s.exit.success }

// ExitError says how the successor ended: an *exec.ExitError if it was our child.
func (s *Successor) ExitError() error {
	<-s.ended
	return s.exit.err
}

// Signal sends a signal, unless the successor has ended.
func (s *Successor) Signal(sig os.Signal) { s.process.Signal(sig) }

// GiveUp says that we no longer wait for the successor to be ready. It answers with
// Silent, unless it says just now that it is Ready; one that hangs does not answer.
func (s *Successor) GiveUp() { s.control.post(kindGiveUp, nil) }

// Kill ends the successor. It is not heard any more.
func (s *Successor) Kill() {
	s.control.shutdown()
	s.process.Signal(syscall.SIGKILL)
}

// Stop passes on that this process was told to stop, as the service manager's main
// process: it is meant for the service. A successor that has heard it already does
// nothing, nor does one that does not run Wait.
func (s *Successor) Stop() {
	if s.Waits() {
		s.control.post(kindStop, nil)
	}
}

// Status tells the successor how our drain goes; main, that it is the service
// manager's main process now. Of those that are only text, the latest is sent: a successor
// that does not read for long still hears what comes after them.
func (s *Successor) Status(text string, main bool) {
	key := "status"
	if main {
		key = ""
	}
	s.control.posts.add(key, func() { s.control.sendLater(kindStatus, Status{text, main}) })
}

// Drained tells the successor that our drain is over: nothing more will be moved.
func (s *Successor) Drained() { s.control.post(kindDrained, nil) }

// Flush waits until the successor was told all, but no longer than the timeout.
func (s *Successor) Flush(timeout time.Duration) { s.control.flush(timeout) }

// TakeBack makes the sockets' paths ours again when the successor has failed.
func (s *Successor) TakeBack() { s.keepPaths(false) }

// keepPaths says of every socket that the successor has whether closing it here
// leaves its path.
func (s *Successor) keepPaths(keep bool) {
	for _, sock := range append(s.g.inUse(), s.bare...) {
		c := sock.conn()
		sock.keepPath(keep && (sock.Kind != Listener || c == nil || s.Keeps(c) || s.rebinds(c)))
	}
}

// DropPaths makes the paths of those sockets ours again that the successor does not
// serve on, nor has bound anew: they end with us.
func (s *Successor) DropPaths() { s.keepPaths(true) }

// Keeps reports whether the successor serves on a listening socket, as far as it has
// said.
func (s *Successor) Keeps(listener syscall.Conn) bool {
	b := s.serves.Load()
	if b == nil {
		return true
	}
	place, err := s.place(listener)
	return err != nil || slices.Contains(b.Kept, place) // what cannot be identified is not ours to close
}

// rebinds reports whether the path of a listening socket leads to one that the successor
// has opened instead.
func (s *Successor) rebinds(listener syscall.Conn) bool {
	b := s.serves.Load()
	if b == nil {
		return false
	}
	place, err := s.place(listener)
	return err == nil && slices.Contains(b.Rebound, place)
}

// place returns where a listening socket is among those that the successor inherited, or
// -1 if it is not.
func (s *Successor) place(listener syscall.Conn) (int, error) {
	id, err := identify(listener)
	if place, ok := s.passed[id]; ok {
		return place, err
	}
	return -1, err
}

// Moves reports whether it takes connections over.
func (s *Successor) Moves() bool { return canMove && s.takes.Load() && !isClosed(s.heard) }
