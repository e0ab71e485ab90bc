package grace

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// defaultStartTimeout is how long a successor may take if nothing else is said.
const defaultStartTimeout = time.Minute

// A Process hands the listeners of this process over to a successor. The zero
// value is ready to use. Set the fields before the first call of a method.
type Process struct {
	// TermTimeout bounds how long Wait waits for open connections, after
	// SIGTERM or SIGINT and after a handoff. Zero means as long as it takes.
	TermTimeout time.Duration

	// StartTimeout is how long a successor may take from its start until it is
	// ready. Zero means one minute. One that takes longer is killed.
	StartTimeout time.Duration

	// PreStart, if not nil, is called before a successor is started. An error
	// calls the restart off.
	PreStart func() error

	// Standby is how long this process stays after it has been drained, not
	// accepting, ready to take over again if the successor fails. Zero means not
	// at all. Under systemd the successor becomes the main process when this time
	// is over, since only the main process may name another.
	Standby time.Duration

	// LameDuck is for how long this process goes on accepting and serving after SIGTERM,
	// while it says that it is not ready. Zero means not at all.
	LameDuck time.Duration

	// PIDFile, if not empty, is the path of a file that holds the process id of
	// the generation that serves. It is replaced atomically by each generation
	// that gets ready, and removed by the last one when it stops. One that cannot be
	// written is logged, and this process serves without it.
	PIDFile string

	// StoreListeners asks systemd to keep copies of the listening sockets, so
	// that after a crash the next process finds them with all connections that
	// wait in them. The service needs FileDescriptorStoreMax=.
	StoreListeners bool

	// OnRestart, if not nil, is called with the outcome of each restart: the
	// successor's process id, 0 if none was started, how long it took, and why
	// it failed, or nil. It is called a second time, with an error, for a
	// successor that fails after it was ready and before this process has ended.
	OnRestart func(pid int, took time.Duration, err error)

	// Logger gets a line for each event. Nil means the standard logger.
	Logger *log.Logger

	restarting sync.Mutex    // held by Restart
	isMain     atomic.Bool   // the service manager takes us for the main process
	main       chan struct{} // closed when it first does; made by Wait
	mainOnce   sync.Once
	notifyOnce sync.Once
	statusMu   sync.Mutex     // guards replaced, and is held while the status changes with it
	replaced   bool           // the status says no longer that this process serves
	usr2       chan os.Signal // restart requests, also those that come before Wait
}

// Inherit returns the listeners that the predecessor, or systemd, has handed to
// this process, in their order, or ErrNotInheriting if there are none. If one of
// the descriptors is not a listening socket, Inherit closes all of them and returns
// an error that names it. The variables that announced them are removed from the
// environment. Each listener is given out once.
//
// Until CloseParent is called the predecessor serves on.
func (p *Process) Inherit() (listeners []Listener, err error) {
	g := handoff.Self()
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("grace: inheriting listeners: %w", err)
	}
	if g.Origin() == handoff.Fresh {
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

// Restart starts a successor that inherits the listeners in their order: the
// same command line, looked up anew in the directory in which this process was
// started. It returns nil when the successor is ready, or an error that says why
// there is none: its *exec.ExitError, context.DeadlineExceeded, what PreStart
// returned, what could not be executed, ErrUnderWay or ErrStopping, each wrapped.
// After an error this process serves on, and what was started has been ended.
//
// Restart only starts the successor. Then it is for this process to close the
// listeners and end: if Wait is running it does so; if not, the process gets
// SIGTERM. A failure is logged, too.
func (p *Process) Restart(listeners []Listener) (err error) {
	start := time.Now()
	pid, err := p.restart(listeners)
	switch {
	case err == nil:
	case errors.Is(err, ErrUnderWay):
		return err
	case errors.Is(err, ErrStopping):
		p.logf("restart given up: %v", err)
	default:
		p.logf("restart failed: %v; still serving with pid %d", err, os.Getpid())
		p.notify("READY=1\nSTATUS=" + systemd.Escape(fmt.Sprintf("Restart failed: %v; serving with pid %d", err, os.Getpid())))
	}
	if p.OnRestart != nil {
		p.OnRestart(pid, time.Since(start), err)
	}
	return err
}

// restart returns the successor's process id, 0 if none was started.
func (p *Process) restart(listeners []Listener) (pid int, err error) {
	g := handoff.Self()
	if !p.restarting.TryLock() {
		return 0, fmt.Errorf("grace: %w", ErrUnderWay)
	}
	defer p.restarting.Unlock()
	if err := g.Refuses(); err != nil { // before anybody hears of it
		return 0, fmt.Errorf("grace: %w", err)
	}
	timeout := p.StartTimeout
	if timeout == 0 {
		timeout = defaultStartTimeout
	}

	p.notify(systemd.Reloading() + "\n" + systemd.Patience + "\nSTATUS=Starting a successor")
	started := make(chan struct{})
	defer close(started)
	go p.repeat(systemd.Patience, systemd.PatienceTick, false, started)
	if p.PreStart != nil {
		if err := p.PreStart(); err != nil {
			return 0, fmt.Errorf("before the start: %w", err)
		}
	}
	s, err := g.Start(netListeners(listeners))
	if err != nil {
		return 0, fmt.Errorf("grace: %w", err)
	}
	p.logf("restart: started pid %d", s.Pid)
	if err := s.HandOver(timeout); err != nil {
		return s.Pid, fmt.Errorf("grace: successor %s: %w", os.Args[0], err)
	}
	return s.Pid, nil
}

// CloseParent tells the predecessor that this process is ready, whereupon it
// finishes what it still holds and ends. Call it when the listeners are being
// served. Inherited sockets that were not asked for are closed. In a process
// without a predecessor it does nothing.
//
// A predecessor built on this library hears of it over a private socket; one
// built on facebookgo/grace gets SIGTERM, if it still is the parent of this
// process and has its command line. An error means that the predecessor has given
// up waiting, or could not be told, and serves on: this process should then end.
func (p *Process) CloseParent() error {
	p.watchRestart()
	handoff.Self().SetLogger(p.Logger)
	if err := handoff.Self().Ready(); err != nil {
		return fmt.Errorf("grace: %w", err)
	}
	p.writePIDFile()
	return nil
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

func (p *Process) logf(format string, args ...any) {
	l := p.Logger
	if l == nil {
		l = log.Default()
	}
	l.Printf(format, args...)
}

// restartSignaled restarts, and answers a signal that comes during a restart.
func (p *Process) restartSignaled(listeners []Listener) {
	if err := p.Restart(listeners); errors.Is(err, ErrUnderWay) {
		p.logf("restart signal ignored: %v", err)
	}
}
