package grace

import (
	"os"
	"os/signal"
	"sync"
	"time"
)

// guarding ends the look after signals that an earlier Wait has left.
var guarding struct {
	mu  sync.Mutex
	end func()
}

// endGuard lets the signals be those of a new Wait.
func endGuard() {
	guarding.mu.Lock()
	defer guarding.mu.Unlock()
	if guarding.end != nil {
		guarding.end()
		guarding.end = nil
	}
}

// guard looks after the signals to stop when Wait has returned because of one, or of a
// handoff, so that the rest of it does not end what the program does then: the next one is
// logged, and one that comes a second later or more ends the process.
func (l *loop) guard() {
	if l.asked.IsZero() && l.successor == nil && l.ctx.Err() == nil {
		signal.Stop(l.signals) // something has failed
		return
	}
	ended := make(chan struct{})
	guarding.mu.Lock()
	defer guarding.mu.Unlock()
	guarding.end = func() {
		signal.Stop(l.signals)
		close(ended)
	}
	go func() {
		var first time.Time
		for {
			select {
			case sig := <-l.signals:
				if first.IsZero() {
					first = time.Now()
					l.p.logf("%v: pid %d is ending already", sig, os.Getpid())
				} else if time.Since(first) >= sameSignal {
					die(sig)
				}
			case <-ended:
				return
			}
		}
	}()
}
