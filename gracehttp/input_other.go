//go:build !unix

package gracehttp

import (
	"errors"
	"syscall"
)

// waitReadable is for moved connections, and none move here.
func waitReadable(raw syscall.RawConn) (readable bool, err error) {
	return false, errors.ErrUnsupported
}

// skipLineBreak is for moved connections, too.
func skipLineBreak(raw syscall.RawConn) bool { return false }

// hasInput is not known here: an idle connection is taken for idle.
func hasInput(raw syscall.RawConn) bool { return false }

// shutdown is for connections that were to be moved, and none move here.
func shutdown(c syscall.Conn) {}
