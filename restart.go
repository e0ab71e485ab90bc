package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// giveUpTimeout is how long a successor that was given up may take to answer, and one
// that can say no more, to end by itself.
const giveUpTimeout = 500 * time.Millisecond

// Restart starts a successor that inherits the listeners in their order: the
// same command line and environment as this process was started with, looked up anew in
// the directory of that start. It returns nil when the successor is ready, or an error
// that says why there is none: context.DeadlineExceeded, what PreStart returned, what
// could not be executed, ErrUnderWay or ErrStopping, each wrapped; or its
// *exec.ExitError, unless the service manager or a supervisor is the parent of both, see
// Supervise: then only the text says how it ended, as far as that is known here. After an
// error this process serves on, and what was started has been ended.
//
// If Wait is running, it owns the restart: its hooks are called, and it closes the
// listeners and returns. If not, that is the program's to do: the process gets SIGTERM
// when the successor is ready. A failure is logged, too.
func (p *Process) Restart(listeners []Listener) (err error) {
	g := handoff.Self()
	request := &handoff.Request{Listeners: netListeners(listeners), Outcome: make(chan handoff.Outcome, 1)}
	if g.Ask(request) {
		return (<-request.Outcome).Err
	}
	r, err := p.newRestart(listeners, nil)
	if err != nil {
		r.report(nil)
		return err
	}
	select {
	case alone <- r:
	default:
		return fmt.Errorf("grace: %w", handoff.ErrUnderWay)
	}
	if g.Owned() && takeAlone() != nil {
		return p.Restart(listeners) // Wait has begun just now
	}
	r.run()
	if takeAlone() == nil {
		return r.err // Wait was called meanwhile, and owns it
	}
	r.report(nil)
	handoff.FlushLog(logTimeout)
	if r.err != nil {
		return r.err
	}
	r.successor.Release()
	if r.termed {
		return nil
	}
	return signalSelf(syscall.SIGTERM)
}

// A restart is the attempt to get a successor ready. All is owned by the goroutine that
// runs it, until done is closed.
type restart struct {
	p         *Process
	g         *handoff.Generation
	listeners []net.Listener
	request   *handoff.Request // of whoever waits for the outcome, or nil
	owned     bool             // by Wait: the successor may be no child of ours
	start     time.Time
	giveUp    chan struct{}  // closed when this process stops
	signals   chan os.Signal // that came meanwhile

	done      chan struct{}
	pid       int                // 0 if no successor was started
	successor *handoff.Successor // one that is ready, or nil
	err       error              // why there is none
	took      time.Duration      // until that was known
	termed    bool               // it was ready by a SIGTERM to us
	early     os.Signal          // a restart signal that is meant for it
}

// newRestart returns one that is yet to run, or one that has failed, with the error, if
// there can be none now.
func (p *Process) newRestart(listeners []Listener, request *handoff.Request) (*restart, error) {
	r := &restart{
		p:         p,
		g:         handoff.Self(),
		listeners: netListeners(listeners),
		request:   request,
		start:     time.Now(),
		giveUp:    make(chan struct{}),
		signals:   make(chan os.Signal, 8),
		done:      make(chan struct{}),
	}
	if request != nil && request.Listeners != nil {
		r.listeners = request.Listeners
	}
	if err := r.g.Refuses(); err != nil { // before anybody hears of it
		r.err = fmt.Errorf("grace: %w", err)
	}
	return r, r.err
}

// run returns when the successor is ready, or nothing is left of it.
func (r *restart) run() {
	defer func() {
		r.took = time.Since(r.start)
		close(r.done)
	}()
	r.p.logf("restart: asked for")
	r.g.Manager.Tell(systemd.Reloading() + "\n" + systemd.ExtendTimeout + "\nSTATUS=Starting a successor")
	if r.err = r.preStart(); r.err != nil {
		return
	}
	if isClosed(r.giveUp) {
		r.err = fmt.Errorf("grace: %w", handoff.ErrStopping)
		return
	}
	s, err := r.g.Start(r.listeners, r.owned)
	if err != nil {
		r.err = fmt.Errorf("grace: %w", err)
		return
	}
	r.pid = s.Pid
	r.p.logf("restart: started pid %d", s.Pid)
	if r.request != nil && r.request.Started != nil {
		r.request.Started <- s.Pid
	}
	if !r.owned && s.IsOriginal() {
		// It says by a signal that it is ready, which the program has too.
		signal.Notify(r.signals, syscall.SIGTERM)
		defer signal.Stop(r.signals)
	}
	if err := r.await(s); err != nil {
		s.Release()
		s.TakeBack()
		r.err = fmt.Errorf("grace: successor %s: %w", program(), err)
		return
	}
	r.successor = s
}

// preStart calls PreStart, for no longer than StartTimeout.
func (r *restart) preStart() error {
	if r.p.PreStart == nil {
		return nil
	}
	done, result := r.p.call("PreStart", r.p.PreStart)
	timeout := r.p.startTimeout()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-done:
			if *result != nil {
				return fmt.Errorf("before the start: %w", *result)
			}
			return nil
		case <-timer.C:
			return fmt.Errorf("before the start: PreStart has not returned within %v: %w", timeout, context.DeadlineExceeded)
		case sig := <-r.signals:
			if sig != restartSignal {
				return fmt.Errorf("grace: %w", handoff.ErrStopping)
			}
			r.ignoreEarly()
		case <-r.giveUp:
			return fmt.Errorf("grace: %w", handoff.ErrStopping)
		}
	}
}

// await waits until the successor is ready, or returns why it is gone.
func (r *restart) await(s *handoff.Successor) error {
	timeout := r.p.startTimeout()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var silent <-chan time.Time
	for {
		select {
		case e := <-s.Events():
			switch e {
			case handoff.Ready:
				return nil
			case handoff.Silent:
				silent = time.After(giveUpTimeout)
			case handoff.Ended:
				return fmt.Errorf("%w after %v (before it was ready)", s.ExitError(), since(s.Started))
			}
			if r.early != nil && !s.MayBeReady() {
				r.ignoreEarly()
			}
		case <-silent:
			// One built on facebookgo/grace says nothing, and does not hold it.
			if !s.IsOriginal() {
				return r.end(s, errors.New("its end of the control socket is closed, but it runs"))
			}
		case <-timer.C:
			return r.end(s, fmt.Errorf("not ready within %v, it has called neither Serve nor CloseParent: %w", timeout, context.DeadlineExceeded))
		case <-r.giveUp:
			return r.end(s, handoff.ErrStopping)
		case sig := <-r.signals:
			switch {
			case sig == restartSignal:
				// If the successor has said that it is ready, it was meant for it.
				if r.early = sig; !s.MayBeReady() {
					r.ignoreEarly()
				}
			case s.IsOriginal():
				r.termed = true
				return nil
			default:
				return r.end(s, handoff.ErrStopping)
			}
		}
	}
}

func (r *restart) ignoreEarly() {
	r.early = nil
	which := ""
	if r.pid != 0 {
		which = fmt.Sprintf(": pid %d", r.pid)
	}
	r.p.logf("restart signal ignored: %v%s", handoff.ErrUnderWay, which)
}

// ignoreUnread answers a restart signal that came when the outcome was known already: a
// successor that is ready gets it.
func (r *restart) ignoreUnread() {
	for {
		select {
		case sig := <-r.signals:
			if sig != restartSignal {
				continue // a stop, which is the loop's to do now
			}
			if r.early = sig; r.err != nil {
				r.ignoreEarly()
			}
		default:
			return
		}
	}
}

// end gives the successor up. It may get ready at this very moment: both then know.
func (r *restart) end(s *handoff.Successor, why error) error {
	s.GiveUp()
	late := time.After(giveUpTimeout)
	killed := false
	for {
		select {
		case e := <-s.Events():
			switch {
			case e == handoff.Ready && !killed:
				return nil
			case e == handoff.Silent && !killed:
				s.Kill()
				killed = true
			case e == handoff.Ended:
				return fmt.Errorf("%w; killed pid %d", why, s.Pid)
			}
		case <-late:
			s.Kill()
			killed = true
		}
	}
}

// report tells of the outcome, in the loop of Wait or without one.
func (r *restart) report(l *loop) {
	if r.request != nil { // last: whoever has it may ask for the state
		defer func() { r.request.Outcome <- handoff.Outcome{Pid: r.pid, Err: r.err} }()
	}
	switch {
	case r.err == nil:
	case errors.Is(r.err, ErrUnderWay):
		return
	case errors.Is(r.err, ErrStopping):
		r.p.logf("restart given up: %v", r.err)
	default:
		r.p.logf("restart failed: %v; still serving with pid %d", r.err, os.Getpid())
		r.g.Manager.Tell("READY=1\nSTATUS=" + systemd.Escape(fmt.Sprintf("Restart failed: %v; serving with pid %d", r.err, os.Getpid())))
	}
	r.g.Restarted(handoff.Restarted{Pid: r.pid, At: r.start, Took: r.took, Err: r.err})
	r.p.report(l, r.pid, r.took, r.err)
}

// alone holds the restart that runs without Wait, until it is over, or Wait takes it.
var alone = make(chan *restart, 1)

func takeAlone() *restart {
	select {
	case r := <-alone:
		return r
	default:
		return nil
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

// program is the command line's first word, as this process was started with it.
func program() string { return handoff.Program0() }

func netListeners(listeners []Listener) []net.Listener {
	if listeners == nil {
		return nil
	}
	all := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		all[i] = l
	}
	return all
}
