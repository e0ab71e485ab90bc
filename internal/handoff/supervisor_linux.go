package handoff

import (
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/facebookgo/grace/internal/systemd"
)

// prSetChildSubreaper is PR_SET_CHILD_SUBREAPER of prctl(2).
const prSetChildSubreaper = 36

// A Supervisor is the parent of all generations. It serves nothing itself.
type Supervisor struct {
	First  int          // the first generation's process id, and all generations' process group
	States <-chan State // what the generations tell; closed when none is left
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
		return nil, err
	}
	g.pool.closeUnused()

	states := make(chan State)
	go func() {
		defer close(states)
		for {
			s, err := receiveState(ours)
			if err != nil {
				return
			}
			states <- s
		}
	}()
	return &Supervisor{First: pid, States: states}, nil
}

// receiveState waits for one state. Its receiver owns the descriptors.
func receiveState(c *net.UnixConn) (State, error) {
	b := make([]byte, 64<<10)
	r := &rightsReader{conn: c}
	n, err := r.Read(b)
	if err != nil {
		closeAll(r.fds)
		return State{}, err
	}
	return State{Text: string(b[:n]), FDs: r.fds}, nil
}
