package grace

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// defaultStartTimeout is how long a successor may take if nothing else is said.
const defaultStartTimeout = time.Minute

// A Process hands the listeners of this process over to a successor. The zero
// value is ready to use. Set the fields before the first call of a method.
//
// Each hook is called in a goroutine of its own. One that panics ends nothing: that is
// logged with its stack, and a PreStart that panics has failed.
type Process struct {
	// TermTimeout bounds how long Wait waits for open connections, after
	// SIGTERM or SIGINT and after a handoff, and for hooks that it has called. Zero or
	// less means as long as it takes.
	TermTimeout time.Duration

	// LameDuck is how long this process goes on accepting and serving after SIGTERM,
	// while load balancers learn that it is about to stop. Then the stop begins, and
	// TermTimeout with it. A handoff and SIGINT skip it. Zero means not at all.
	LameDuck time.Duration

	// StartTimeout is how long a successor may take from its start until it is
	// ready, and PreStart before that. Zero or less means one minute. One that takes
	// longer is killed.
	StartTimeout time.Duration

	// PreStart, if not nil, is called before a successor is started. An error
	// calls the restart off.
	PreStart func() error

	// Standby is how long this process stays after it has been drained, not
	// accepting, ready to take over again if the successor fails. Zero or less means not
	// at all. Under systemd the successor becomes the main process when this time
	// is over.
	Standby time.Duration

	// PIDFile, if not empty, is the path of a file that holds the process id of
	// the generation that serves; of the main process, where a service manager listens
	// at NOTIFY_SOCKET, which becomes that when its predecessor is drained. It is
	// replaced atomically, and removed by the last one when it stops. One that cannot be
	// written, or that names another instance that runs, is logged, and this process
	// serves without it.
	PIDFile string

	// StoreListeners asks systemd to keep copies of the listening sockets, so
	// that after a crash the next process finds them with all connections that
	// wait in them. The service needs FileDescriptorStoreMax=.
	StoreListeners bool

	// OnReady, if not nil, is called once, when this process serves: all sockets are
	// open, and a predecessor knows. Nobody waits for it.
	OnReady func()

	// OnDrain, if not nil, is called when a drain begins, after a handoff or at a stop,
	// before anything is closed: it is time to tell those who would not leave by
	// themselves. Closing a Listener that NewListener made does not wait then. It may
	// block until its work is done; Wait returns after it, or at the end of TermTimeout.
	// If a successor fails, it may be called again by the next drain.
	OnDrain func()

	// OnRestart, if not nil, is called with the outcome of each restart: the
	// successor's process id, 0 if none was started, how long it took, and why
	// it failed, or nil, as soon as the successor alone accepts. It is called a second time, with an error, for a
	// successor that fails after it was ready and before this process has ended. Calls
	// come one after the other.
	OnRestart func(pid int, took time.Duration, err error)

	// OnMove, if not nil, gets the connections that the predecessor's Move hands over,
	// with what it said of them, each in a goroutine of its own. It embeds *net.TCPConn or
	// *net.UnixConn, is OnMove's to serve and close, and counted until then: a stop waits
	// for it, and the next restart can move it on. Without OnMove, Move fails in the
	// predecessor, which serves them on.
	OnMove func(c net.Conn, state []byte)

	// Logger gets a line for each event, from a goroutine of its own. Nil means the
	// standard logger.
	Logger *log.Logger

	notifyOnce    sync.Once
	usr2          chan os.Signal // restart requests, also those that come before Wait
	pidFileFailed bool           // which was logged
	moved         movedConns
}

// Inherit returns the listeners that the predecessor, or systemd, has handed to
// this process, in their order, or ErrNotInheriting if there are none. If one of
// the descriptors is not a listening socket, Inherit closes all of them and returns
// an error that names it. Each listener is given out once, and counts as NewListener's do.
//
// Until CloseParent is called the predecessor serves on, and LISTEN_FDS stays in the
// environment, beside a LISTEN_PID that names this process.
func (p *Process) Inherit() (listeners []Listener, err error) {
	g := handoff.Self()
	if g.Err != nil {
		return nil, fmt.Errorf("grace: inheriting listeners: %w", g.Err)
	}
	if g.Origin == handoff.Fresh {
		return nil, ErrNotInheriting
	}
	for {
		s := g.Take(func(s *handoff.Socket) bool { return s.Descriptor() >= 0 })
		if s == nil {
			return listeners, nil
		}
		l, ok := s.Listener().(Listener)
		if !ok {
			err := fmt.Errorf("grace: inheriting listeners: descriptor %d is %s, not a listening socket", s.Descriptor(), s.Describe())
			g.Remove(func(other *handoff.Socket) bool { return other == s })
			s.Open.Close()
			for _, l := range listeners {
				l.Close()
			}
			g.Discard()
			return nil, err
		}
		listeners = append(listeners, NewListener(l))
	}
}

// CloseParent tells the predecessor that this process is ready, whereupon it
// finishes what it still holds and ends. Call it when the listeners are being
// served. Inherited sockets that were not asked for are closed. In a process
// without a predecessor it does nothing.
//
// A predecessor built on this library hears of it over a private socket; one
// built on facebookgo/grace gets SIGTERM, if it still is the parent of this
// process and runs its program. An error means that the predecessor has given
// up waiting, or could not be told, and serves on: this process should then end.
func (p *Process) CloseParent() error {
	p.watchRestart()
	g := handoff.Self()
	g.SetLogger(p.Logger)
	if p.OnMove != nil {
		g.Predecessor.OnMove(p.receiveMoved, p.moved.list())
	}
	if err := g.Ready(); err != nil {
		return fmt.Errorf("grace: %w", err)
	}
	if g.Origin != handoff.Succeeded || !p.namesMain() {
		p.writePIDFile()
	}
	return nil
}

// WaitParent waits until the predecessor has finished its drain, and returns nil; at
// once if there is none. If ctx ends first, it returns ctx.Err(). It is for what only one
// process may do: a queue's consumer, a database file. The predecessor may still stand
// by, or run what follows its Wait.
func (p *Process) WaitParent(ctx context.Context) error {
	g := handoff.Self()
	if g.Origin == handoff.SucceededLegacy {
		return g.WaitLegacy(ctx)
	}
	select {
	case <-g.Predecessor.Drained():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchRestart keeps a restart signal that comes between CloseParent and Wait
// from ending the process.
func (p *Process) watchRestart() {
	p.notifyOnce.Do(func() {
		p.usr2 = make(chan os.Signal, 1)
		if restartSignal != nil {
			signal.Notify(p.usr2, restartSignal)
		}
	})
}

func (p *Process) logf(format string, args ...any) { handoff.Logf(p.Logger, format, args...) }

func (p *Process) startTimeout() time.Duration {
	if p.StartTimeout <= 0 {
		return defaultStartTimeout
	}
	return p.StartTimeout
}
