//go:build unix && !linux

package handoff

import (
	"errors"
	"syscall"
)

func (g *Generation) hasSiblings() bool { return false }

func (g *Generation) forkSibling(string, *syscall.ProcAttr) (process, error) {
	return nil, errors.ErrUnsupported
}

func awaitEnd(pid int) error { return errors.ErrUnsupported }
