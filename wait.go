package grace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

const (
	// sameSignal is how long after a signal to stop another one is taken for the same: as
	// timeout(1) or a service manager send it twice.
	sameSignal = time.Second

	// logTimeout bounds how long a log that blocks holds up the end.
	logTimeout = 100 * time.Millisecond

	// endTimeout bounds how long the service manager, and the successor, hold it up.
	endTimeout = 2 * time.Second

	// lingerTime is how long a process stays when it has named another as the service
	// manager's main process: a stop that had begun before goes to us, and to us alone.
	lingerTime = time.Second

	// hookHead is how long a drain waits for OnDrain before anything is closed.
	hookHead = 100 * time.Millisecond
)

// Wait serves signals until this process has nothing left to do.
//
// SIGTERM and SIGINT close all listeners concurrently, SIGTERM after the time of
// LameDuck; Wait returns when the last Close has returned, or with an error that says what
// is left when TermTimeout is over. A second such signal, of either kind, that comes a
// second later or more ends the process as Go does by default; one that comes earlier is
// taken for the same, since many send it twice. When Wait has returned because of a
// signal or a handoff, the next one is only logged, so that it does not end what follows,
// and one that comes a second after that ends the process.
//
// SIGUSR2 restarts, as Restart does. A restart that fails is logged, and Wait
// goes on. Once the successor is ready, the listeners stop accepting and Wait
// returns when they are drained. If the successor fails before that, they accept
// again and Wait goes on; if none of them can, since the program has closed them
// meanwhile, it returns an error. Only a listener that NewListener made, of one that has
// SetDeadline, can be paused like that: any other is closed at once.
//
// Only one Wait may run at a time: another returns an error at once.
func (p *Process) Wait(listeners []Listener) (err error) {
	return p.WaitContext(context.Background(), listeners)
}

// WaitContext is Wait; the end of ctx is a stop, as SIGTERM.
func (p *Process) WaitContext(ctx context.Context, listeners []Listener) (err error) {
	g := handoff.Self()
	requests, err := g.Own()
	if err != nil {
		return fmt.Errorf("grace: %w", err)
	}
	l := &loop{
		p: p, g: g, ctx: ctx,
		listeners: listeners,
		requests:  requests,
		signals:   make(chan os.Signal, 8),
		failed:    make(chan error, len(listeners)),
	}
	return l.run()
}

// What the loop of Wait is doing.
const (
	serving  = handoff.Serving
	starting = handoff.Restarting
	lameDuck = handoff.LameDuck
	draining = handoff.Draining
	standby  = handoff.Standby
	stopping = handoff.Stopping
)

// A loop is one call of Wait. It owns the successor from its readiness on, and decides
// all that depends on what has come first. One goroutine runs it: it never waits for a
// peer, a log or a hook but at the very end.
type loop struct {
	p         *Process
	g         *handoff.Generation
	ctx       context.Context
	listeners []Listener

	requests <-chan *handoff.Request
	signals  chan os.Signal // to stop
	failed   chan error     // of a server that cannot go on

	state   handoff.Phase
	role    role
	asked   time.Time        // to stop, or zero
	signal  time.Time        // that asked so, the first time, or zero
	restart *restart         // while starting
	next    *stop            // when that is over, or nil
	isWord  bool             // it came as a signal that may be the word of the successor
	timer   <-chan time.Time // the end of lameDuck or standby
	ticker  *time.Ticker
	handover
	drain

	hooked   bool              // OnDrain was called, for a drain or a lame duck
	hooks    []<-chan struct{} // that were called, and are waited for at the end
	reported <-chan struct{}   // the last call of OnRestart is over

	over bool
	err  error
}

// A handover is what is known of a successor that serves: while draining, standby, or
// stopping after that.
type handover struct {
	successor *handoff.Successor // or nil
	handed    *restart           // whose outcome is told when this process accepts no more, or nil
	gone      bool               // it has ended
	stepped   bool               // it has said that it ends itself, since it is told to or has a successor
	third     bool               // it has a successor of its own, and is to be named to name that one
	silent    time.Time          // since then the successor can say no more, which was not logged yet, or zero
	finishing bool               // nothing else is left to do than to name the successor
}

func (l *loop) run() error {
	signal.Notify(l.signals, os.Interrupt, syscall.SIGTERM)
	endGuard()
	surviveBrokenPipes()
	l.p.watchRestart()
	l.g.SetLogger(l.p.Logger)
	l.g.Predecessor.Waiting()
	l.g.SetPhase(handoff.Opening)
	if err := l.serve(); err != nil || l.over {
		l.guard().rest(err == nil)
		l.g.Disown()
		handoff.FlushLog(logTimeout)
		return err
	}
	l.tellServing()
	if l.p.OnReady != nil {
		l.p.call("OnReady", func() error { l.p.OnReady(); return nil })
	}
	if l.restart = takeAlone(); l.restart != nil {
		l.setState(starting)
	}
	l.ticker = time.NewTicker(systemd.ExtendEvery)
	defer l.ticker.Stop()
	var watchdog <-chan time.Time
	if every := l.g.Manager.Watchdog; every > 0 && l.g.Manager.Listens() {
		t := time.NewTicker(every)
		defer t.Stop()
		watchdog = t.C
	}
	supervisorGone, stopped, cancelled := l.g.Manager.Unsupervised(), l.g.Predecessor.Stop(), l.ctx.Done()
	predecessorGone := l.g.Predecessor.Gone()

	for !l.over {
		select {
		case sig := <-l.signals:
			l.stopSignal(sig)

		case sig := <-l.p.usr2:
			l.restartSignal(sig)

		case r := <-l.requests:
			l.request(r)

		case <-l.restartDone():
			l.restarted()

		case e := <-l.events():
			l.successorSays(e)

		case <-l.paused:
			l.handedOver()

		case l.drainErr = <-l.drained:
			l.afterDrain()

		case <-l.timer:
			l.timer = nil
			l.timeIsUp()

		case err := <-l.failed:
			l.stop(stop{err: err})

		case <-stopped:
			stopped = nil
			l.stop(stop{reason: "the service is to stop", service: true})

		case <-cancelled:
			cancelled = nil
			l.stop(stop{reason: context.Cause(l.ctx).Error()})

		case <-supervisorGone:
			supervisorGone = nil
			if l.state < draining { // the successor hears of it too
				l.stop(unsupervised)
			}

		case s := <-l.g.Predecessor.Statuses():
			l.predecessorSays(s)

		case <-predecessorGone:
			predecessorGone = nil
			l.becomeMain("") // if we were not before, nobody else is

		case <-watchdog:
			if l.role == mainProcess {
				l.g.Manager.Tell("WATCHDOG=1")
			}

		case <-l.ticker.C:
			l.tick()
		}
	}
	return l.end()
}

// serve starts those listeners that accept by themselves. When all of them could,
// this process is ready.
func (l *loop) serve() error {
	var servers []server
	for _, ln := range l.listeners {
		if s, ok := ln.(server); ok {
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		if l.p.OnMove != nil {
			l.g.Predecessor.OnMove(l.p.receiveMoved, l.p.moved.list())
		}
		if l.g.Origin != handoff.Succeeded {
			l.p.writePIDFile() // CloseParent, if there was a parent, was the program's to call
		}
		l.setState(serving)
		return nil
	}
	// One that cannot serve fails here, while the predecessor still does.
	accepting := make(chan struct{}, len(servers))
	for _, s := range servers {
		go func() {
			if err := s.Serve(func() { accepting <- struct{}{} }); err != nil {
				l.failed <- err
			}
		}()
	}
	for range servers {
		select {
		case <-accepting:
		case err := <-l.failed:
			return err
		case sig := <-l.signals:
			die(sig) // nothing has begun yet
		case <-l.ctx.Done():
			l.over = true
			return nil
		}
	}
	// Until here a connection waits in the kernel, and the predecessor may still take it.
	// From here on some are served, and may ask whether this process is ready.
	l.setState(serving)
	if err := l.p.CloseParent(); err != nil {
		return err
	}
	for _, s := range servers {
		s.Resume()
	}
	return nil
}

func (l *loop) setState(s handoff.Phase) {
	l.state = s
	l.g.SetPhase(s)
}

// restartDone is closed when the restart that is under way is over.
func (l *loop) restartDone() <-chan struct{} {
	if l.restart == nil {
		return nil
	}
	return l.restart.done
}

func (l *loop) events() <-chan handoff.Event {
	if l.successor == nil || l.gone {
		return nil
	}
	return l.successor.Events()
}

// restartSignal acts on SIGUSR2.
func (l *loop) restartSignal(sig os.Signal) {
	switch l.state {
	case serving:
		l.begin(nil)
	case starting:
		select {
		case l.restart.signals <- sig:
		default: // as many wait
		}
	case draining, standby:
		if l.mustOutlive() {
			l.p.logf("restart signal ignored: pid %d is stopping", pid())
			return
		}
		l.passRestart()
	default:
		l.p.logf("restart signal ignored: pid %d is stopping", pid())
	}
}

// passRestart passes a restart on to the successor, which has to be the main process to
// name its own.
func (l *loop) passRestart() {
	l.p.logf("restart signal passed on: pid %d has handed over to pid %d", pid(), l.successor.Pid)
	l.nameMain()
	s := l.successor
	l.g.Manager.Then(func() { s.Signal(restartSignal) })
}

// request acts on a request for a restart from within.
func (l *loop) request(r *handoff.Request) {
	var err error
	switch l.state {
	case serving:
		l.begin(r)
		return
	case starting, draining, standby:
		if err = l.g.Refuses(); err == nil {
			err = handoff.ErrUnderWay
		}
	default:
		err = handoff.ErrStopping
	}
	r.Outcome <- handoff.Outcome{Err: fmt.Errorf("grace: %w", err)}
}

// begin begins a restart.
func (l *loop) begin(request *handoff.Request) {
	r, err := l.p.newRestart(l.listeners, request)
	if err != nil {
		r.report(l)
		return
	}
	r.owned = true
	l.restart = r
	l.setState(starting)
	go r.run()
}

// restarted acts on the outcome of a restart.
func (l *loop) restarted() {
	r := l.restart
	l.restart = nil
	l.setState(serving)
	r.ignoreUnread()
	if r.err == nil {
		l.handOver(r)
	} else {
		r.report(l)
	}
	next := l.next
	l.next = nil
	switch {
	case next == nil:
	case l.isWord && r.termed:
		l.asked, l.signal = time.Time{}, time.Time{}
	default:
		l.stop(*next)
	}
}

// A stop is why this process is to stop.
type stop struct {
	reason  string    // or "", if a server has failed
	signal  os.Signal // by which it came, or nil
	service bool      // the successor is to stop, too
	err     error     // of a server that cannot go on, or nil
}

var unsupervised = stop{reason: "the supervisor has ended", service: true}

// stopSignal acts on SIGTERM or SIGINT. One that comes soon after another is that one,
// sent again.
func (l *loop) stopSignal(sig os.Signal) {
	switch {
	case l.signal.IsZero(), l.state == lameDuck && sig == os.Interrupt:
		l.signal = time.Now()
		l.stop(stop{reason: sig.String(), signal: sig})
	case time.Since(l.signal) >= sameSignal:
		l.endNow(sig)
	}
}

// endNow ends the process by a signal that was insisted on.
func (l *loop) endNow(sig os.Signal) {
	l.p.logf("%v again: ending now; left: %s", sig, l.remaining())
	l.p.removePIDFile()
	handoff.FlushLog(logTimeout)
	die(sig)
}

// stop stops this process.
func (l *loop) stop(s stop) {
	if s.reason != "" && l.asked.IsZero() {
		l.asked = time.Now()
	}
	switch l.state {
	case starting:
		l.stopRestart(s)
	case serving:
		l.stopAlone(s)
	case lameDuck:
		if s.signal == os.Interrupt || s.err != nil {
			l.stopAlone(s)
		}
	case draining, standby:
		if s.reason != "" {
			l.stopAfterHandOver(s)
		}
	}
}

// stopRestart gives the restart up that is under way, and stops when it is over.
// A signal may be the word of a successor built on facebookgo/grace instead.
func (l *loop) stopRestart(s stop) {
	if s.signal == syscall.SIGTERM {
		select {
		case l.restart.signals <- s.signal:
			if l.next == nil {
				l.next, l.isWord = &s, true
			}
			return
		default:
		}
	}
	if l.next != nil {
		s.err = errors.Join(l.next.err, s.err)
	}
	l.next, l.isWord = &s, false
	if !isClosed(l.restart.giveUp) {
		close(l.restart.giveUp)
	}
}

// stopAfterHandOver stops a process whose successor serves, and does not hear of it,
// unless the service is meant.
func (l *loop) stopAfterHandOver(s stop) {
	if s.service {
		l.successor.Stop()
	} else {
		l.p.logf("%s: pid %d is ending already; left: %s", s.reason, pid(), l.remaining())
	}
	if l.lingers() { // for the service manager this is the main process, still
		l.role, l.finishing, l.timer = mainProcess, false, nil
	}
	if l.mustOutlive() {
		l.tellStopping()
		l.successor.Stop()
		return
	}
	l.over = l.drained == nil
}

// stopAlone stops a process that has no successor, after the time of a lame duck, if
// there is no hurry.
func (l *loop) stopAlone(s stop) {
	l.g.Stopping()
	if s.err != nil {
		l.p.logf("stopping pid %d: %v", pid(), s.err)
		l.err = errors.Join(l.err, s.err)
		l.g.LeavePaths() // a predecessor that still drains takes over again
		l.drainTo(nil, true)
		return
	}
	l.p.logf("%s: stopping pid %d", s.reason, pid())
	quick := s.signal == os.Interrupt
	if l.state == serving {
		l.g.Predecessor.StepDown(true)
	}
	if l.p.LameDuck <= 0 || quick {
		l.beginStop(quick)
		return
	}
	l.setState(lameDuck)
	l.timer = time.After(l.p.LameDuck)
	l.p.logf("lame duck: pid %d serves on for %v, and tells its clients", pid(), l.p.LameDuck)
	l.g.Manager.Tell(fmt.Sprintf("STOPPING=1\nSTATUS=Stopping in %v\n%s", l.p.LameDuck, systemd.ExtendTimeout))
	l.beginHooks()
	for _, ln := range l.listeners {
		if s, ok := ln.(interface{ LameDuck(time.Duration) }); ok {
			s.LameDuck(l.p.LameDuck)
		}
	}
}

func (l *loop) tellStopping() {
	l.g.Manager.Tell("STOPPING=1\nSTATUS=" + systemd.Escape("Stopping: "+l.remaining()) + "\n" + systemd.ExtendTimeout)
}

// beginStop begins the drain of a stop. No successor takes over.
func (l *loop) beginStop(quick bool) {
	l.timer = nil
	l.tellStopping()
	l.drainTo(nil, quick)
}

// handOver leaves the sockets to a successor that is ready.
func (l *loop) handOver(r *restart) {
	s := r.successor
	l.handover = handover{successor: s, handed: r}
	l.g.Predecessor.StepDown(false)
	s.DropPaths()
	l.g.Manager.Tell("READY=1\nSTATUS=" + systemd.Escape(fmt.Sprintf("Serving with pid %d; pid %d drains %s", s.Pid, pid(), l.remaining())))
	if l.g.Manager.Supervised() {
		l.nameMain()
	}
	l.drainTo(s, false)
	if r.early != nil {
		l.passRestart()
	}
}

// handedOver tells of a restart when this process accepts no more: whoever hears of it
// finds the successor behind the address.
func (l *loop) handedOver() {
	l.paused = nil
	if r := l.handed; r != nil {
		l.handed = nil
		l.p.logf("restart: pid %d is ready after %v; pid %d drains %s", r.pid, r.took.Round(time.Millisecond), pid(), l.remaining())
		r.report(l)
	}
}

// successorSays acts on what a successor that was ready says, or becomes of it.
func (l *loop) successorSays(e handoff.Event) {
	s := l.successor
	switch e {
	case handoff.Silent:
		l.silent = time.Now() // it ends, most likely
	case handoff.ServesAgain:
		l.stepped, l.third = false, false
	case handoff.HandsOver:
		l.stepped, l.third = true, true
		l.nameMain() // it needs that to name its own successor
		if l.state == standby {
			l.finish() // we shall not take over again
		}
	case handoff.Stops:
		l.stepped = true
		l.refuse()
		if l.mustOutlive() {
			s.Stop() // so that it does not wait for our end
		} else if l.state == standby {
			l.finish()
		}
	case handoff.Ended:
		l.gone, l.silent = true, time.Time{}
		if l.asked.IsZero() && l.hasFailed() && !l.lingers() {
			l.takeBack()
			return
		}
		// It was stopped on purpose, or has a successor of its own.
		l.g.Stopping()
		l.refuse()
		l.over = l.drained == nil
	}
}

// hasFailed reports whether the successor's end calls for taking over again: it has not
// said that it steps down. One that does not run Wait says so by its status.
func (l *loop) hasFailed() bool {
	return !l.stepped && (l.successor.Waits() || !l.successor.Succeeded())
}

// mustOutlive reports whether this process must outlive the successor: a service manager
// that stops the service listens to its main process, and ends all others when that
// one has ended.
func (l *loop) mustOutlive() bool {
	stop := !l.asked.IsZero() || l.stepped
	return stop && !l.gone && l.successor.Waits() && l.p.namesMain() && l.role == mainProcess
}

// afterDrain is called when this process is drained.
func (l *loop) afterDrain() {
	l.drained, l.took = nil, since(l.begun)
	l.handedOver()
	l.cancel()
	s := l.successor
	if s == nil {
		l.over = true
		return
	}
	s.Drained()
	switch {
	case l.mustOutlive():
		s.Stop() // its end is what we wait for
	case !l.asked.IsZero(), l.gone:
		l.over = true
	case s.HasEnded(): // that is the next thing to be seen
	case l.p.Standby <= 0, l.drainErr != nil, l.stepped:
		l.finish()
	default:
		l.p.logf("pid %d is drained and stands by for %v", pid(), l.p.Standby)
		l.setState(standby)
		l.timer = time.After(l.p.Standby)
	}
}

// timeIsUp ends lameDuck or standby.
func (l *loop) timeIsUp() {
	switch l.state {
	case lameDuck:
		l.p.logf("stopping pid %d", pid())
		l.beginStop(false)
	case standby:
		if l.finishing {
			l.over = true
		} else if !l.mustOutlive() {
			l.finish()
		}
	}
}

// finish ends this process, whose successor serves. If we are the main process, we name that
// one, and stay for what is already on its way to us. If we are not yet, our predecessor
// names us when it hears of our successor: nobody else can name that one.
func (l *loop) finish() {
	switch {
	case !l.p.namesMain(), l.role == formerMain, l.role == notMain && isClosed(l.g.Predecessor.Gone()):
		l.over = true
	case l.role == mainProcess:
		l.nameMain()
		l.finishing, l.timer = true, time.After(lingerTime)
	default:
		l.finishing, l.timer = true, time.After(endTimeout)
	}
	l.setState(standby)
}

// takeBack serves again after the successor has failed.
func (l *loop) takeBack() {
	s := l.successor
	l.cancel()
	if l.drained != nil {
		<-l.drained
		l.drained = nil
		l.handedOver()
	}
	l.drainErr = nil
	s.Release()
	s.TakeBack()
	l.timer = nil
	l.handover = handover{}
	err := fmt.Errorf("successor pid %d: %w, %v after its start", s.Pid, s.ExitError(), since(s.Started))
	lost, accepting := l.resume()
	l.p.writePIDFile() // the successor's number belongs to nobody
	if !accepting {
		l.p.logf("restart failed: %v; pid %d cannot serve again: its listeners are closed", err, pid())
		l.err = fmt.Errorf("grace: %w; the listeners are closed, so that this process cannot serve again", err)
		l.report(s, err)
		l.over = true
		return
	}
	also := ""
	if lost > 0 {
		also = fmt.Sprintf("; not on %d %s, closed meanwhile", lost, plural(lost, "listener"))
	}
	l.g.Predecessor.ServeAgain()
	l.p.logf("restart failed: %v; serving again with pid %d%s", err, pid(), also)
	l.role = mainProcess
	l.g.Manager.Tell(mainPID(pid()))
	l.setState(serving)
	l.report(s, err)
	if isClosed(l.g.Manager.Unsupervised()) { // during the drain
		l.stop(unsupervised)
	}
}

// report tells of a successor that has failed after it was ready.
func (l *loop) report(s *handoff.Successor, err error) {
	took := time.Since(s.Started)
	l.g.Restarted(handoff.Restarted{Pid: s.Pid, At: s.Started, Took: took, Err: err})
	l.p.report(l, s.Pid, took, err)
}

// end is the last that this process does.
func (l *loop) end() error {
	if l.drainErr != nil {
		l.err = errors.Join(l.err, l.drainErr)
	}
	guard := l.guard()
	l.awaitHooks()
	if !l.begun.IsZero() && !l.lingers() {
		l.took = since(l.begun)
	}
	s, wasMain := l.successor, l.role == mainProcess || l.lingers()
	if s != nil && !l.gone {
		if l.asked.IsZero() || !wasMain { // else the stop is meant for the service
			l.nameMain()
		}
		if !l.lingers() { // which is long enough for the service manager to read it
			ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
			if err := l.g.Manager.Barrier(ctx); err != nil {
				l.p.logf("telling the service manager who comes after pid %d: %v", pid(), err)
			}
			cancel()
		}
		s.Status("", false) // of our drain there is nothing more to tell
		s.Flush(endTimeout)
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), endTimeout/4)
		l.g.Manager.Flush(ctx)
		cancel()
		l.g.Predecessor.Flush(endTimeout / 4)
		l.p.removePIDFile()
	}
	l.closeAll(l.err != nil)
	l.logEnd()
	if s != nil && !l.gone {
		if l.restartCame() {
			s.Signal(restartSignal)
		}
		if guard.hasSeen() && wasMain && l.p.namesMain() && l.asked.IsZero() {
			s.Stop()
			s.Flush(endTimeout)
		}
		s.Release()
	}
	guard.rest(!l.asked.IsZero() || s != nil || l.ctx.Err() != nil)
	l.g.Disown()
	handoff.FlushLog(logTimeout)
	return l.err
}

// restartCame reports whether somebody has sent a restart signal who had just read our
// number.
func (l *loop) restartCame() bool {
	select {
	case <-l.p.usr2:
		l.p.logf("restart signal passed on: pid %d has handed over to pid %d", pid(), l.successor.Pid)
		return true
	default:
		return false
	}
}
