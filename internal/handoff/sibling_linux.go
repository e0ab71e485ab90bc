package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// A sibling is a process that we have started as a child of our own parent, with
// CLONE_PARENT of clone(2): so whoever waits for processes above us is its parent from
// its first moment. We see its end by a pidfd, see pidfd_open(2).
type sibling struct {
	child
	pidfd  *os.File
	status *os.File // where a supervisor writes how it has ended; nil without one
}

// statusTimeout bounds the wait for a sibling's status once it has ended: it is told
// when its parent has waited for it.
const statusTimeout = 300 * time.Millisecond

// hasSiblings reports whether our parent expects children of ours as its own, and the
// kernel lets us see their end.
func (g *Generation) hasSiblings() bool {
	ppid := os.Getppid()
	switch m := g.Manager; {
	case m.supervisor != nil:
		if !madeBy(ppid, m.supervisor) {
			return false
		}
	case m.socket == "" || !isSystemd(ppid):
		return false
	}
	fd, err := openPidfd(os.Getpid())
	if err != nil {
		return false
	}
	fd.Close()
	return true
}

// openPidfd returns a pidfd that can be polled.
func openPidfd(pid int) (*os.File, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen(), uintptr(pid), 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_open", errno)
	}
	return pidfdFile(int(fd)), nil
}

// pidfdFile takes a pidfd over, which is close-on-exec.
func pidfdFile(fd int) *os.File {
	setNonblock(fd)
	return os.NewFile(uintptr(fd), "pidfd")
}

// awaitEnd waits for the end of a process, and fails if that cannot be seen.
func awaitEnd(pid int) error {
	f, err := openPidfd(pid)
	if err != nil {
		return err
	}
	defer f.Close()
	return awaitReadable(f)
}

func awaitReadable(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(hasEnded)
}

// isSystemd reports whether a process is a service manager, by its name.
func isSystemd(pid int) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	name := strings.TrimSpace(string(comm))
	return err == nil && (name == "systemd" || name == "init")
}

func (g *Generation) forkSibling(path string, fds []int, env []string) (process, error) {
	if !g.hasSiblings() || startProgram(path) != Ours {
		return nil, errors.ErrUnsupported
	}
	pidfd := -1
	pid, err := execute(path, fds, env, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT, PidFD: &pidfd})
	if err != nil {
		return nil, err
	}
	if pidfd < 0 {
		syscall.Kill(pid, syscall.SIGKILL) // nobody would see its end
		return nil, errors.ErrUnsupported
	}
	return &sibling{newChild(pid), pidfdFile(pidfd), g.Manager.askStatus(pid)}, nil
}

func (s *sibling) wait(silent <-chan struct{}) exit {
	defer s.pidfd.Close()
	if awaitReadable(s.pidfd) != nil {
		<-silent
	}
	status, err := s.statusFromParent()
	if err != nil {
		status, err = s.statusFromKernel()
	}
	if err != nil {
		return exit{err: errors.New("its end (how is known to its parent)")}
	}
	return exit{err: statusError(status), success: status.ExitStatus() == 0}
}

// statusError says in words how a process has ended, as os.ProcessState does.
func statusError(status syscall.WaitStatus) error {
	switch {
	case !status.Signaled():
		return fmt.Errorf("exit status %d", status.ExitStatus())
	case status.CoreDump():
		return fmt.Errorf("signal: %v (core dumped)", status.Signal())
	}
	return fmt.Errorf("signal: %v", status.Signal())
}

// hasEnded reports whether a pidfd is readable: the process has ended.
func hasEnded(fd uintptr) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: 1} // POLLIN
	var none syscall.Timespec
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	return errno == 0 && n == 1
}

// statusFromParent is what a supervisor tells.
func (s *sibling) statusFromParent() (syscall.WaitStatus, error) {
	if s.status == nil {
		return 0, os.ErrNotExist
	}
	defer s.status.Close()
	s.status.SetReadDeadline(time.Now().Add(statusTimeout))
	var b [4]byte
	_, err := s.status.Read(b[:])
	return syscall.WaitStatus(binary.NativeEndian.Uint32(b[:])), err
}

// statusFromKernel is what Linux 6.15 and later tell when the parent has waited for the
// process; see PIDFD_GET_INFO in linux/pidfd.h.
func (s *sibling) statusFromKernel() (status syscall.WaitStatus, err error) {
	const (
		getInfo  = 0xc040ff0b // PIDFD_GET_INFO, for the first 64 bytes
		infoExit = 1 << 3     // PIDFD_INFO_EXIT
	)
	raw, err := s.pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	deadline := time.Now().Add(statusTimeout)
	for {
		info := [8]uint64{0: infoExit}
		var errno syscall.Errno
		err := raw.Control(func(fd uintptr) {
			_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, getInfo, uintptr(unsafe.Pointer(&info)))
		})
		switch {
		case err != nil:
			return 0, err
		case errno != 0 && errno != syscall.ESRCH:
			return 0, os.NewSyscallError("ioctl", errno)
		case errno == 0 && info[0]&infoExit != 0:
			code := (*[16]int32)(unsafe.Pointer(&info))[15]
			return syscall.WaitStatus(code), nil
		case !time.Now().Before(deadline):
			return 0, os.ErrDeadlineExceeded
		}
		time.Sleep(time.Millisecond) // nothing says that the parent has waited
	}
}

// sysPidfdOpen is the same number on all architectures, but for an offset.
func sysPidfdOpen() uintptr {
	switch {
	case strings.HasPrefix(runtime.GOARCH, "mips64"):
		return 5434
	case strings.HasPrefix(runtime.GOARCH, "mips"):
		return 4434
	}
	return 434
}
