// Package grace restarts a network service without anyone noticing.
//
// A process that holds listening sockets starts its own command line anew, the
// new process inherits the sockets and says that it is ready, and only then the
// old one stops accepting, finishes what it has begun, and ends. Nothing is
// refused and nothing is cut off, and whatever goes wrong with the new process,
// the old one serves on.
//
// Package gracehttp does all of that for HTTP servers, and moves their open
// connections to the new process too. This package is for other protocols:
//
//	listeners, err := grace.Inherit()
//	if errors.Is(err, grace.ErrNotInheriting) {
//		// open them with net.Listen, wrap them with NewListener
//	}
//	// serve them, each in its goroutine
//	grace.CloseParent() // we are ready
//	err = grace.Wait(listeners)
//
// Inherit returns all sockets in their order. Where there are several, or some may change,
// package gracenet finds each by its address.
//
// The names are those of systemd's socket activation, sd_listen_fds(3), whose
// sockets are inherited in the same way.
//
// # Signals
//
// Wait handles SIGUSR2 (restart), SIGTERM and SIGINT (stop). On systems without
// inherited descriptors, such as Windows, stopping works and a restart is an
// error that is errors.ErrUnsupported.
package grace

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/facebookgo/grace/internal/handoff"
)

var (
	// ErrNotInheriting is returned by Inherit in a process that was started
	// without sockets to inherit.
	ErrNotInheriting = errors.New("grace: not inheriting any listeners")

	// ErrAlreadyClosed is returned by a Listener's Accept once Close was called.
	// It is a net.ErrClosed.
	ErrAlreadyClosed error = alreadyClosed{}

	// ErrUnderWay is wrapped in what Restart returns while another restart is under
	// way: until its successor has failed, or this process has ended.
	ErrUnderWay = handoff.ErrUnderWay

	// ErrStopping is wrapped in what Restart and Move return while this process stops.
	ErrStopping = handoff.ErrStopping
)

type alreadyClosed struct{}

func (alreadyClosed) Error() string        { return "grace: listener already closed" }
func (alreadyClosed) Is(target error) bool { return target == net.ErrClosed }

// A Listener is a net.Listener with a descriptor that another process can
// inherit. *net.TCPListener and *net.UnixListener are such listeners.
type Listener interface {
	net.Listener

	// File returns a copy of the underlying descriptor, which the caller must
	// close. Do not call the file's Fd method: it makes the socket blocking, for
	// this process too.
	File() (f *os.File, err error)
}

// std is the process that the package-level functions use.
var std Process

// Inherit returns the listeners that the predecessor has handed to this process; see
// Process.Inherit.
func Inherit() (listeners []Listener, err error) { return std.Inherit() }

// Restart starts a successor with these listeners, and waits until it serves or has failed;
// see Process.Restart.
func Restart(listeners []Listener) (err error) { return std.Restart(listeners) }

// Wait serves signals until this process has stopped, or was replaced, and no connection
// of the listeners is open; see Process.Wait.
func Wait(listeners []Listener) (err error) { return std.Wait(listeners) }

// CloseParent says that this process serves, so that its predecessor may end; see
// Process.CloseParent.
func CloseParent() error { return std.CloseParent() }

// WaitParent waits until the predecessor is drained; see Process.WaitParent.
func WaitParent(ctx context.Context) error { return std.WaitParent(ctx) }
