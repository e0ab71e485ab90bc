//go:build unix

package grace

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// GoOnAfterwards lets this process serve again when the test, which has stopped it, is over.
func GoOnAfterwards(t *testing.T) {
	t.Cleanup(func() {
		g := handoff.Self()
		if _, err := g.Own(); err != nil {
			t.Fatal(err)
		}
		g.Disown()
		g.SetPhase(handoff.Opening)
	})
}

// Nor does the service manager, which waits for the end of a reload.
func TestHookDoesNotHearOfARestartThatIsRefused(t *testing.T) {
	GoOnAfterwards(t)
	handoff.Self().Stopping()
	p := &Process{
		PreStart: func() error { t.Error("PreStart was called"); return nil },
		Logger:   log.New(io.Discard, "", 0),
	}
	if err := p.Restart(nil); !errors.Is(err, ErrStopping) {
		t.Errorf("Restart: %v, want %v", err, ErrStopping)
	}
}

func TestOneRestartAtATime(t *testing.T) {
	p := &Process{Logger: log.New(io.Discard, "", 0)}
	failure := errors.New("the hook has failed")
	p.PreStart = func() error {
		if err := p.Restart(nil); !errors.Is(err, ErrUnderWay) {
			t.Errorf("Restart during another: %v, want %v", err, ErrUnderWay)
		}
		return failure
	}
	for range 2 { // the first one's failure leaves room for another
		if err := p.Restart(nil); !errors.Is(err, failure) {
			t.Errorf("Restart: %v, want %v", err, failure)
		}
	}
}

// Restart may be called before Wait, which then owns it, and tells of its outcome.
func TestRestartThatRunsIsHandedToWaitOnce(t *testing.T) {
	failure := errors.New("the hook has failed")
	began, goOn := make(chan bool), make(chan bool)
	p := &Process{
		PreStart:  func() error { began <- true; <-goOn; return failure },
		OnRestart: func(int, time.Duration, error) { t.Error("OnRestart was called") },
		Logger:    log.New(io.Discard, "", 0),
	}
	returned := make(chan error)
	go func() { returned <- p.Restart(nil) }()
	<-began
	r := takeAlone() // as Wait does
	if r == nil || takeAlone() != nil {
		t.Fatalf("%v is handed over, want the restart, once", r)
	}
	goOn <- true
	if err := <-returned; !errors.Is(err, failure) {
		t.Errorf("Restart: %v, want %v", err, failure)
	}
	if <-r.done; !errors.Is(r.err, failure) {
		t.Errorf("its outcome: %v, want %v", r.err, failure)
	}
}

// Only a signal that comes a second after another one is insisted on: a stop that had
// another reason may take long.
func TestFirstSignalAfterAnotherStopEndsNothing(t *testing.T) {
	p := &Process{Logger: log.New(io.Discard, "", 0)}
	l := &loop{p: p, g: handoff.Self(), state: stopping, asked: time.Now().Add(-time.Hour)}
	l.stopSignal(syscall.SIGTERM) // which would end this process
	if l.over || l.signal.IsZero() {
		t.Errorf("over %v, signal %v; want a signal that is noted", l.over, l.signal)
	}
}

// A server that has failed while a restart was under way is not forgotten for a stop.
func TestStopAfterAFailureKeepsItsReason(t *testing.T) {
	failure := errors.New("a server has failed")
	l := &loop{state: starting, restart: &restart{giveUp: make(chan struct{}), signals: make(chan os.Signal, 1)}}
	l.stop(stop{err: failure})
	l.stop(stop{reason: "the service is to stop", service: true})
	if l.next == nil || !errors.Is(l.next.err, failure) || !l.next.service {
		t.Errorf("after the restart follows %+v, want both", l.next)
	}
}

// A selfServing listener is a server that notes what this process does when it accepts.
type selfServing struct {
	*listener
	resumed chan handoff.Phase
	closed  chan bool
}

func (s *selfServing) Serve(accepting func()) error {
	accepting()
	<-s.closed
	return nil
}

func (s *selfServing) Resume() bool {
	s.resumed <- handoff.Self().Phase()
	return s.listener.Resume()
}

func (s *selfServing) Close() error { close(s.closed); return s.listener.Close() }

// Whoever asks with the first connection whether this process is ready hears that it is.
func TestProcessIsReadyWhenItAccepts(t *testing.T) {
	GoOnAfterwards(t)
	s := &selfServing{NewListener(listenTCP(t)).(*listener), make(chan handoff.Phase, 1), make(chan bool)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- (&Process{Logger: log.New(io.Discard, "", 0)}).WaitContext(ctx, []Listener{s})
	}()
	if phase := <-s.resumed; !phase.Ready() {
		t.Errorf("it accepts while it is %v", phase)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
