package handoff

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/facebookgo/grace/internal/systemd"
)

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
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, err := newUnixConn(fds[0])
	if err != nil {
		syscall.Close(fds[1])
		return nil, err
	}
	theirs, err := newUnixConn(fds[1])
	if err != nil {
		ours.Close()
		return nil, err
	}
	// The first generation has its own copy, and we must see the end of file.
	defer theirs.Close()

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
		err = withFDs(append(open, theirs), func(fds []int) (err error) {
			pid, err = syscall.ForkExec(path, born.args, &syscall.ProcAttr{
				Dir: born.dir, Env: what.environ(env), Files: files(fds),
				Sys: &syscall.SysProcAttr{Setpgid: true},
			})
			if errors.Is(err, syscall.EPERM) && syscall.Access(path, 1) == nil {
				return fmt.Errorf("starting %s: %w", path, os.NewSyscallError("setpgid", err))
			} else if err != nil {
				return startError(path, err)
			}
			return nil
		})
	}
	if err != nil {
		ours.Close()
		syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 0, 0)
		return nil, err
	}
	g.closeUnused()

	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, err
	}
	unread := make(chan struct{})
	go func() {
		for waitReadable(raw) == nil {
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
