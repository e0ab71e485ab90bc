//go:build !unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// Where descriptors are not inherited there is neither a predecessor nor a successor, and
// no service manager.

var errUnsupported = fmt.Errorf("handing sockets over on %s: %w", runtime.GOOS, errors.ErrUnsupported)

const (
	MaxMove  = 1
	MaxState = 0
)

type Predecessor struct{ Pid int }

type Status struct {
	Text string
	Main bool
}

func (g *Generation) load()                                             { g.Manager = &Manager{} }
func (g *Generation) State(string) []byte                               { return nil }
func (g *Generation) Receive(net.Listener, func([]*os.File, []Waiting)) {}
func (g *Generation) Ready() error                                      { return nil }
func (g *Generation) WaitLegacy(context.Context) error                  { return nil }
func (g *Generation) StartAlone() (int, error)                          { return 0, errUnsupported }
func (g *Generation) Start([]net.Listener, bool) (*Successor, error)    { return nil, errUnsupported }
func (g *Generation) unmanageable() error                               { return errUnsupported }
func (p *Predecessor) Gone() <-chan struct{}                            { return closed }
func (p *Predecessor) Drained() <-chan struct{}                         { return closed }
func (p *Predecessor) Stop() <-chan struct{}                            { return nil }
func (p *Predecessor) Statuses() <-chan Status                          { return nil }
func (p *Predecessor) Holds() string                                    { return "" }
func (p *Predecessor) HasOnMove() bool                                  { return false }
func (p *Predecessor) OnMove(func(net.Conn, []byte))                    {}
func (p *Predecessor) Waiting()                                         {}
func (p *Predecessor) StepDown(bool)                                    {}
func (p *Predecessor) ServeAgain()                                      {}
func (p *Predecessor) Flush(time.Duration)                              {}

type Manager struct{ Watchdog time.Duration }

func (m *Manager) Listens() bool                 { return false }
func (m *Manager) Supervised() bool              { return false }
func (m *Manager) Unsupervised() <-chan struct{} { return nil }
func (m *Manager) Tell(string)                   {}
func (m *Manager) Then(f func())                 { f() }
func (m *Manager) Flush(context.Context) error   { return nil }
func (m *Manager) Barrier(context.Context) error { return nil }
func (m *Manager) StoreListeners()               {}

func (s *Socket) Describe() string { return string(s.Kind) }
func (s *Socket) Descriptor() int  { return -1 }

type Successor struct {
	Pid     int
	Started time.Time
}

type Event int

const (
	Said Event = iota + 1
	Ready
	HandsOver
	Stops
	ServesAgain
	Silent
	Ended
)

func (s *Successor) Events() <-chan Event    { return nil }
func (s *Successor) Release()                {}
func (s *Successor) Received(Event)          {}
func (s *Successor) Unheard() bool           { return false }
func (s *Successor) HasEnded() bool          { return false }
func (s *Successor) Waits() bool             { return false }
func (s *Successor) Succeeded() bool         { return false }
func (s *Successor) ExitError() error        { return nil }
func (s *Successor) IsOriginal() bool        { return false }
func (s *Successor) Signal(os.Signal)        {}
func (s *Successor) GiveUp()                 {}
func (s *Successor) Kill()                   {}
func (s *Successor) Stop()                   {}
func (s *Successor) Status(string, bool)     {}
func (s *Successor) Drained()                {}
func (s *Successor) Flush(time.Duration)     {}
func (s *Successor) TakeBack()               {}
func (s *Successor) DropPaths()              {}
func (s *Successor) Keeps(syscall.Conn) bool { return true }
func (s *Successor) Moves() bool             { return false }

func (s *Successor) Move(syscall.Conn, []syscall.Conn, []Waiting, time.Duration) error {
	return errUnsupported
}
func (s *Successor) MoveOwn([]syscall.Conn, [][]byte, time.Duration) error { return errUnsupported }

// Program0 is the command line's first word.
func Program0() string { return os.Args[0] }

// Runs is not known here.
func Runs(pid int) bool { return false }
