//go:build !linux

package handoff

import (
	"errors"
	"net"
)

// peerPid is not known here.
func peerPid(c *net.UnixConn) int { return 0 }

// parentOf says what the process pid runs. It is not known how to find out here, so
// no stranger is taken for a predecessor.
func parentOf(pid int) parent { return parent{} }

// runs is not known here.
func runs(pid int) Program { return Unknown }

func (g *Generation) forkSibling(string, []int, []string) (process, error) {
	return nil, errors.ErrUnsupported
}

func awaitEnd(pid int) error { return errors.ErrUnsupported }
