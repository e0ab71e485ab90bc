package grace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// A drainer is a listener that can do more than close.
type drainer interface {
	// Drain stops accepting and returns when no connection is left, or ctx is
	// done. With a successor, it hands over what can be handed over, and Resume
	// may follow; without one it is the end. It calls how.Paused when it accepts no more.
	Drain(ctx context.Context, how handoff.Drain) error
	// Resume undoes Drain: connections are accepted, again. It reports whether they are.
	Resume() bool
	// CloseLast is Close in a drain when the successor accepts no more, either.
	CloseLast()
	// Count returns what is open, and what became of the rest since Drain was called.
	Count() accept.Count
}

// A server is a drainer that does the accepting itself.
type server interface {
	drainer
	// Serve serves connections, which it accepts from the first Resume on. It calls
	// accepting once, when nothing else is missing for that. It returns nil after
	// Drain and Close, else why it cannot go on.
	Serve(accepting func()) error
}

// A drain is one that was begun.
type drain struct {
	begun    time.Time       // or zero
	deadline time.Time       // or zero
	paused   <-chan struct{} // closed when nothing is accepted any more; nil when that was seen
	drained  <-chan error    // brings its end; nil when it is over
	cancel   context.CancelFunc
	took     time.Duration
	drainErr error
	progress progress
}

// beginHooks calls what is to be called before anything is closed, once for each drain.
func (l *loop) beginHooks() (called <-chan struct{}) {
	if l.hooked {
		return nil
	}
	l.hooked = true
	l.setDraining(true)
	return l.hook("OnDrain", l.p.OnDrain)
}

// setDraining lets Close of our own listeners return at once: Wait is what waits. Where
// nobody accepts after us, it brings what waits in the kernel.
func (l *loop) setDraining(draining bool) {
	for _, ln := range l.listeners {
		if own, ok := ln.(*listener); ok {
			kept := l.successor != nil && l.successor.Keeps(own) || l.g.Activated(own.Listener)
			own.last.Store(draining && !kept)
			own.draining.Store(draining)
		}
	}
}

// drainTo drains all listeners side by side, to a successor, or nil at a stop. l.drained
// brings nil when nothing is left, or why something is.
func (l *loop) drainTo(s *handoff.Successor, quick bool) {
	l.drain = drain{begun: time.Now()}
	ctx := context.Background()
	if l.p.TermTimeout > 0 {
		l.deadline = l.begun.Add(l.p.TermTimeout)
		ctx, l.cancel = context.WithDeadline(ctx, l.deadline)
	} else {
		ctx, l.cancel = context.WithCancel(ctx)
	}
	l.setState(stopping)
	if s != nil {
		l.setState(draining)
	}
	called := l.beginHooks()
	drains := make([]func() error, 0, len(l.listeners)+3)
	var accepting sync.WaitGroup
	for _, ln := range l.listeners {
		if d, ok := ln.(drainer); ok {
			accepting.Add(1)
			how := handoff.Drain{To: s, Quick: quick, OnPause: accepting.Done}
			drains = append(drains, func() error { return d.Drain(ctx, how) })
		} else {
			drains = append(drains, func() error { return closeWithin(ctx, ln) })
		}
	}
	drains = append(drains, func() error { return l.p.moved.drain(ctx, l.g.Predecessor, s != nil) })
	if s != nil && called != nil {
		// Until OnDrain is done, too, we take over again from a successor that fails.
		drains = append(drains, func() error { waitFor(ctx, called); return nil })
	}
	if s == nil && l.role == mainProcess && l.p.namesMain() {
		// When the main process ends, a service manager ends the others too.
		// A predecessor that says that it stops, too, waits for us.
		drains = append(drains, func() error {
			select {
			case <-l.g.Predecessor.Gone():
			case <-l.g.Predecessor.Stop():
			case <-ctx.Done():
			}
			return nil
		})
	}
	paused, drained := make(chan struct{}), make(chan error, 1)
	l.paused, l.drained = paused, drained
	timeout := l.p.TermTimeout
	go func() {
		if called != nil {
			head, cancel := context.WithTimeout(ctx, hookHead)
			waitFor(head, called)
			cancel()
		}
		// Who hears of the successor may count on it that our predecessor has, too.
		l.g.Predecessor.Flush(hookHead)
		errs := make([]error, len(drains))
		var wg sync.WaitGroup
		for i, drain := range drains {
			wg.Add(1)
			go func() {
				defer wg.Done()
				errs[i] = drain()
			}()
		}
		accepting.Wait()
		close(paused)
		wg.Wait()
		err := errors.Join(errs...)
		if errors.Is(err, context.DeadlineExceeded) {
			err = &timeoutError{timeout, remaining(l.listeners, &l.p.moved), err}
		}
		drained <- err
	}()
}

func waitFor(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// A timeoutError says what is left when TermTimeout is over.
type timeoutError struct {
	timeout   time.Duration
	remaining string
	err       error // a context.DeadlineExceeded, and what else went wrong
}

func (e *timeoutError) Error() string {
	text := fmt.Sprintf("grace: not drained within %v, left: %s", e.timeout, e.remaining)
	var others []string
	if joined, ok := e.err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			if !errors.Is(err, context.DeadlineExceeded) {
				others = append(others, err.Error())
			}
		}
	}
	return strings.Join(append([]string{text}, others...), "; ")
}

func (e *timeoutError) Unwrap() error { return e.err }

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
// successor has closed them too, clients are refused, rather than to wait for our end; who
// has come meanwhile is served here, unless there is a third to do so.
func (l *loop) refuse() {
	for _, ln := range l.listeners {
		if d, ok := ln.(drainer); ok && !l.third {
			go d.CloseLast()
		} else if ok {
			go ln.Close()
		}
	}
}

// closeAll ends the Accept calls of what was only paused. If connections are
// left, Close goes on waiting for them, but we do not.
func (l *loop) closeAll(open bool) {
	for _, ln := range l.listeners {
		if _, ok := ln.(drainer); !ok {
			continue
		}
		if open {
			go ln.Close()
		} else {
			ln.Close()
		}
	}
}

// resume accepts again after a successor has failed, and returns on how many listeners
// that is not possible, and whether it is on any.
func (l *loop) resume() (lost int, accepting bool) {
	l.hooked = false
	l.setDraining(false)
	for _, ln := range l.listeners {
		if d, ok := ln.(drainer); ok && d.Resume() {
			accepting = true
		} else {
			lost++
		}
	}
	return lost, accepting || len(l.listeners) == 0
}

// remaining says in words what is still open.
func (l *loop) remaining() string { return remaining(l.listeners, &l.p.moved) }

func remaining(listeners []Listener, moved *movedConns) string {
	count, others := count(listeners, moved)
	var parts []string
	if count.Open > 0 {
		kinds := ""
		if of := kindsOf(count); of != "" {
			kinds = " (" + of + ")"
		}
		parts = append(parts, fmt.Sprintf("%d %s%s, the oldest open for %v", count.Open, plural(count.Open, "connection"), kinds, since(count.Oldest)))
	}
	if others > 0 {
		parts = append(parts, fmt.Sprintf("%d other %s", others, plural(others, "listener")))
	}
	if len(parts) == 0 {
		return "no connections"
	}
	return strings.Join(parts, ", ")
}

// count adds up what the listeners have, and how many cannot say.
func count(listeners []Listener, moved *movedConns) (sum accept.Count, others int) {
	for _, l := range listeners {
		if d, ok := l.(drainer); ok {
			sum.Add(d.Count())
		} else {
			others++
		}
	}
	sum.Add(moved.count())
	return sum, others
}

func kindsOf(c accept.Count) string {
	var kinds []string
	for _, k := range []struct {
		n    int
		name string
	}{{c.HTTP2, "HTTP/2"}, {c.Hijacked, "hijacked"}} {
		if k.n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d %s", k.n, k.name))
		}
	}
	return strings.Join(kinds, ", ")
}

// A progress is how far a drain has been reported.
type progress struct {
	statuses int // one each second
	lines    int
}

// due returns after how long the next line of the log is due: each minute at last.
func (p progress) due() time.Duration {
	first := []time.Duration{1, 2, 5, 10, 30}
	if p.lines < len(first) {
		return first[p.lines] * time.Second
	}
	return time.Duration(p.lines-len(first)+1) * time.Minute
}

// tick does what is to be done again and again.
func (l *loop) tick() {
	if !l.silent.IsZero() && time.Since(l.silent) >= giveUpTimeout {
		l.silent = time.Time{}
		if !l.successor.IsOriginal() {
			l.p.logf("pid %d can say no more over the control socket, and runs: nothing more is moved to it", l.successor.Pid)
		}
	}
	switch l.state {
	case starting, lameDuck:
		l.tell(systemd.ExtendTimeout)
		return
	case serving:
		return
	case standby:
		if l.mustOutlive() && l.inTime() {
			l.tell(systemd.ExtendTimeout)
		}
		return
	}
	took := time.Since(l.begun)
	remaining := l.remaining()
	if !isClosed(l.g.Predecessor.Drained()) {
		remaining += fmt.Sprintf("; predecessor pid %d is still draining", l.g.Predecessor.Pid)
	}
	if took >= l.progress.due() {
		for took >= l.progress.due() {
			l.progress.lines++
		}
		l.p.logf("draining pid %d: %s", pid(), remaining)
	}
	stop := l.successor == nil || !l.asked.IsZero() && l.role == mainProcess
	if stop && l.inTime() {
		l.tell(systemd.ExtendTimeout)
	}
	if took < time.Duration(l.progress.statuses+1)*time.Second {
		return
	}
	l.progress.statuses++
	text := fmt.Sprintf("pid %d drains %s", pid(), remaining)
	switch {
	case stop:
		l.tell("STATUS=" + systemd.Escape("Stopping: "+remaining))
	case l.role == mainProcess:
		l.g.Manager.Tell("STATUS=" + systemd.Escape(fmt.Sprintf("Serving with pid %d; %s", l.successor.Pid, text)))
	}
	if l.successor != nil && !l.gone {
		l.successor.Status(text, false)
	}
}

// inTime reports whether a stop takes no longer than it may. One that does, such as of a
// successor that hangs, is left to the service manager's own timeout.
func (l *loop) inTime() bool {
	return l.p.TermTimeout <= 0 || l.asked.IsZero() || time.Since(l.asked) < l.p.LameDuck+l.p.TermTimeout
}

// logEnd says how the drain has ended.
func (l *loop) logEnd() {
	if l.begun.IsZero() {
		return
	}
	sum, _ := count(l.listeners, &l.p.moved)
	also := ""
	if sum.Moved > 0 {
		also += fmt.Sprintf("; %d %s moved", sum.Moved, plural(sum.Moved, "connection"))
	}
	for _, k := range []struct {
		n    int
		what string
	}{{sum.Told, "told"}, {sum.Idle, "closed idle"}, {sum.Cut, "cut"}} {
		if k.n > 0 {
			also += fmt.Sprintf("; %d %s", k.n, k.what)
		}
	}
	if l.drainErr != nil {
		l.p.logf("pid %d ends after %v: %v%s", pid(), l.took, l.drainErr, also)
		return
	}
	l.p.logf("pid %d ends: drained within %v%s", pid(), l.took, also)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
