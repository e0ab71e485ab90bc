//go:build !unix

package grace

import (
	"errors"
	"os"
	"syscall"
)

// restartSignal does not exist here.
var restartSignal os.Signal

// die ends the process as sig does by default.
func die(sig os.Signal) { os.Exit(2) }

// signalSelf does nothing: no successor is ever ready.
func signalSelf(syscall.Signal) error { return errors.ErrUnsupported }

func surviveBrokenPipes() {}
