//go:build unix

package grace

import (
	"errors"
	"io"
	"log"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// Nor does the service manager, which waits for the end of a reload.
func TestHookDoesNotHearOfARestartThatIsRefused(t *testing.T) {
	handoff.Self().Stopping()
	defer func() { // as another Wait does
		if _, err := handoff.Self().Own(); err != nil {
			t.Fatal(err)
		}
		handoff.Self().Disown()
	}()
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
