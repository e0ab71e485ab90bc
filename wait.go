package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// Wait serves signals until this process has nothing left to do.
//
// SIGTERM and SIGINT close all listeners concurrently; Wait returns when the
// last Close has returned, or with an error that says what is left when
// TermTimeout is over. A second such signal, of either kind, ends the process as Go
// does by default. Where the first one may arrive twice, under Supervise and from systemd
// in a handoff, those that follow within a second are taken for the same.
//
// SIGUSR2 restarts, as Restart does. A restart that fails is logged, and Wait
// goes on. Once the successor is ready, the listeners stop accepting and Wait
// returns when they are drained. If the successor fails before that, they accept
// again and Wait goes on. Only a listener that NewListener made, of one that has
// SetDeadline, can be paused like that: any other is closed at once.
//
// One Wait may run at a time.
func (p *Process) Wait(listeners []Listener) (err error) {
	w := &waiter{
		p:         p,
		g:         handoff.Self(),
		listeners: listeners,
		signals:   make(chan os.Signal, 8),
		ready:     make(chan *handoff.Successor, 1),
		failed:    make(chan error, len(listeners)),
	}
	return w.run()
}

// A waiter is one call of Wait. All is owned by its goroutine but the channels.
type waiter struct {
	p         *Process
	g         *handoff.Generation
	listeners []Listener
	signals   chan os.Signal
	ready     chan *handoff.Successor
	failed    chan error // of a server that cannot go on
	told      time.Time  // to stop, first
	early     os.Signal  // to restart, for a successor that serves but is not on ready yet
}

func (w *waiter) run() error {
	w.g.OnReady(func(s *handoff.Successor) { w.ready <- s })
	defer w.g.OnReady(nil)
	signal.Notify(w.signals, os.Interrupt, syscall.SIGTERM) // later: SIGTERM is for those without OnReady
	w.p.watchRestart()
	if w.p.main == nil {
		w.p.main = make(chan struct{})
	}
	defer signal.Stop(w.signals)
	w.g.Stop(false)
	w.g.SetLogger(w.p.Logger)
	w.g.Waiting()
	if err := w.serve(); err != nil {
		return err
	}
	w.g.OnStatus(w.p.onStatus)
	w.p.notifyServing()
	done := make(chan struct{})
	defer close(done)
	go w.p.watchdog(done)

	for {
		select {
		case sig := <-w.p.usr2:
			if s := w.g.Starting(); s != nil && s.Ready() {
				w.early = sig // for s, which arrives on w.ready
			} else {
				go w.p.restartSignaled(w.listeners)
			}

		case sig := <-w.signals:
			if s := w.g.Starting(); s != nil && sig == syscall.SIGTERM && s.TermMeansReady() {
				continue // s arrives on w.ready
			}
			if w.overtaken() {
				if over, err := w.handOver(<-w.ready, sig); over {
					return err
				}
				continue
			}
			w.p.logf("%v: stopping pid %d", sig, os.Getpid())
			return w.stop(false, sig == os.Interrupt)

		case err := <-w.failed:
			w.p.logf("stopping pid %d: %v", os.Getpid(), err)
			return errors.Join(err, w.stop(true, true))

		case <-w.g.ToldToStop():
			if w.overtaken() {
				if over, err := w.handOver(<-w.ready, nil); over {
					return err // the successor was told, too
				}
				continue
			}
			w.p.logf("the service is to stop: stopping pid %d", os.Getpid())
			return w.stop(false, false)

		case <-w.g.Unsupervised():
			w.p.logf("the supervisor has ended: stopping pid %d", os.Getpid())
			return w.stop(false, false)

		case s := <-w.ready:
			if over, err := w.handOver(s, nil); over {
				return err
			}
		}
	}
}

// serve starts those listeners that accept by themselves. When all of them could,
// this process is ready.
func (w *waiter) serve() error {
	var servers []handoff.Server
	for _, l := range w.listeners {
		if s, ok := l.(handoff.Server); ok {
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		w.p.writePIDFile() // CloseParent, if there was a parent, was the program's to call
		return nil
	}
	// One that cannot serve fails here, while the predecessor still does.
	accepting := make(chan struct{}, len(servers))
	for _, s := range servers {
		go func() {
			if err := s.Serve(func() { accepting <- struct{}{} }); err != nil {
				w.failed <- err
			}
		}()
	}
	for range servers {
		select {
		case <-accepting:
		case err := <-w.failed:
			return err
		case sig := <-w.signals:
			die(sig) // nothing has begun yet
		}
	}
	// Until here a connection waits in the kernel, and the predecessor may
	// still take it.
	if err := w.p.CloseParent(); err != nil {
		return err
	}
	for _, s := range servers {
		s.Resume()
	}
	return nil
}

// same reports whether a second request to stop is the first one, come by another
// way: what is meant for all processes of a service, as from systemd or pkill(1),
// reaches a generation from its supervisor or its predecessor too.
func (w *waiter) same() bool {
	passedOn := w.g.Supervised()
	select {
	case <-w.g.ToldToStop():
		passedOn = true
	default:
	}
	return passedOn && time.Since(w.told) < time.Second
}

// overtaken gives a successor up that is starting, and reports whether it is ready at
// this moment instead: then it arrives on w.ready.
func (w *waiter) overtaken() bool {
	s := w.g.Starting()
	if s == nil {
		return false
	}
	w.g.Stop(true)
	<-s.Settled()
	if !s.Serves() {
		return false
	}
	w.g.Stop(false)
	return true
}

// stop closes all listeners. No successor takes over; a predecessor that still drains
// does so if this process has failed.
func (w *waiter) stop(failed, quick bool) error {
	if w.early != nil {
		w.p.logf("restart signal ignored: pid %d is stopping", os.Getpid())
	}
	starting := w.g.Starting()
	w.g.Stop(true)
	if starting != nil {
		<-starting.Settled() // until then the sockets' paths may be its
	}
	if failed {
		w.g.LeavePaths()
	} else {
		w.g.StepDown(true)
	}
	w.p.notifyStatus("STOPPING=1\nSTATUS=Stopping: "+w.left()+"\n"+systemd.Patience, false)
	w.told = time.Now() // that may have taken a while
	defer w.p.removePIDFile()
	drained, cancel := w.drain(handoff.Drain{Quick: quick})
	defer cancel()
	progress := w.newProgress()
	defer progress.stop()
	for {
		select {
		case err := <-drained:
			progress.end(err, 0)
			return err
		case sig := <-w.signals:
			if w.same() {
				continue
			}
			w.p.logf("%v again: ending now; left: %s", sig, w.left())
			w.p.removePIDFile()
			die(sig)
		case <-w.p.usr2:
			w.p.logf("restart signal ignored: pid %d is stopping", os.Getpid())
		case <-progress.tick:
			left := progress.log()
			w.p.notify("STATUS=Stopping: " + left + "\n" + systemd.Patience)
		}
	}
}

// A handover is the time from the successor's word that it is ready until this process
// ends, or serves again since the successor has failed.
type handover struct {
	*waiter
	s        *handoff.Successor
	progress *progress
	drained  <-chan error     // nil when we are
	exited   <-chan struct{}  // nil when the successor has
	standby  <-chan time.Time // its end; nil while we do not stand by
	told     bool             // to stop, which is meant for the service
	drainErr error
}

// handOver leaves the sockets to a successor that is ready. It reports whether
// that is the end; if not, the successor has failed and we serve again. A signal to stop
// may have come just before, or is nil.
func (w *waiter) handOver(s *handoff.Successor, sig os.Signal) (over bool, err error) {
	w.p.logf("restart: pid %d is ready after %v; pid %d drains %s", s.Pid, since(s.Started), os.Getpid(), w.left())
	w.g.StepDown(false)
	drained, cancel := w.drain(handoff.Drain{To: s})
	defer cancel()
	h := &handover{
		waiter:   w,
		s:        s,
		progress: w.newProgress(),
		drained:  drained,
		exited:   s.Exited(),
	}
	defer h.progress.stop()
	w.p.notifyStatus(fmt.Sprintf("READY=1\nSTATUS=Serving with pid %d; pid %d drains %s", s.Pid, os.Getpid(), w.left()), false)
	if w.early != nil {
		select {
		case w.p.usr2 <- w.early:
		default: // one more is waiting
		}
		w.early = nil
	}

	if sig != nil {
		h.stopSignal(sig)
	}

	var survived <-chan time.Time // the successor has, for long enough to be the main process
	if w.p.Standby == 0 {
		survived = time.After(probation)
	}
	toldToStop := w.g.ToldToStop()
	for {
		over := false
		select {
		case h.drainErr = <-h.drained:
			h.drained = nil
			over = h.afterDrain()

		case <-h.standby:
			over = !h.isLast()

		case <-survived:
			if !h.isLast() {
				w.p.notifyMain(s)
			}

		case <-s.StepsDown():
			if !s.SteppedDown() {
				break // it serves again
			}
			if s.Stopping() {
				w.refuse()
			}
			if h.isLast() {
				s.Stop() // so that it does not wait for our end
			} else {
				w.p.notifyMain(s) // it needs that to name its own successor
				over = h.standby != nil
			}

		case <-h.exited:
			h.exited = nil
			if !h.told && s.Failed() {
				cancel()
				if h.drained != nil {
					<-h.drained
				}
				w.takeBack(s)
				return false, nil
			}
			// It was stopped on purpose, or has a successor of its own.
			w.g.Stop(true)
			w.refuse()
			over = h.drained == nil

		case sig := <-w.signals:
			over = h.stopSignal(sig)

		case <-toldToStop:
			toldToStop = nil
			h.told, w.told = true, time.Now()
			s.Stop()
			over = h.drained == nil && !h.isLast()

		case <-w.p.usr2:
			if h.isLast() {
				w.p.logf("restart signal ignored: pid %d is stopping", os.Getpid())
			} else {
				w.p.notifyMain(s) // what the successor has to say then counts
				h.passRestart()
			}

		case <-h.progress.tick:
			h.report()
		}
		if over && !h.told {
			select {
			case sig := <-w.signals: // it came before the end
				over = h.stopSignal(sig)
			default:
			}
		}
		if over {
			h.end()
			return true, h.drainErr
		}
	}
}

// isLast reports whether this process must outlive the successor: a service manager
// that stops the service listens to its main process, and ends all others when that
// one has ended.
func (h *handover) isLast() bool {
	stopping := h.told || h.s.Stopping()
	return stopping && h.exited != nil && h.s.Waits() && h.p.isMain.Load() && h.g.Managed() && !h.g.Supervised()
}

// afterDrain reports whether this process ends, now that it is drained.
func (h *handover) afterDrain() (over bool) {
	switch {
	case h.isLast():
		h.s.Stop() // its end is what we wait for
		return false
	case h.told, h.exited == nil:
		return true
	case h.s.Failed():
		return false // that is the next thing to be seen
	case h.p.Standby == 0, h.drainErr != nil:
		return true
	case h.s.SteppedDown():
		return true // we shall not take over again
	}
	h.p.logf("pid %d is drained and stands by for %v", os.Getpid(), h.p.Standby)
	h.standby = time.After(h.p.Standby)
	return false
}

// stopSignal acts on SIGTERM or SIGINT, and reports whether this process ends. The
// successor does not hear of it, unless the service is meant.
func (h *handover) stopSignal(sig os.Signal) (over bool) {
	if h.told && h.same() {
		return false
	}
	if h.told {
		h.p.logf("%v again: ending now; left: %s", sig, h.left())
		die(sig)
	}
	// Whoever stops the successor as well must not wake us by that.
	h.p.logf("%v: pid %d is ending already; left: %s", sig, os.Getpid(), h.left())
	h.told, h.waiter.told = true, time.Now()
	if !h.isLast() {
		return h.drained == nil
	}
	h.p.notify("STOPPING=1\nSTATUS=Stopping: " + h.left() + "\n" + systemd.Patience)
	h.s.Stop()
	return false
}

func (h *handover) passRestart() {
	h.p.logf("restart signal passed on: pid %d has handed over to pid %d", os.Getpid(), h.s.Pid)
	h.s.Signal(restartSignal)
}

// report says what is left of the drain. The service manager listens to the main
// process only.
func (h *handover) report() {
	if h.standby != nil && !h.isLast() {
		return
	}
	text := fmt.Sprintf("pid %d drains %s", os.Getpid(), h.progress.log())
	switch {
	case h.told && h.isLast():
		h.p.notify("STATUS=Stopping: " + text + "\n" + systemd.Patience)
	case h.p.isMain.Load():
		h.p.notify(fmt.Sprintf("STATUS=Serving with pid %d; %s", h.s.Pid, text))
	default:
		h.s.Status(text, false)
	}
}

// end is the last that this process does for the service.
func (h *handover) end() {
	meant := h.p.isMain.Load() && h.g.Managed() && !h.g.Supervised() // who stops us means the service
	if h.exited != nil {
		h.p.notifyMain(h.s)
	}
	h.s.Status("", false) // of our drain there is nothing more to tell
	h.closeAll(h.drainErr != nil)
	h.progress.end(h.drainErr, h.s.Moved())
	if err := h.s.Part(); err != nil {
		h.p.logf("telling the service manager who comes after pid %d: %v", os.Getpid(), err)
	}
	// There may be something from somebody who has just read our number.
	select {
	case <-h.p.usr2:
		h.passRestart()
	default:
	}
	select {
	case <-h.signals:
		if meant {
			h.s.Stop()
		}
	default:
	}
}

// takeBack serves again after the successor has failed.
func (w *waiter) takeBack(s *handoff.Successor) {
	s.TakeBack()
	w.g.ServeAgain()
	w.resume()
	err := fmt.Errorf("successor pid %d: %w, %v after its start", s.Pid, s.ExitError(), since(s.Started))
	w.p.logf("restart failed: %v; serving again with pid %d", err, os.Getpid())
	w.p.writePIDFile()
	w.p.isMain.Store(true)
	w.p.notifyStatus(mainPID(os.Getpid()), true)
	if w.p.OnRestart != nil {
		w.p.OnRestart(s.Pid, time.Since(s.Started), err)
	}
}

// drain drains all listeners side by side. The channel brings nil when nothing
// is left, an error when TermTimeout is over, or the wait was cancelled.
func (w *waiter) drain(how handoff.Drain) (drained <-chan error, cancel func()) {
	ctx := context.Background()
	if w.p.TermTimeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, w.p.TermTimeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	errs := make([]error, len(w.listeners))
	var wg sync.WaitGroup
	for i, l := range w.listeners {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if d, ok := l.(handoff.Drainer); ok {
				errs[i] = d.Drain(ctx, how)
			} else {
				errs[i] = closeWithin(ctx, l)
			}
		}()
	}
	if how.To == nil && w.g.Managed() {
		// When the main process ends, a service manager ends the others too. If that
		// is our predecessor, it waits for us.
		wg.Add(1)
		go func() {
			defer wg.Done()
			select {
			case <-w.g.PredecessorGone():
			case <-w.g.ToldToStop():
			case <-ctx.Done():
			}
		}()
	}
	done := make(chan error, 1)
	go func() {
		wg.Wait()
		err := errors.Join(errs...)
		if errors.Is(err, context.DeadlineExceeded) {
			err = &timeoutError{w.p.TermTimeout, w.left()}
		}
		done <- err
	}()
	return done, cancel
}

// A timeoutError says what is left when TermTimeout is over.
type timeoutError struct {
	timeout time.Duration
	left    string
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("grace: not drained within %v, left: %s", e.timeout, e.left)
}

// Is makes it a context.DeadlineExceeded.
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// closeWithin closes a listener that is not ours to pause.
func closeWithin(ctx context.Context, l net.Listener) error {
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		if errors.Is(err, net.ErrClosed) {
			err = nil // the program was faster
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refuse closes the sockets when nobody will accept on them here again. Where the
// successor has closed them too, clients are refused, rather than to wait for our end.
func (w *waiter) refuse() { w.closeAll(true) }

// closeAll ends the Accept calls of what was only paused. If connections are
// left, Close goes on waiting for them, but we do not.
func (w *waiter) closeAll(left bool) {
	for _, l := range w.listeners {
		if _, ok := l.(handoff.Drainer); !ok {
			continue
		}
		if left {
			go l.Close()
		} else {
			l.Close()
		}
	}
}

// resume accepts again after a successor has failed.
func (w *waiter) resume() {
	for _, l := range w.listeners {
		if d, ok := l.(handoff.Drainer); ok {
			d.Resume()
		}
	}
}

// left says in words what is still open.
func (w *waiter) left() string {
	var total accept.Count
	others := 0
	for _, l := range w.listeners {
		d, ok := l.(handoff.Drainer)
		if !ok {
			others++
			continue
		}
		total.Add(d.Count())
	}
	var parts []string
	if total.Open > 0 {
		parts = append(parts, fmt.Sprintf("%d %s, the oldest open for %v", total.Open, plural(total.Open, "connection"), since(total.Oldest)))
	}
	if others > 0 {
		parts = append(parts, fmt.Sprintf("%d other %s", others, plural(others, "listener")))
	}
	if len(parts) == 0 {
		return "no connections"
	}
	return strings.Join(parts, ", ")
}

// probation is how long a successor must live to become the service manager's
// main process before its predecessor has ended. A manager takes only a main
// process's word on which one is: after that, there is no way back.
const probation = time.Second

// drainTick is how often a long drain is reported.
const drainTick = time.Second

// A progress reports on a drain.
type progress struct {
	w      *waiter
	start  time.Time
	ticker *time.Ticker
	tick   <-chan time.Time
}

func (w *waiter) newProgress() *progress {
	t := time.NewTicker(drainTick)
	return &progress{w: w, start: time.Now(), ticker: t, tick: t.C}
}

func (p *progress) stop() { p.ticker.Stop() }

func (p *progress) log() (left string) {
	left = p.w.left()
	select {
	case <-p.w.g.PredecessorGone():
	default:
		left += fmt.Sprintf("; predecessor pid %d is still there", p.w.g.Parent())
	}
	p.w.p.logf("draining pid %d: %s", os.Getpid(), left)
	return left
}

func (p *progress) end(err error, moved int) {
	also := ""
	if moved > 0 {
		also = fmt.Sprintf("; %d %s moved", moved, plural(moved, "connection"))
	}
	if err != nil {
		p.w.p.logf("pid %d ends after %v: %v%s", os.Getpid(), since(p.start), err, also)
		return
	}
	p.w.p.logf("pid %d ends: drained within %v%s", os.Getpid(), since(p.start), also)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

func netListeners(listeners []Listener) []net.Listener {
	all := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		all[i] = l
	}
	return all
}
