//go:build unix

package handoff

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// fork starts our own command line, in the directory in which we were started,
// with the standard streams and then fds.
func (g *Generation) fork(fds []int, env []string, sibling bool) (process, error) {
	path, err := startPath()
	if err != nil {
		return nil, err
	}
	if sibling {
		if p, err := g.forkSibling(path, fds, env); err == nil {
			return p, nil
		}
		// The kernel or a sandbox refuses that, or the start would fail anyway.
	}
	pid, err := execute(path, fds, env, nil)
	if err != nil {
		return nil, startError(path, err)
	}
	return newChild(pid), nil
}

// execute starts a program with our own arguments.
func execute(path string, fds []int, env []string, attr *syscall.SysProcAttr) (pid int, err error) {
	files := []uintptr{standard(0), standard(1), standard(2)}
	for _, fd := range fds {
		files = append(files, uintptr(fd))
	}
	return syscall.ForkExec(path, born.args, &syscall.ProcAttr{Dir: born.dir, Env: env, Files: files, Sys: attr})
}

// standard returns a standard stream's descriptor; one that is closed here
// stays closed in the successor.
func standard(fd int) uintptr {
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil {
		return ^uintptr(0)
	}
	return uintptr(fd)
}

// startError says what could not be done.
func startError(path string, err error) error {
	if !filepath.IsAbs(path) {
		path += " in " + born.dir
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		err = os.NewSyscallError("fork", err)
	}
	return fmt.Errorf("starting %s: %w", path, err)
}

// A child is ours to wait for.
type child struct{ *os.Process }

func newChild(pid int) child {
	p, _ := os.FindProcess(pid) // never fails on Unix
	return child{p}
}

func (c child) pid() int { return c.Pid }

func (c child) wait(silent <-chan struct{}) exit {
	state, err := c.Wait()
	if err != nil {
		// A sandbox may refuse that. It says nothing of the process.
		if awaitEnd(c.Pid) != nil {
			<-silent
		}
		return exit{err: fmt.Errorf("its end, which could not be waited for: %w", err)}
	}
	return exit{err: &exec.ExitError{ProcessState: state}, success: state.Success()}
}
