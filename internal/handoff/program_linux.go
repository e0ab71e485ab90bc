package handoff

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"
)

// madeBy reports whether a socket is one of a pair that the process pid has
// made; see SO_PEERCRED in unix(7).
func madeBy(c *net.UnixConn, pid int) (made bool) {
	if c == nil {
		return false
	}
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
			made = err == nil && int(cred.Pid) == pid
		})
	}
	return made
}

// sameProgram reports whether the process pid has our own command line.
func sameProgram(pid int) bool {
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	ours, err := os.ReadFile("/proc/self/cmdline")
	return err == nil && len(ours) > 0 && bytes.Equal(ours, theirs)
}

// sameFile reports whether the process pid runs the very file that this one does.
func sameFile(pid int) bool {
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/self/exe")
	return err == nil && os.SameFile(ours, theirs)
}
