package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/systemd"
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

// prSetChildSubreaper is PR_SET_CHILD_SUBREAPER of prctl(2). Generations are our children
// but where they could not be started so; what they leave behind becomes ours.
const prSetChildSubreaper = 36

// A Supervisor is the parent of all generations. It serves nothing itself.
type Supervisor struct {
	First  int             // the first generation's process id, and all generations' process group
	Unread <-chan struct{} // received from when States has something to return

	raw syscall.RawConn // our end of the generations' socket
	buf []byte
}

// A State is one that a generation has told, with descriptors for the manager.
type State struct {
	Text string
	FDs  []int
}

// Supervise starts the first generation, in a process group of its own, with the
// sockets that were handed to this process, and makes this process the parent of
// all that come after it.
func (g *Generation) Supervise() (*Supervisor, error) {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return nil, os.NewSyscallError("prctl", errno)
	}
	ours, theirs, err := socketPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	// The first generation has its own copy, and we must see the end of file.
	defer syscall.Close(theirs)

	var names []string
	var open []syscall.Conn
	for _, s := range g.all() {
		names = append(names, s.Name)
		open = append(open, s.conn())
	}
	what := inheritance{count: len(open), supervisor: true}
	if strings.Join(names, "") != "" {
		what.names = strings.Join(names, ":")
	}
	env := slices.DeleteFunc(slices.Clone(born.env), func(v string) bool {
		return strings.HasPrefix(v, systemd.EnvSocket+"=") // generations talk to us
	})
	path, err := startPath()
	var pid int
	if err == nil {
		err = withFDs(open, func(fds []int) (err error) {
			pid, err = execute(path, append(fds, theirs), what.environ(env), &syscall.SysProcAttr{Setpgid: true})
			return err
		})
		if errors.Is(err, syscall.EPERM) && syscall.Access(path, 1) == nil {
			err = fmt.Errorf("starting %s: %w", path, os.NewSyscallError("setpgid", err))
		} else if err != nil {
			err = startError(path, err)
		}
	}
	if err != nil {
		ours.Close()
		syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 0, 0)
		return nil, err
	}
	g.Discard()

	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, err
	}
	unread := make(chan struct{})
	go func() {
		for raw.Read(readable) == nil {
			unread <- struct{}{}
		}
	}()
	return &Supervisor{First: pid, Unread: unread, raw: raw, buf: make([]byte, 64<<10)}, nil
}

// States returns what the generations have told by now, and whether none is left
// that could tell more. Its caller owns the descriptors.
func (s *Supervisor) States() (states []State, over bool) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFDs))
	s.raw.Control(func(fd uintptr) {
		for {
			n, oobn, _, _, err := syscall.Recvmsg(int(fd), s.buf, oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
			if err == syscall.EINTR {
				continue
			}
			if err == syscall.EAGAIN {
				return
			}
			if err != nil || n == 0 {
				over = true
				return
			}
			fds, _ := parseRights(oob[:oobn])
			states = append(states, State{Text: string(s.buf[:n]), FDs: fds})
		}
	})
	return states, over
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
	// Not in the queue: a status that comes late is not known in time.
	m.supervisor.SetWriteDeadline(time.Now().Add(statusWriteTimeout))
	err = withFDs([]syscall.Conn{w}, func(fds []int) error {
		_, _, err := m.supervisor.WriteMsgUnix(fmt.Appendf(nil, "%s%d", stateAskStatus, pid), rightsOf(fds), nil)
		return err
	})
	if err != nil {
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
