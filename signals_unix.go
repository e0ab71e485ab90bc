//go:build unix

package grace

import (
	"os"
	"os/signal"
	"sync"
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

// signalSelf sends this process a signal.
func signalSelf(sig syscall.Signal) error { return syscall.Kill(os.Getpid(), sig) }

// surviveBrokenPipes lets a write to a standard stream whose reader is gone fail, rather
// than end the process. Nobody reads the channel: that SIGPIPE is asked for is enough, and
// unlike an ignored signal that does not pass to other programs.
var surviveBrokenPipes = sync.OnceFunc(func() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) })
