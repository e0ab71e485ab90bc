//go:build unix

package handoff

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/systemd"
)

// A supervisor and its generations share a socket pair of datagrams. All
// generations write states to their end, as they would to systemd; the end of
// the other side tells them that the supervisor has ended, and its own end of
// file tells the supervisor that no generation is left.

// earlySupervisor is the generations' end, close-on-exec before main starts.
var earlySupervisor, earlySupervisorErr = openSupervisor()

func openSupervisor() (*net.UnixConn, error) {
	fd, err := announcedFD(envSupervisor)
	if fd < 0 {
		return nil, err
	}
	adopted = append(adopted, fd)
	c, err := newUnixConn(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%d: %w", envSupervisor, fd, err)
	}
	return c, nil
}

// StateEnded begins a line for the supervisor alone: a generation that has waited
// for its successor tells the process id and the wait status, as two numbers.
const StateEnded = "GRACE_ENDED="

// watchSupervisor waits for the supervisor's end: it never writes. A program with
// a signal loop of its own gets SIGTERM then.
func (g *Generation) watchSupervisor() {
	io.Copy(io.Discard, g.supervisor)
	close(g.unsupervised)
	g.mu.Lock()
	waits := g.onReady != nil
	g.mu.Unlock()
	if !waits {
		g.logf("grace: the supervisor has ended: stopping pid %d", os.Getpid())
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}
}

// tellSupervisor says something that is not meant for the service manager.
func (g *Generation) tellSupervisor(state string) {
	if g.supervisor == nil {
		return
	}
	if err := g.Notify(state); err != nil {
		g.logf("grace: telling the supervisor: %v", err)
	}
}

// Notify tells the supervisor, or else the service manager at NOTIFY_SOCKET, of a
// state, lines of NAME=VALUE as in sd_notify(3), with copies of descriptors. With
// neither it does nothing.
func (g *Generation) Notify(state string, fds ...int) error {
	if g.supervisor != nil {
		var oob []byte
		if len(fds) > 0 {
			oob = syscall.UnixRights(fds...)
		}
		g.supervisor.SetWriteDeadline(time.Now().Add(sendTimeout))
		_, _, err := g.supervisor.WriteMsgUnix([]byte(state), oob, nil)
		return err
	}
	if socket := os.Getenv(systemd.EnvSocket); socket != "" {
		g.telling.Lock()
		defer g.telling.Unlock()
		return systemd.Notify(socket, state, fds...)
	}
	return nil
}

// StoreListeners asks the service manager to keep copies of the listening
// sockets, so that they survive a crash of this process; see FDSTORE=1 in
// sd_notify(3). It knows which ones it has already, and those that it has opened
// itself it keeps anyway.
func (g *Generation) StoreListeners() error {
	for _, s := range g.pool.all() {
		if s.Kind != Listener || s.Activated {
			continue
		}
		name := s.Name
		if name == "" {
			name = "grace"
		}
		state := "FDSTORE=1\nFDNAME=" + strings.NewReplacer(":", "_", "\n", "_").Replace(name)
		if err := withFDs([]syscall.Conn{s.conn()}, func(fds []int) error {
			return g.Notify(state, fds...)
		}); err != nil {
			return err
		}
	}
	return nil
}
