//go:build !unix

package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// A Successor cannot exist where descriptors are not inherited.
type Successor struct {
	Pid     int
	Started time.Time
}

type control struct{}

func (g *Generation) load() {}

func (g *Generation) Ready() error { return nil }

func (g *Generation) StepDown(bool) {}

func (g *Generation) ServeAgain() {}

// Start returns an error that is errors.ErrUnsupported.
func (g *Generation) Start([]net.Listener) (*Successor, error) {
	return nil, fmt.Errorf("handing sockets over on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Notify does nothing.
func (g *Generation) Notify(string, ...int) error { return nil }

type messenger struct{}

// Adopted does nothing: there is no predecessor.
func (g *Generation) Adopted(main func() bool) error { return nil }

// StoreListeners does nothing: there is no manager to keep them.
func (g *Generation) StoreListeners() error { return nil }

func (s *Socket) Describe() string { return string(s.Kind) }

func (s *Socket) Descriptor() int { return -1 }

func (s *Successor) TakeBack()                    {}
func (s *Successor) Ready() bool                  { return false }
func (s *Successor) Serves() bool                 { return false }
func (s *Successor) giveUp()                      {}
func (s *Successor) TermMeansReady() bool         { return false }
func (s *Successor) HandOver(time.Duration) error { return errors.ErrUnsupported }
func (s *Successor) Settled() <-chan struct{}     { return nil }
func (s *Successor) Exited() <-chan struct{}      { return nil }
func (s *Successor) StepsDown() <-chan struct{}   { return nil }
func (s *Successor) SteppedDown() bool            { return false }
func (s *Successor) ExitError() error             { return nil }
func (s *Successor) Signal(os.Signal)             {}
func (s *Successor) Failed() bool                 { return false }
func (s *Successor) Moves() bool                  { return false }
func (s *Successor) Moved() int                   { return 0 }
func (s *Successor) Part() error                  { return nil }
func (s *Successor) Waits() bool                  { return false }
func (g *Generation) Waiting()                    {}
func (s *Successor) Stop()                        {}
func (s *Successor) Stopping() bool               { return false }
func (s *Successor) Status(string, bool)          {}

func (s *Successor) Move(syscall.Conn, []syscall.Conn, []Waiting, time.Duration) error {
	return errors.ErrUnsupported
}
