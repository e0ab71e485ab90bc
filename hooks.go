package grace

import (
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// call calls a hook in a goroutine of its own, and closes the channel when it has
// returned, however that was. What it returns, or why it did not, is then in err.
func (p *Process) call(name string, hook func() error) (done <-chan struct{}, err *error) {
	return handoff.Call(p.Logger, name, hook)
}

// hook calls a hook that nobody needs an answer from; Wait waits for it at the end.
func (l *loop) hook(name string, f func()) (done <-chan struct{}) {
	if f == nil {
		return nil
	}
	done, _ = l.p.call(name, func() error { f(); return nil })
	l.hooks = append(l.hooks, done)
	return done
}

// report tells of a restart's outcome: the log, and OnRestart, call by call.
func (p *Process) report(l *loop, pid int, took time.Duration, err error) {
	if p.OnRestart == nil {
		return
	}
	var before <-chan struct{}
	if l != nil {
		before = l.reported
	}
	done, _ := p.call("OnRestart", func() error {
		if before != nil {
			<-before
		}
		p.OnRestart(pid, took, err)
		return nil
	})
	if l != nil {
		l.reported = done
		l.hooks = append(l.hooks, done)
	} else {
		<-done
	}
}

// awaitHooks waits until the hooks that were called have returned, but no longer than
// until the drain's deadline, if there is one.
func (l *loop) awaitHooks() {
	var late <-chan time.Time
	if !l.deadline.IsZero() {
		timer := time.NewTimer(time.Until(l.deadline))
		defer timer.Stop()
		late = timer.C
	}
	for _, done := range l.hooks {
		for !isClosed(done) {
			select {
			case <-done:
			case <-late:
				l.p.logf("pid %d ends without waiting for a hook any longer", pid())
				return
			case r := <-l.requests: // a hook may ask
				l.request(r)
			}
		}
	}
}
