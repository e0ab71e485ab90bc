// Package handoff is how the generations of a process talk: the descriptors
// and variables that a successor inherits, and the control socket over which
// it says that it is ready and takes open connections over. It knows nothing
// of the protocols spoken on them.
//
// # Who starts whom
//
// A successor is started by its predecessor. Its parent is whoever waits for processes:
//
//	a shell         shell ─── A ─── B            A waits for B, and ends first
//
//	systemd         systemd ─┬─ A  (main)        A starts B as its sibling, stays the main
//	                         └─ B                process until its drain is over, and names
//	                                             B as the last thing that it does
//
//	Supervise       supervisor ─┬─ A             the supervisor is the main process; it waits
//	                            └─ B             for both, and tells A how B has ended
//
//	PID 1           A                            no successor: the container ends with A
//
// A sibling is started with CLONE_PARENT, see clone(2), and seen to end by a pidfd. It is
// one only if its program file is known to speak this package's protocol: one that is
// built on facebookgo/grace sends SIGTERM to its parent, which must be its predecessor.
// So a child it is too where the kernel or a sandbox refuses that, and if the program has
// a signal loop of its own.
package handoff

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
)

var (
	// ErrUnderWay is returned by Start while another successor starts or
	// serves.
	ErrUnderWay = errors.New("a restart is already under way")

	// ErrGone is returned by Move when the successor cannot answer: it has ended, or
	// is about to; or it has no descriptor left.
	ErrGone = errors.New("the successor is gone, or has no descriptor left")

	// ErrStopping is returned by Start, and by a restart that is under way, once this
	// process stops.
	ErrStopping = errors.New("this process is stopping")

	// ErrWaiting is returned by Own while another owns restarts.
	ErrWaiting = errors.New("another Wait or Serve is running")

	// errFirst is why the first process of a container starts no successor; see
	// pid_namespaces(7).
	errFirst = errors.New("pid 1 cannot hand over, since its container ends with it; grace.Supervise lets it stay")

	// errUnsupported is why one starts none where descriptors are not inherited.
	errUnsupported = fmt.Errorf("handing sockets over on %s: %w", runtime.GOOS, errors.ErrUnsupported)

	// errSimple is why a process starts no successor that systemd takes for the service
	// itself, and that has no way to name another.
	errSimple = errors.New("systemd would take the end of this process for the end of the service; Type=notify in its unit lets it follow")

	// ErrGivenUp is returned by Ready when the predecessor no longer waits: it
	// serves on, and the sockets are its.
	ErrGivenUp = errors.New("the predecessor has given up waiting for this process to be ready, and serves on")
)

// numberState is the state that tells a successor its predecessor's Number.
const numberState = "generation"

// A Generation is this process as one of the chain that serves the same
// sockets. All methods may be called from several goroutines.
type Generation struct {
	pool

	// These do not change.
	Origin      Origin
	Err         error // what was wrong with what we were told to inherit
	Undescribed error // why the predecessor has not said what was asked for its sockets, or nil
	Number      int   // 1 for the first of a chain
	Predecessor *Predecessor
	Manager     *Manager

	ready  func() error
	logger atomic.Pointer[log.Logger]
	phase  atomic.Int32
	last   atomic.Pointer[Restarted]

	mu        sync.Mutex // guards what follows
	successor *Successor // starting or serving
	providers map[string]func() []byte
	owner     chan *Request // nil: nobody runs Wait
	released  chan struct{} // closed when the owner no longer does
	stopping  bool
}

// A Request asks the owner of restarts for one.
type Request struct {
	Listeners []net.Listener // those of Wait, if nil
	Started   chan int       // brings the successor's process id, if not nil; of one
	Outcome   chan Outcome   // brings one, at the end; of one
}

// An Outcome is how a restart has ended.
type Outcome struct {
	Pid int // 0 if no successor was started
	Err error
}

// Self returns this process's generation. The first call makes of the inherited
// descriptors what they are.
var Self = sync.OnceValue(func() *Generation {
	g := newGeneration()
	g.load()
	return g
})

func newGeneration() *Generation {
	g := &Generation{Number: 1, providers: map[string]func() []byte{}}
	g.Predecessor = noPredecessor(g)
	g.ready = sync.OnceValue(g.becomeReady)
	return g
}

// Activated reports whether a listener is systemd's, which keeps it open.
func (g *Generation) Activated(l net.Listener) bool {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	return s != nil && s.Activated
}

// Alone reports whether it is known that no other process has a listener's socket: no
// predecessor that may take over again, and no service manager, which one of ours may not
// have told of.
func (g *Generation) Alone(l net.Listener) bool {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	return s != nil && s.alone.Load() && isClosed(g.Predecessor.gone)
}

// State returns what the predecessor provided under this name, or nil.
func (g *Generation) State(name string) []byte { return g.Predecessor.states[name] }

// Receive calls take with the connections of a listener that the predecessor
// hands over; they are the receiver's then. They come as files, in non-blocking
// mode: making a net.Conn of each takes longer than the predecessor should wait.
// How long each has waited for its next request is nil if the predecessor does not say.
// A nil take refuses them: once Receive has returned, no more will come.
func (g *Generation) Receive(l net.Listener, take func([]*os.File, []Waiting)) {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	if s != nil && s.index >= 0 { // else the predecessor does not know it
		g.Predecessor.receiver(s.index, take)
	}
}

// Ready tells the predecessor that we serve, once; later calls return what the
// first did. What was inherited and never asked for is closed.
func (g *Generation) Ready() error { return g.ready() }

func (g *Generation) becomeReady() (err error) {
	switch g.Origin {
	case Succeeded:
		if err := g.Predecessor.ready(g.serves()); err != nil {
			return err // the predecessor serves on
		}
	case SucceededLegacy:
		err = g.termPredecessor()
	}
	unsetenv(announcing...)
	if g.Manager.Supervised() {
		g.Manager.Tell("MAINPID=" + strconv.Itoa(os.Getpid()))
	}
	g.Discard()
	g.keepPaths(false)
	return err
}

// serves says which of the predecessor's listening sockets are in use, and which others
// would take the path of one that was opened here with them.
func (g *Generation) serves() readyBody {
	b := readyBody{Kept: []int{}}
	opened := []string{}
	for _, s := range g.inUse() {
		if s.Kind != Listener {
			continue
		}
		if s.index >= 0 {
			b.Kept = append(b.Kept, s.index)
		} else {
			opened = append(opened, s.Addr().String())
		}
	}
	for _, s := range g.all() {
		leadsTo := func(path string) bool { return sameFile(s.Addr().String(), path) }
		if s.Kind == Listener && s.index >= 0 && !slices.Contains(b.Kept, s.index) && slices.ContainsFunc(opened, leadsTo) {
			b.Rebound = append(b.Rebound, s.index)
		}
	}
	return b
}

// Provide calls f for the state that a successor shall find under this name
// when it is started. It reaches the successor over the control socket: never
// a disk, never the environment.
func (g *Generation) Provide(name string, f func() []byte) {
	g.mu.Lock()
	g.providers[name] = f
	g.mu.Unlock()
}

// Own makes the caller the owner of restarts: others ask it. At most one may be at a
// time; Disown undoes it.
func (g *Generation) Own() (<-chan *Request, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.owner != nil {
		return nil, ErrWaiting
	}
	g.owner, g.released = make(chan *Request), make(chan struct{})
	g.stopping = false
	return g.owner, nil
}

// Disown says that nobody is asked any more.
func (g *Generation) Disown() {
	g.mu.Lock()
	g.owner = nil
	close(g.released)
	g.mu.Unlock()
}

// Ask passes a request on to the owner of restarts, and reports whether there is one.
func (g *Generation) Ask(r *Request) bool {
	g.mu.Lock()
	owner, released := g.owner, g.released
	g.mu.Unlock()
	if owner == nil {
		return false
	}
	select {
	case owner <- r:
		return true
	case <-released:
		return false
	}
}

// Owned reports whether somebody runs Wait.
func (g *Generation) Owned() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.owner != nil
}

// SetLogger chooses where failures go that have no caller to return to.
func (g *Generation) SetLogger(l *log.Logger) { g.logger.Store(l) }

// Logf writes a line to the logger that was chosen.
func (g *Generation) Logf(format string, args ...any) { Logf(g.logger.Load(), format, args...) }

// Successor returns the successor that is starting or serving, or nil.
func (g *Generation) Successor() *Successor {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.successor
}

// Stopping lets no successor be started any more.
func (g *Generation) Stopping() {
	g.mu.Lock()
	g.stopping = true
	g.mu.Unlock()
}

// Refuses returns why no successor may be started now, such as ErrUnderWay or
// ErrStopping, or nil.
func (g *Generation) Refuses() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refuses()
}

// refuses is Refuses. The caller holds g.mu.
func (g *Generation) refuses() error {
	switch {
	case g.stopping:
		return ErrStopping
	case g.successor != nil && g.successor.Pid != 0:
		return fmt.Errorf("%w: pid %d", ErrUnderWay, g.successor.Pid)
	case g.successor != nil:
		return ErrUnderWay
	case !inherits:
		return errUnsupported
	case os.Getpid() == 1:
		return errFirst
	case born.getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) && !g.Manager.Listens():
		// systemd.exec(5): it names the first process, which a service of Type=simple is.
		return errSimple
	}
	return nil
}

// LeavePaths leaves the paths of our sockets to a predecessor that is about to take
// over again.
func (g *Generation) LeavePaths() {
	if !isClosed(g.Predecessor.gone) {
		g.keepPaths(true)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
