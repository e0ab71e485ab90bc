//go:build !unix

package gracehttp

import (
	"errors"
	"syscall"
)

// waitReadable is for moved connections, and none move here.
func waitReadable(raw syscall.RawConn) (next []byte, err error) {
	return nil, errors.ErrUnsupported
}

// skip is for moved connections, too.
func skip(raw syscall.RawConn) {}

// hasInput is not known here: an idle connection is taken for idle.
func hasInput(raw syscall.RawConn) bool { return false }

// shutdown is for connections that were to be moved, and none move here.
func shutdown(c syscall.Conn) {}
