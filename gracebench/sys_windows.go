package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// What a connection may fail with: Winsock's errors, which syscall.ECONNREFUSED and ECONNRESET are not.
const (
	errRefused = syscall.Errno(10061) // WSAECONNREFUSED
	errReset   = syscall.WSAECONNRESET
)

// Windows has no signal that asks for a restart, and gracehttp does not restart there.
func signalByName(string) (os.Signal, error) {
	return nil, errors.New("restarts need a Unix system: there is nothing to measure on Windows")
}

func pollGone(int)           {}
func ownGroup(*exec.Cmd)     {}
func killGroup(*exec.Cmd)    {}
func cpuTime() time.Duration { return 0 }
func fileLimit() int         { return 0 }
