// Package handoff is how the generations of a process talk: the descriptors
// and variables that a successor inherits, and the control socket over which
// it says that it is ready and takes open connections over. It knows nothing
// of the protocols spoken on them.
package handoff

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/systemd"
)

var (
	// ErrUnderWay is returned by Start while another successor starts or
	// serves.
	ErrUnderWay = errors.New("a restart is already under way")

	// ErrGone is returned by Move when the successor cannot answer: it has ended, or
	// is about to; or it has no descriptor left.
	ErrGone = errors.New("the successor is gone, or has no descriptor left")

	// ErrStopping is returned by Start, and by HandOver, once Stop was called.
	ErrStopping = errors.New("this process is stopping")

	// errFirst is why the first process of a container starts no successor; see
	// pid_namespaces(7).
	errFirst = errors.New("pid 1 cannot hand over, since its container ends with it; grace.Supervise lets it stay")

	// ErrGivenUp is returned by Ready when the predecessor no longer waits: it
	// serves on, and the sockets are its.
	ErrGivenUp = errors.New("the predecessor has given up waiting for this process to be ready, and serves on")
)

// A Generation is this process as one of the chain that serves the same
// sockets. All methods may be called from several goroutines.
type Generation struct {
	origin Origin
	err    error // what was wrong with what we were told to inherit
	ppid   int   // when we started
	pool   pool

	predecessor *control      // nil unless Succeeded
	gone        chan struct{} // closed when the predecessor has ended
	messengers  chan *messenger
	stopOnce    sync.Once
	toldToStop  chan struct{} // closed when that was passed on to us

	supervisor   *net.UnixConn // nil unless Supervise started us, or who started us
	unsupervised chan struct{} // closed when the supervisor has ended; nil without one

	states map[string][]byte

	ready    sync.Once
	readyErr error

	readying  sync.Mutex // guards what follows: only one of them becomes true
	saidReady bool
	givenUp   bool // the predecessor no longer waits for us

	taking    sync.Mutex // held while a batch is taken; guards what follows
	receivers map[int]func([]*os.File, []Waiting)

	telling sync.Mutex // states for the service manager, one at a time

	mu        sync.Mutex // guards what follows
	successor *Successor // starting or serving
	providers map[string]func() []byte
	onReady   func(*Successor)
	missed    *Successor // was ready before OnReady
	onStatus  func(text string, main bool)
	told      *statusBody // the predecessor has, and nobody has listened yet
	refusal   error       // why no successor may be started
	logger    *log.Logger
}

// Self returns this process's generation. The first call reads the environment
// and takes the inherited descriptors over.
var Self = sync.OnceValue(func() *Generation {
	g := newGeneration()
	g.load()
	return g
})

func newGeneration() *Generation {
	gone := make(chan struct{})
	close(gone)
	return &Generation{
		gone:       gone,
		messengers: make(chan *messenger, 1),
		toldToStop: make(chan struct{}),
		states:     map[string][]byte{},
		receivers:  map[int]func([]*os.File, []Waiting){},
		providers:  map[string]func() []byte{},
	}
}

// Origin returns where this process comes from.
func (g *Generation) Origin() Origin { return g.origin }

// Parent returns the process id of whoever started this process.
func (g *Generation) Parent() int { return g.ppid }

// Err returns what was wrong with what the process was told to inherit.
// Nothing is inherited then.
func (g *Generation) Err() error { return g.err }

// Take gives out the first inherited socket that match accepts and nobody has
// asked for yet, or nil. It goes on travelling until it is closed.
func (g *Generation) Take(match func(*Socket) bool) *Socket { return g.pool.take(match) }

// Find returns the first socket in use that match accepts, or nil.
func (g *Generation) Find(match func(*Socket) bool) *Socket { return g.pool.find(match) }

// Add lets a socket that was opened here travel to successors until it is
// closed.
func (g *Generation) Add(s *Socket) { g.pool.add(s) }

// Activated reports whether a listener is systemd's, which keeps it open.
func (g *Generation) Activated(l net.Listener) bool {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	return s != nil && s.Activated
}

// Remove lets the sockets that match accepts stay here, and returns them.
func (g *Generation) Remove(match func(*Socket) bool) []*Socket { return g.pool.remove(match) }

// State returns what the predecessor provided under this name, or nil.
func (g *Generation) State(name string) []byte { return g.states[name] }

// Provide calls f for the state that a successor shall find under this name
// when it is started. It reaches the successor over the control socket: never
// a disk, never the environment.
func (g *Generation) Provide(name string, f func() []byte) {
	g.mu.Lock()
	g.providers[name] = f
	g.mu.Unlock()
}

// Accept calls take with the connections of a listener that the predecessor
// hands over; they are the receiver's then. They come as files, in non-blocking
// mode: making a net.Conn of each takes longer than the predecessor should wait.
// How long each has waited for its next request is nil if the predecessor does not say.
// A nil take refuses them: once Accept has returned, no more will come.
func (g *Generation) Accept(l net.Listener, take func([]*os.File, []Waiting)) {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	if s == nil || s.index < 0 {
		return // opened here: the predecessor does not know it
	}
	g.taking.Lock()
	defer g.taking.Unlock()
	if take != nil {
		g.receivers[s.index] = take
	} else {
		delete(g.receivers, s.index)
	}
}

// PredecessorGone is closed once no predecessor is left that could still hand
// connections over.
func (g *Generation) PredecessorGone() <-chan struct{} { return g.gone }

// ToldToStop is closed when the service manager's main process, which is another,
// was told to stop: the service is meant.
func (g *Generation) ToldToStop() <-chan struct{} { return g.toldToStop }

func (g *Generation) stopTold() { g.stopOnce.Do(func() { close(g.toldToStop) }) }

// OnReady calls f, instead of sending SIGTERM to this process, when a
// successor becomes ready, and at once if one has become so before; nil undoes it.
func (g *Generation) OnReady(f func(*Successor)) {
	g.mu.Lock()
	g.onReady = f
	s := g.missed
	if f != nil {
		g.missed = nil
	}
	serves := s != nil && s == g.successor
	g.mu.Unlock()
	if f != nil && serves {
		f(s)
	}
}

// OnStatus calls f when the predecessor tells how its drain goes, and when it has
// told the service manager that we are the main process now. What it has told
// before is not lost.
func (g *Generation) OnStatus(f func(text string, main bool)) {
	g.mu.Lock()
	g.onStatus = f
	told := g.told
	g.told = nil
	g.mu.Unlock()
	if told != nil {
		f(told.Text, told.Main)
	}
}

// status passes on what the predecessor tells.
func (g *Generation) status(b statusBody) {
	g.mu.Lock()
	f := g.onStatus
	if f == nil {
		b.Main = b.Main || g.told != nil && g.told.Main
		g.told = &b
	}
	g.mu.Unlock()
	if f != nil {
		f(b.Text, b.Main)
	}
}

// SetLogger chooses where failures go that have no caller to return to.
func (g *Generation) SetLogger(l *log.Logger) {
	g.mu.Lock()
	g.logger = l
	g.mu.Unlock()
}

func (g *Generation) logf(format string, args ...any) {
	g.mu.Lock()
	l := g.logger
	g.mu.Unlock()
	if l == nil {
		l = log.Default()
	}
	l.Printf(format, args...)
}

// Starting returns the successor that is starting or serving, or nil.
func (g *Generation) Starting() *Successor {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.successor
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
	case g.refusal != nil:
		return g.refusal
	case g.successor != nil:
		return fmt.Errorf("%w: pid %d", ErrUnderWay, g.successor.Pid)
	case os.Getpid() == 1:
		return errFirst
	}
	return nil
}

// Stop lets no successor be started any more, and gives one up that is not
// ready. Stop(false) allows it again.
func (g *Generation) Stop(stop bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusal = nil
	if stop {
		g.refusal = ErrStopping
		if g.successor != nil {
			g.successor.giveUp()
		}
	}
}

// Supervised reports whether a supervisor is the parent of the generations.
func (g *Generation) Supervised() bool { return g.supervisor != nil }

// Unsupervised is closed when the supervisor has ended. It is nil without one.
func (g *Generation) Unsupervised() <-chan struct{} { return g.unsupervised }

// Managed reports whether somebody listens to Notify.
func (g *Generation) Managed() bool {
	return g.supervisor != nil || os.Getenv(systemd.EnvSocket) != ""
}

// A Drainer is a listener that can do more than close.
type Drainer interface {
	// Drain stops accepting and returns when no connection is left, or ctx is
	// done. With a successor, it hands over what can be handed over, and Resume
	// may follow; without one it is the end.
	Drain(ctx context.Context, how Drain) error
	// Resume undoes Drain: connections are accepted, again.
	Resume()
	// Count returns how many connections are open, and what became of the others.
	Count() accept.Count
}

// A Drain says how a listener is drained.
type Drain struct {
	To    *Successor // nil: nobody takes over
	Quick bool       // nobody idle is waited for
}

// A Server is a Drainer that does the accepting itself.
type Server interface {
	Drainer
	// Serve serves connections, which it accepts from the first Resume on. It calls
	// accepting once, when nothing else is missing for that. It returns nil after
	// Drain and Close, else why it cannot go on.
	Serve(accepting func()) error
}

// LeavePaths leaves the paths of our sockets to a predecessor that is about to take
// over again.
func (g *Generation) LeavePaths() {
	if !isClosed(g.gone) {
		g.pool.keepPaths(true)
	}
}

// Discard closes all inherited sockets that nobody has asked for.
func (g *Generation) Discard() { g.pool.closeUnused() }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
