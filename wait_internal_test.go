package grace

import (
	"errors"
	"io"
	"log"
	"os"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/handoff"
)

func TestStopMentionsARestartSignalThatCameEarly(t *testing.T) {
	var lines strings.Builder
	g := handoff.Self()
	defer g.Stop(false)
	w := &waiter{p: &Process{Logger: log.New(&lines, "", 0)}, g: g, early: os.Interrupt}
	if err := w.stop(false, false); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(lines.String(), "restart signal ignored"); n != 1 {
		t.Errorf("mentioned %d times in:\n%s", n, lines.String())
	}
}

// Nor does the service manager, which waits for the end of a reload.
func TestHookDoesNotHearOfARestartThatIsRefused(t *testing.T) {
	handoff.Self().Stop(true)
	defer handoff.Self().Stop(false)
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
	if err := p.Restart(nil); !errors.Is(err, failure) {
		t.Errorf("Restart: %v, want %v", err, failure)
	}
}
