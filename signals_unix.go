//go:build unix

package grace

import (
	"os"
	"os/signal"
	"syscall"
)

// restartSignal asks for a restart.
var restartSignal os.Signal = syscall.SIGUSR2

// die ends the process as sig does by default.
func die(sig os.Signal) {
	signal.Reset(sig)
	syscall.Kill(os.Getpid(), sig.(syscall.Signal))
	select {}
}
