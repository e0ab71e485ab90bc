//go:build unix && !linux

package handoff

import "net"

// madeBy reports whether a socket is one of a pair that the process pid has
// made. That is not known here.
func madeBy(c *net.UnixConn, pid int) bool { return true }

// sameProgram reports whether the process pid has our own command line. It is
// not known how to find out here, so no stranger is taken for a predecessor.
func sameProgram(pid int) bool { return false }

// sameFile reports whether the process pid runs the very file that this one does.
// That is not known here.
func sameFile(pid int) bool { return false }
