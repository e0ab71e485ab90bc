package handoff

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// A program built on facebookgo/grace inherits listening sockets as LISTEN_FDS of them
// from descriptor 3 on, and when it is ready, it sends SIGTERM to its parent: as a
// predecessor it waits for that, as a successor it does so whoever its parent is. So none
// is started but as a child, and none is signalled but one that is known for it.

// original reports whether it is a predecessor built on facebookgo/grace, as far as that
// can be known: its file may be closed to us.
func (p parent) original() bool {
	return p.same && (p.program == Original || p.program == Unknown)
}

// IsOriginal reports whether it runs a program that is built on facebookgo/grace, whose
// word for being ready is a SIGTERM.
func (s *Successor) IsOriginal() bool {
	if !s.HasEnded() {
		if program := runs(s.Pid); program != Unknown {
			return program == Original
		}
	}
	// It has ended, though that may not be known yet, or its file is closed to us.
	path, err := startPath()
	return err == nil && startProgram(path) == Original
}

// termPredecessor tells a predecessor that is built on facebookgo/grace that we serve,
// unless it has ended, and its number belongs to another.
func (g *Generation) termPredecessor() error {
	if os.Getppid() != g.Predecessor.Pid || !parentOf(g.Predecessor.Pid).original() {
		return nil
	}
	if err := kill(g.Predecessor.Pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("telling the predecessor, pid %d, that we are ready: %w", g.Predecessor.Pid, err)
	}
	return nil
}

// WaitLegacy waits for the end of a predecessor that is built on facebookgo/grace, or for
// ctx.
func (g *Generation) WaitLegacy(ctx context.Context) error {
	if os.Getppid() != g.Predecessor.Pid {
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(g.Predecessor.Pid) }()
	select {
	case err := <-ended:
		if os.Getppid() != g.Predecessor.Pid {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
