//go:build unix

package handoff

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// A process is one that we have started.
type process interface {
	pid() int
	// wait waits for its end. Where that cannot be waited for, silent is closed when it
	// can say no more, which it can until its end.
	wait(silent <-chan struct{}) exit
	signal(sig os.Signal) error
}

// An exit is how a process has ended.
type exit struct {
	err     error // in words
	status  syscall.WaitStatus
	unknown bool // the status is
}

func (e exit) success() bool { return !e.unknown && e.status.ExitStatus() == 0 }

// fork starts our own command line, in the directory in which we were started,
// with the standard streams and then fds.
func (g *Generation) fork(fds []int, env []string, sibling bool) (process, error) {
	path, err := startPath()
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: born.dir, Env: env, Files: files(fds)}
	if sibling && g.hasSiblings() && startProgram(path) == Ours {
		if p, err := g.forkSibling(path, attr); err == nil {
			return p, nil
		}
		// The kernel or a sandbox refuses that, or the start would fail anyway.
	}
	pid, err := syscall.ForkExec(path, born.args, attr)
	if err != nil {
		return nil, startError(path, err)
	}
	p, _ := os.FindProcess(pid) // never fails on Unix
	return &child{p}, nil
}

// startPath returns the program to start, looked up anew.
func startPath() (string, error) {
	path, err := born.file, error(nil)
	if path == "" {
		path, err = lookUp(born.args[0])
	}
	if err != nil {
		return "", fmt.Errorf("starting %s: %w", born.args[0], err)
	}
	if born.dirErr != nil {
		return "", fmt.Errorf("starting %s: the directory of the start is not known: %w", path, born.dirErr)
	}
	if _, err := os.Stat(born.dir); err != nil {
		return "", fmt.Errorf("starting %s in the directory of the start: %w", path, err)
	}
	return path, nil
}

// startProgram looks into the file that is about to run.
func startProgram(path string) Program {
	if !filepath.IsAbs(path) {
		path = filepath.Join(born.dir, path)
	}
	if self, err := os.Executable(); err == nil && sameFile(path, self) {
		return Ours
	}
	return programOf(path)
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

func files(fds []int) []uintptr {
	files := []uintptr{standard(0), standard(1), standard(2)}
	for _, fd := range fds {
		files = append(files, uintptr(fd))
	}
	return files
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

// A child is ours to wait for.
type child struct{ process *os.Process }

func (c *child) pid() int                   { return c.process.Pid }
func (c *child) signal(sig os.Signal) error { return c.process.Signal(sig) }

func (c *child) wait(silent <-chan struct{}) exit {
	state, err := c.process.Wait()
	if err != nil {
		// A sandbox may refuse that. It says nothing of the process.
		if awaitEnd(c.process.Pid) != nil {
			<-silent
		}
		return exit{unknown: true, err: fmt.Errorf("its end, which could not be waited for: %w", err)}
	}
	return exit{status: state.Sys().(syscall.WaitStatus), err: &exec.ExitError{ProcessState: state}}
}

// statusError says in words how a process has ended that is not our child, as
// os.ProcessState does.
func statusError(status syscall.WaitStatus) error {
	var b strings.Builder
	if status.Signaled() {
		fmt.Fprintf(&b, "signal: %v", status.Signal())
		if status.CoreDump() {
			b.WriteString(" (core dumped)")
		}
	} else {
		fmt.Fprintf(&b, "exit status %d", status.ExitStatus())
	}
	return errors.New(b.String())
}

// Program0 is the command line's first word, as this process was started with it.
func Program0() string { return born.args[0] }

// Runs reports whether a process runs this process's program.
func Runs(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil && parentOf(pid).same }
