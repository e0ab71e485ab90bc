//go:build unix && !linux

package handoff

import "syscall"

// awaitEnd is for generations of a supervisor, of which there is none here.
func awaitEnd(pid int) (status syscall.WaitStatus, ok bool) { return 0, false }
