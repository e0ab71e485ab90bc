package handoff

import (
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/facebookgo/grace/internal/systemd"
)

// prSetChildSubreaper is PR_SET_CHILD_SUBREAPER of prctl(2).
const prSetChildSubreaper = 36

// A Supervisor is the parent of all generations. It serves nothing itself.
type Supervisor struct {
	First int             // the first generation's process id, and all generations' process group
	Told  <-chan struct{} // received from when States has something to return

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
	for _, s := range g.pool.all() {
		names = append(names, s.Name)
		open = append(open, s.conn())
	}
	what := inheritance{count: len(open), supervisor: true}
	if strings.Join(names, "") != "" {
		what.names = strings.Join(names, ":")
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, systemd.EnvSocket+"=") // generations talk to us
	})
	var pid int
	err = withFDs(append(open, theirs), func(fds []int) (err error) {
		pid, err = fork(fds, what.environ(env), &syscall.SysProcAttr{Setpgid: true})
		return err
	})
	if err != nil {
		ours.Close()
		syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 0, 0)
		return nil, err
	}
	g.pool.closeUnused()

	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, err
	}
	told := make(chan struct{})
	go func() {
		for waitReadable(raw) == nil {
			told <- struct{}{}
		}
	}()
	return &Supervisor{First: pid, Told: told, raw: raw, buf: make([]byte, 64<<10)}, nil
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

// awaitEnd waits until a child has ended, and returns its status without taking
// it; see waitid(2).
func awaitEnd(pid int) (status syscall.WaitStatus, ok bool) {
	const (
		byPID  = 1         // P_PID
		ended  = 4         // WEXITED
		noTake = 0x1000000 // WNOWAIT

		exited = 1 // CLD_EXITED
		dumped = 3 // CLD_DUMPED
	)
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), ended|noTake, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0, false
		}
		break
	}
	field := func(offset uintptr) uint32 { return binary.NativeEndian.Uint32(info[offset:]) }
	code := field(8)
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		code = field(4)
	}
	value := field(8 + unsafe.Sizeof(uintptr(0)) + 8) // after si_pid and si_uid
	switch code {
	case exited:
		return syscall.WaitStatus(value << 8), true
	case dumped:
		return syscall.WaitStatus(value | 0x80), true
	}
	return syscall.WaitStatus(value), true
}
