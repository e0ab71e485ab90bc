package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/systemd"
)

// systemd decides whether the main process is its child when it is told which
// one is, and never again. A successor is its predecessor's child at that time:
// systemd would neither wait for its end when stopping the service, but kill it
// at once, nor notice it otherwise. Only when the predecessor has ended systemd
// is its parent. To make systemd look again, another process must be the main one
// for a moment: a messenger, who is told with MAINPID and tells it back.
//
// The predecessor starts it when all else is done, as a sibling: so systemd is the
// messenger's parent, and never left with a main process alone that is not its
// child, which a stop would end at once.
//
//	predecessor  starts the messenger and hands it to the successor (kindMessenger)
//	successor    MAINPID=messenger, tells the predecessor (kindParted)
//	predecessor  ends
//	successor    relieves the messenger
//	messenger    MAINPID=successor, tells the successor, ends

// envMessenger is set for a messenger: the process id of the successor.
const envMessenger = "GRACE_MESSENGER"

// messengerFD is the messenger's end of a socket pair with the successor, over
// which they say one byte at a time.
const messengerFD = 3

const (
	messengerReady     = 'h' // from the messenger: signals are looked after
	messengerRelieved  = 'm' // the successor is the main process; to the messenger: shall be
	messengerDismissed = 'd' // to the messenger: it is not needed
	// From the messenger, less than 64: a signal.
)

const (
	// messengerTimeout bounds each step of it.
	messengerTimeout = 10 * time.Second
	// partTimeout is how long predecessor and successor wait for each other at
	// their parting. A program may take longer to end when Wait has returned.
	partTimeout = time.Second
	// messengerLinger is how long a messenger stays that has done its work.
	messengerLinger = time.Second
)

// A messenger never reaches main.
var _ = runMessenger()

func runMessenger() struct{} {
	value, set := os.LookupEnv(envMessenger)
	if !set {
		return struct{}{}
	}
	successor, err := strconv.Atoi(value)
	if err != nil || !isPaired(messengerFD) {
		os.Unsetenv(envMessenger) // it leaked to us
		return struct{}{}
	}
	if err := beMessenger(successor); err != nil {
		fmt.Fprintf(os.Stderr, "messenger: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
	return struct{}{}
}

// isPaired reports whether a descriptor is an end of a socket pair: a unix socket
// that is connected, and has no name at either end.
func isPaired(fd int) bool {
	for _, nameOf := range []func(int) (syscall.Sockaddr, error){syscall.Getpeername, syscall.Getsockname} {
		addr, err := nameOf(fd)
		unix, ok := addr.(*syscall.SockaddrUnix)
		if err != nil || !ok || unix.Name != "" && unix.Name != "@" {
			return false
		}
	}
	return true
}

func beMessenger(successor int) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM)
	c, err := newUnixConn(messengerFD)
	if err != nil {
		return err
	}
	words := make(chan byte)
	go func() {
		defer close(words)
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			words <- b[0]
		}
	}()
	tell := func(what byte) { c.Write([]byte{what}) }
	tell(messengerReady)

	socket := os.Getenv(systemd.EnvSocket)
	relieved := false
	var linger, stopping <-chan time.Time
	pass := func(sig os.Signal) {
		// Whoever signals the main process means the service.
		tell(byte(sig.(syscall.Signal)))
		if stops(sig) && stopping == nil {
			// The end of the main process would be that of all others.
			stopping = time.NewTicker(systemd.PatienceTick).C
		}
	}
	for {
		select {
		case sig := <-signals:
			pass(sig)

		case <-stopping:
			systemd.Notify(socket, fmt.Sprintf("STOPPING=1\nSTATUS=Stopping: pid %d finishes its requests\n%s", successor, systemd.Patience))

		case word := <-words:
			switch word {
			case messengerRelieved:
				for len(signals) > 0 {
					pass(<-signals)
				}
				if err := systemd.Notify(socket, "MAINPID="+strconv.Itoa(successor)); err != nil {
					return err
				}
				if err := barrier(socket); err != nil {
					return err
				}
				tell(messengerRelieved)
				relieved = true
				// Who has just read our number has yet to use it.
				linger = time.After(messengerLinger)
			case messengerDismissed:
				return nil
			default: // the successor has ended
				for len(signals) > 0 {
					pass(<-signals)
				}
				if !relieved && stopping == nil {
					return fmt.Errorf("pid %d has ended, which the service manager does not see", successor)
				}
				return nil
			}

		case <-linger:
			if stopping == nil {
				return nil
			}
		}
	}
}

func stops(sig os.Signal) bool { return sig == syscall.SIGTERM || sig == syscall.SIGINT }

// barrier waits until the manager has read all that was sent to it.
func barrier(socket string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = withFDs([]syscall.Conn{w}, func(fds []int) error {
		return systemd.Notify(socket, "BARRIER=1", fds...)
	})
	w.Close()
	if err != nil {
		return err
	}
	r.SetReadDeadline(time.Now().Add(messengerTimeout))
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s: no answer: %w", systemd.EnvSocket, err)
	}
	return nil
}

// A messenger is one as seen by the process that it works for, or that has
// started it.
type messenger struct {
	pid      int
	conn     *net.UnixConn
	relieved chan struct{} // closed when the successor is the main process
	ended    chan struct{} // closed when it can tell no more
}

// startMessenger starts one for a successor, which may be this process, as this
// process's child or sibling.
func startMessenger(successor int, sibling bool) (*messenger, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	c, err := newUnixConn(fds[0])
	if err != nil {
		syscall.Close(fds[1])
		return nil, err
	}
	var flags uintptr
	if sibling {
		flags = syscall.CLONE_PARENT
	}
	// Our own image, even if the program was replaced.
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Env:   append(os.Environ(), envMessenger+"="+strconv.Itoa(successor)),
		Files: []uintptr{standard(0), standard(1), standard(2), uintptr(fds[1])},
		Sys:   &syscall.SysProcAttr{Cloneflags: flags},
	})
	syscall.Close(fds[1])
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("starting a messenger: %w", err)
	}
	if !sibling {
		process, _ := os.FindProcess(pid) // never fails on Unix
		go process.Wait()
	}
	b := make([]byte, 1)
	c.SetReadDeadline(time.Now().Add(messengerTimeout))
	if _, err := c.Read(b); err != nil {
		c.Close() // which ends it
		return nil, fmt.Errorf("messenger pid %d: %w", pid, err)
	}
	c.SetReadDeadline(time.Time{})
	return newMessenger(pid, c), nil
}

func newMessenger(pid int, c *net.UnixConn) *messenger {
	return &messenger{pid: pid, conn: c, relieved: make(chan struct{}), ended: make(chan struct{})}
}

// listen does what the messenger is asked for.
func (m *messenger) listen(g *Generation) {
	defer close(m.ended)
	defer m.conn.Close()
	b := make([]byte, 1)
	for {
		if _, err := m.conn.Read(b); err != nil {
			return
		}
		switch sig := syscall.Signal(b[0]); {
		case b[0] == messengerRelieved:
			close(m.relieved)
		case stops(sig):
			g.stopTold() // which may have reached us by itself
		case sig < 64:
			syscall.Kill(os.Getpid(), sig)
		}
	}
}

func (m *messenger) tell(what byte) error {
	_, err := m.conn.Write([]byte{what})
	return err
}

// relieve makes this process the main one again.
func (m *messenger) relieve() error {
	if err := m.tell(messengerRelieved); err != nil {
		return err
	}
	select {
	case <-m.relieved:
		return nil
	case <-m.ended:
		return errors.New("it has ended")
	case <-time.After(messengerTimeout):
		m.conn.Close()
		return context.DeadlineExceeded
	}
}

// notifying reports whether a service manager listens to this process itself.
func (g *Generation) notifying() bool {
	return g.supervisor == nil && os.Getenv(systemd.EnvSocket) != ""
}

// Part is the last that this process does for its successor, the service
// manager's main process: it sees to it that systemd becomes that one's parent. A
// stop that comes meanwhile finds us, or the messenger, in the service as well, and
// so is waited for by systemd.
func (s *Successor) Part() error {
	if !s.g.notifying() || !s.Waits() || isClosed(s.heard) || s.SteppedDown() || !parentIsSystemd() {
		return nil
	}
	// Signals that systemd has for the main process come to us until it has read
	// that this is another.
	if err := barrier(os.Getenv(systemd.EnvSocket)); err != nil {
		return err
	}
	m, err := startMessenger(s.Pid, true)
	if err != nil {
		return err
	}
	defer m.conn.Close() // this copy
	if err := withFDs([]syscall.Conn{m.conn}, func(fds []int) error {
		return s.control.send(kindMessenger, messengerBody{m.pid}, fds...)
	}); err != nil {
		return err
	}
	select {
	case <-s.parted:
	case <-s.heard:
	case <-time.After(partTimeout):
		return fmt.Errorf("successor pid %d: no answer within %v", s.Pid, partTimeout)
	}
	return nil
}

// parentIsSystemd reports whether our siblings are systemd's children: another
// parent would not expect them.
func parentIsSystemd() bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	name := strings.TrimSpace(string(comm))
	return err == nil && (name == "systemd" || name == "init")
}

// handed is called with the messenger that the predecessor has started.
func (g *Generation) handed(pid int, fds []int) {
	if len(fds) != 1 {
		closeAll(fds)
		return
	}
	c, err := newUnixConn(fds[0])
	if err != nil {
		return
	}
	select {
	case g.messengers <- newMessenger(pid, c):
	default:
		c.Close() // there is one already
	}
}

// Adopted waits for the predecessor's end, and lets the service manager look again
// at its main process, this one, unless main says that it is not. Until that is
// done, other states wait.
func (g *Generation) Adopted(main func() bool) error {
	defer func() {
		select {
		case m := <-g.messengers:
			m.conn.Close() // too late
		default:
		}
	}()
	select {
	case m := <-g.messengers:
		adopted, err := g.adopted(m, main)
		if adopted || err != nil {
			return err
		}
	case <-g.gone:
	}
	<-g.gone
	if !main() || !g.notifying() || g.origin != Succeeded {
		return nil
	}
	g.orphaned(messengerTimeout)
	m, err := startMessenger(os.Getpid(), false)
	if err != nil {
		return err
	}
	_, err = g.adopted(m, main)
	return err
}

// adopted lets a messenger be the main process until the predecessor has ended,
// and reports whether that was soon enough.
func (g *Generation) adopted(m *messenger, main func() bool) (bool, error) {
	g.telling.Lock()
	defer g.telling.Unlock()
	go m.listen(g)
	defer g.predecessor.send(kindParted, nil) // again, if something went wrong
	if !main() {
		return false, m.tell(messengerDismissed)
	}
	if err := systemd.Notify(os.Getenv(systemd.EnvSocket), "MAINPID="+strconv.Itoa(m.pid)); err != nil {
		return true, errors.Join(err, m.tell(messengerDismissed))
	}
	g.predecessor.send(kindParted, nil)
	orphaned := g.orphaned(partTimeout)
	if err := m.relieve(); err != nil {
		return true, fmt.Errorf("messenger pid %d: %w", m.pid, err)
	}
	return orphaned, nil
}

// orphaned waits until this process is no longer its predecessor's child, and
// reports whether that was in time.
func (g *Generation) orphaned(timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-g.gone:
	case <-timer.C:
		return false
	}
	// The end of the control socket comes a moment before the predecessor's own.
	for os.Getppid() == g.ppid {
		select {
		case <-timer.C:
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return true
}
