//go:build unix

package grace

import (
	"errors"
	"io"
	"log"
	"testing"

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

// Restart may be called before Wait, which then owns it.
func TestRestartThatRunsIsHandedToWaitOnce(t *testing.T) {
	var a lonely
	r := &restart{}
	if err := a.begin(r); err != nil {
		t.Fatal(err)
	}
	if err := a.begin(&restart{}); !errors.Is(err, ErrUnderWay) {
		t.Errorf("another begins: %v, want %v", err, ErrUnderWay)
	}
	if a.take() != r || a.take() != nil {
		t.Error("it is handed over once")
	}
	if !a.taken(r) {
		t.Error("its caller takes itself for the owner too")
	}
	if err := a.begin(r); err != nil || a.taken(r) || a.take() != nil {
		t.Errorf("begin %v; once its caller has it, nobody else may", err)
	}
}
