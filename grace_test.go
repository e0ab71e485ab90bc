package grace_test

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/facebookgo/grace"
)

// What programs written for facebookgo/grace rely on, to the letter.
var (
	_ error = grace.ErrNotInheriting
	_ error = grace.ErrAlreadyClosed

	_ func(grace.Listener) grace.Listener            = grace.NewListener
	_ func() (listeners []grace.Listener, err error) = grace.Inherit
	_ func(listeners []grace.Listener) (err error)   = grace.Restart
	_ func(listeners []grace.Listener) (err error)   = grace.Wait
	_ func() error                                   = grace.CloseParent

	_ func() (listeners []grace.Listener, err error) = new(grace.Process).Inherit
	_ func(listeners []grace.Listener) (err error)   = new(grace.Process).Restart
	_ func(listeners []grace.Listener) (err error)   = new(grace.Process).Wait
	_ func() error                                   = new(grace.Process).CloseParent

	_ = grace.Process{TermTimeout: time.Second}

	_ interface {
		net.Listener
		File() (f *os.File, err error)
	} = grace.Listener(nil)
	_ grace.Listener = interface {
		net.Listener
		File() (f *os.File, err error)
	}(nil)
	_ grace.Listener = (*net.TCPListener)(nil)
	_ grace.Listener = (*net.UnixListener)(nil)
)

func TestErrAlreadyClosedIsNetErrClosed(t *testing.T) {
	if !errors.Is(grace.ErrAlreadyClosed, net.ErrClosed) {
		t.Errorf("%v is no net.ErrClosed", grace.ErrAlreadyClosed)
	}
	if errors.Is(grace.ErrNotInheriting, net.ErrClosed) {
		t.Errorf("%v is a net.ErrClosed", grace.ErrNotInheriting)
	}
}

func TestFreshProcessInheritsNothing(t *testing.T) {
	for range 2 {
		if l, err := grace.Inherit(); l != nil || err != grace.ErrNotInheriting {
			t.Errorf("Inherit returned %v, %v, want the value ErrNotInheriting", l, err)
		}
		if l, err := new(grace.Process).Inherit(); l != nil || err != grace.ErrNotInheriting {
			t.Errorf("the method Inherit returned %v, %v, want the value ErrNotInheriting", l, err)
		}
	}
}

func TestCloseParentWithoutPredecessorDoesNothing(t *testing.T) {
	if err := grace.CloseParent(); err != nil {
		t.Errorf("CloseParent: %v", err)
	}
}
