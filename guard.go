package grace

import (
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"
)

// A guard looks after the signals to stop when Wait has nothing left to stop, and when it
// has returned, so that they do not end what the program does then: the next one is
// logged, and one that comes a second later or more ends the process.
type guard struct {
	loop  *loop
	ended chan struct{}

	mu    sync.Mutex // guards what follows
	first time.Time  // when the signal came that the next one is compared with, or zero
	came  bool       // one has come
}

// guarding is the guard that the last Wait has left.
var guarding atomic.Pointer[guard]

// guard begins when the loop has ended, whose signals are the guard's from then on.
func (l *loop) guard() *guard {
	g := &guard{loop: l, ended: make(chan struct{}), first: l.signal}
	go func() {
		for {
			select {
			case sig := <-l.signals:
				g.signal(sig)
			case <-g.ended:
				return
			}
		}
	}()
	return g
}

func (g *guard) signal(sig os.Signal) {
	g.mu.Lock()
	first := g.first
	if first.IsZero() {
		g.first, g.came = time.Now(), true
	}
	g.mu.Unlock()
	switch {
	case first.IsZero():
		g.loop.p.logf("%v: pid %d is ending already", sig, pid())
	case time.Since(first) >= sameSignal:
		g.loop.endNow(sig)
	}
}

func (g *guard) hasSeen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.came
}

// rest is called when Wait is about to return. The guard goes on if that has a reason:
// else something has failed, and signals do what they do by default.
func (g *guard) rest(reason bool) {
	if !reason {
		g.end()
		return
	}
	g.mu.Lock()
	g.first = time.Time{}
	g.mu.Unlock()
	guarding.Store(g)
}

func (g *guard) end() {
	signal.Stop(g.loop.signals)
	close(g.ended)
}

// endGuard lets the signals be those of a new Wait.
func endGuard() {
	if g := guarding.Swap(nil); g != nil {
		g.end()
	}
}
