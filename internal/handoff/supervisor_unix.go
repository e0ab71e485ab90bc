//go:build unix

package handoff

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// A supervisor and its generations share a socket pair of datagrams. All
// generations write states to their end, as they would to systemd; the end of
// the other side tells them that the supervisor has ended, and its own end of
// file tells the supervisor that no generation is left.

// stateAskStatus begins a line for the supervisor alone: a generation that has started a
// sibling names it, and sends the end of a pipe for its wait status.
const stateAskStatus = "GRACE_STARTED="

// stateOwn begins each line that is not for the service manager, of earlier versions too.
const stateOwn = "GRACE_"

// watchSupervisor waits for the supervisor's end: it never writes. A program with
// a signal loop of its own gets SIGTERM then.
func (m *Manager) watchSupervisor() {
	io.Copy(io.Discard, m.supervisor)
	close(m.unsupervised)
	if !m.g.Owned() {
		m.g.Logf("grace: the supervisor has ended: stopping pid %d", os.Getpid())
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}
}

// askStatus asks the supervisor how a sibling will end. It returns nil without one.
func (m *Manager) askStatus(pid int) *os.File {
	if m.supervisor == nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer w.Close()
	rights := []byte(nil)
	if err := withFDs([]syscall.Conn{w}, func(fds []int) error {
		rights = syscall.UnixRights(fds...)
		// Not in the queue: a status that comes late is not known in time.
		m.supervisor.SetWriteDeadline(time.Now().Add(statusWriteTimeout))
		_, _, err := m.supervisor.WriteMsgUnix(fmt.Appendf(nil, "%s%d", stateAskStatus, pid), rights, nil)
		return err
	}); err != nil {
		r.Close()
		return nil
	}
	return r
}

const statusWriteTimeout = 100 * time.Millisecond

// AskedStatus parses a line by which a generation asks how a sibling will end.
func AskedStatus(line string) (pid int, ok bool) {
	text, ok := strings.CutPrefix(line, stateAskStatus)
	if !ok {
		return 0, false
	}
	_, err := fmt.Sscan(text, &pid)
	return pid, err == nil
}

// IsOwn reports whether a line is not for the service manager.
func IsOwn(line string) bool { return strings.HasPrefix(line, stateOwn) }

// AnswerStatus answers one who has asked, and closes the descriptor.
func AnswerStatus(fd int, status syscall.WaitStatus) {
	syscall.Write(fd, binary.NativeEndian.AppendUint32(nil, uint32(status)))
	syscall.Close(fd)
}
