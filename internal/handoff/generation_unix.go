//go:build unix

package handoff

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// State returns what the predecessor provided under this name, or nil.
func (g *Generation) State(name string) []byte {
	if g.Predecessor == nil {
		return nil
	}
	return g.Predecessor.states[name]
}

// Receive calls take with the connections of a listener that the predecessor
// hands over; they are the receiver's then. They come as files, in non-blocking
// mode: making a net.Conn of each takes longer than the predecessor should wait.
// How long each has waited for its next request is nil if the predecessor does not say.
// A nil take refuses them: once Receive has returned, no more will come.
func (g *Generation) Receive(l net.Listener, take func([]*os.File, []Waiting)) {
	s := g.Find(func(s *Socket) bool { return s.Open == l })
	if s != nil && s.index >= 0 && g.Predecessor != nil { // else the predecessor does not know it
		g.Predecessor.receiver(s.index, take)
	}
}

// Ready tells the predecessor that we serve, once; later calls return what the
// first did. What was inherited and never asked for is closed.
func (g *Generation) Ready() error {
	g.ready.Do(func() {
		switch g.Origin {
		case Succeeded:
			kept := []int{}
			for _, s := range g.inUse() {
				if s.Kind == Listener && s.index >= 0 {
					kept = append(kept, s.index)
				}
			}
			g.readyErr = g.Predecessor.ready(kept)
		case SucceededLegacy:
			g.readyErr = g.termPredecessor()
		}
		if g.readyErr != nil && g.Origin == Succeeded {
			return // the predecessor serves on
		}
		unsetenv(announcing...)
		if g.Manager.Supervised() {
			g.Manager.Tell("MAINPID=" + strconv.Itoa(os.Getpid()))
		}
		g.closeUnused()
		g.keepPaths(false)
	})
	return g.readyErr
}

// termPredecessor tells a predecessor that is built on facebookgo/grace that we serve,
// unless it has ended, and its number belongs to another.
func (g *Generation) termPredecessor() error {
	if os.Getppid() != g.ppid || !parentOf(g.ppid).original() {
		return nil
	}
	if err := syscall.Kill(g.ppid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("telling the predecessor, pid %d, that we are ready: %w", g.ppid, err)
	}
	return nil
}

// unmanageable returns why the service manager would not follow a restart: a service of
// Type=simple or exec is its first process, which systemd names in a variable, see
// systemd.exec(5).
func (g *Generation) unmanageable() error {
	if born.getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) && !g.Manager.Listens() {
		return errSimple
	}
	return nil
}

// WaitLegacy waits for the end of a predecessor that is built on facebookgo/grace, or for
// ctx.
func (g *Generation) WaitLegacy(ctx context.Context) error {
	if os.Getppid() != g.ppid {
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(g.ppid) }()
	select {
	case err := <-ended:
		if os.Getppid() != g.ppid {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
