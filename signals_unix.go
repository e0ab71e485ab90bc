//go:build unix

package grace

import (
	"os"
	"os/signal"
	"syscall"
)

// restartSignal asks for a restart.
var restartSignal os.Signal = syscall.SIGUSR2

// interruptIgnored is set in a shell's job in the background: by default SIGINT does
// nothing to it.
var interruptIgnored = signal.Ignored(syscall.SIGINT)

// die ends the process as sig does by default.
func die(sig os.Signal) {
	number := sig.(syscall.Signal)
	if number == syscall.SIGINT && interruptIgnored {
		os.Exit(128 + int(number))
	}
	signal.Reset(sig)
	syscall.Kill(os.Getpid(), number)
	select {}
}
