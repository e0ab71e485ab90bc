package handoff

import (
	"errors"
	"fmt"
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

// envMessenger is set for a messenger: its parent's process id.
const envMessenger = "GRACE_MESSENGER"

// messengerFD is the messenger's end of a socket pair with its parent.
const messengerFD = 3

// messengerTimeout bounds each step of it.
const messengerTimeout = 10 * time.Second

// messengerLinger is how long a messenger stays that has done its work.
const messengerLinger = time.Second

// A messenger never reaches main.
var _ = runMessenger()

func runMessenger() struct{} {
	parent, err := strconv.Atoi(os.Getenv(envMessenger))
	if err != nil || parent <= 1 || parent != os.Getppid() {
		return struct{}{}
	}
	if err := beMessenger(parent); err != nil {
		fmt.Fprintf(os.Stderr, "messenger: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
	return struct{}{}
}

func beMessenger(parent int) error {
	// Who signals the main process means our parent. Requests to stop reach all
	// processes of the service.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	pass := func(sig os.Signal) {
		if sig == syscall.SIGUSR2 && os.Getppid() == parent {
			syscall.Kill(parent, syscall.SIGUSR2)
		}
	}

	c, err := newUnixConn(messengerFD)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(messengerTimeout))
	b := make([]byte, 1)
	if _, err := c.Write(b); err != nil { // signals are looked after
		return err
	}
	if _, err := c.Read(b); err != nil { // we are the main process
		return err
	}
	socket := os.Getenv(systemd.EnvSocket)
	if err := systemd.Notify(socket, "MAINPID="+strconv.Itoa(parent)); err != nil {
		return err
	}
	if err := barrier(socket); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil { // our parent is
		return err
	}

	// Who has just read our number has yet to use it.
	done := make(chan struct{})
	go func() {
		c.Read(b) // our parent ends, or the time is over
		close(done)
	}()
	c.SetReadDeadline(time.Now().Add(messengerLinger))
	for {
		select {
		case sig := <-signals:
			if sig != syscall.SIGUSR2 {
				return nil
			}
			pass(sig)
		case <-done:
			for len(signals) > 0 {
				pass(<-signals)
			}
			return nil
		}
	}
}

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

// Adopted makes the service manager look again at its main process, this one,
// whose predecessor has ended. Until it returns, other states wait.
func (g *Generation) Adopted() error {
	socket := os.Getenv(systemd.EnvSocket)
	if g.supervisor != nil || socket == "" || g.origin != Succeeded {
		return nil
	}
	// The end of the control socket comes a moment before the predecessor's own.
	for end := time.Now().Add(messengerTimeout); os.Getppid() == g.ppid && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}

	g.telling.Lock()
	defer g.telling.Unlock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	c, err := newUnixConn(fds[0])
	if err != nil {
		syscall.Close(fds[1])
		return err
	}
	env := []string{envMessenger + "=" + strconv.Itoa(os.Getpid())}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, systemd.EnvSocket+"=") {
			env = append(env, v)
		}
	}
	// Our own image, even if the program was replaced.
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{standard(0), standard(1), standard(2), uintptr(fds[1])},
	})
	syscall.Close(fds[1])
	if err != nil {
		c.Close()
		return fmt.Errorf("starting a messenger: %w", err)
	}
	process, _ := os.FindProcess(pid) // never fails on Unix
	go func() {
		process.Wait()
		c.Close()
	}()
	err = func() error {
		b := make([]byte, 1)
		c.SetDeadline(time.Now().Add(messengerTimeout))
		if _, err := c.Read(b); err != nil {
			return err
		}
		if err := systemd.Notify(socket, "MAINPID="+strconv.Itoa(pid)); err != nil {
			return err
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := c.Read(b)
		return err
	}()
	if err != nil {
		process.Kill()
		return fmt.Errorf("messenger pid %d: %w", pid, err)
	}
	return nil
}
