//go:build !linux

package gracehttp

import "syscall"

// hasOutput is not known here.
func hasOutput(raw syscall.RawConn) bool { return false }
