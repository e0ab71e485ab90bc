package handoff

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// startSibling starts a process that ends by itself, and returns it as a sibling, which somebody
// else waits for.
func startSibling(t *testing.T, script string) (*sibling, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := openPidfd(cmd.Process.Pid)
	if err != nil {
		cmd.Wait()
		t.Skip(err)
	}
	return &sibling{child: newChild(cmd.Process.Pid), pidfd: pidfd}, cmd
}

func TestSiblingsStatusIsKnownFromTheKernel(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":        "exit status 0",
		"exit 3":        "exit status 3",
		"kill -9 $$":    "signal: killed",
		"kill -TERM $$": "signal: terminated",
	} {
		s, cmd := startSibling(t, script)
		cmd.Wait()
		if _, err := s.statusFromKernel(); errors.Is(err, syscall.ENOTTY) || errors.Is(err, syscall.EINVAL) {
			t.Skip("this kernel does not tell: ", err)
		}
		e := s.wait(nil)
		if e.err.Error() != want || e.success != (want == "exit status 0") {
			t.Errorf("%s: %v, success %v; want %s", script, e.err, e.success, want)
		}
	}
}

func TestSiblingsStatusIsUnknownUntilItsParentHasWaited(t *testing.T) {
	driver.NotShort(t)
	s, cmd := startSibling(t, "exit 3")
	e := s.wait(nil)
	if e.err.Error() != "its end (how is known to its parent)" || e.success {
		t.Errorf("%+v of a process that nobody has waited for", e)
	}
	cmd.Wait()
}

func TestSiblingsStatusIsKnownFromTheSupervisor(t *testing.T) {
	s, cmd := startSibling(t, "exit 3")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.status = r
	fd, err := syscall.Dup(int(w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	AnswerStatus(fd, syscall.WaitStatus(5<<8)) // so that it is not the kernel's
	if e := s.wait(nil); e.err.Error() != "exit status 5" {
		t.Errorf("%+v, want what the supervisor says", e)
	}
	cmd.Wait()
}

func TestSiblingThatHasEndedIsNotSignalled(t *testing.T) {
	s, cmd := startSibling(t, "sleep 60")
	if err := s.Signal(syscall.SIGKILL); err != nil {
		cmd.Process.Kill()
		t.Error(err)
	}
	cmd.Wait()
	if err := s.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that has ended: %v, want %v", err, os.ErrProcessDone)
	}
	s.pidfd.Close()
}

// It reads as os.ProcessState does.
func TestStatusInWords(t *testing.T) {
	for status, want := range map[syscall.WaitStatus]string{
		0:        "exit status 0",
		2 << 8:   "exit status 2",
		255 << 8: "exit status 255",
		9:        "signal: killed",
		15:       "signal: terminated",
		6 | 1<<7: "signal: aborted (core dumped)",
	} {
		if got := statusError(status).Error(); got != want {
			t.Errorf("%#x: %s, want %s", int(status), got, want)
		}
	}
}

func TestOnlyLinesOfGenerationsAskForAStatus(t *testing.T) {
	for line, want := range map[string]int{"GRACE_STARTED=4711": 4711, "GRACE_STARTED=": 0, "MAINPID=4711": 0, "": 0} {
		pid, ok := AskedStatus(line)
		if pid != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", line, pid, ok)
		}
	}
	if !IsOwn("GRACE_STARTED=1") || !IsOwn("GRACE_ANY=1") || IsOwn("READY=1") {
		t.Error("lines for the service manager and the supervisor are mixed up")
	}
}

// A zombie's file cannot be read any more, and that it has ended may not be known yet.
func TestOriginalThatHasJustEndedIsKnownByItsFile(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	was, played := born, *born
	played.file = filepath.Join(t.TempDir(), "true")
	syscall.ForkLock.RLock() // no child may have it open for writing
	err = os.WriteFile(played.file, append(text, "facebookgo/grace.Wait"...), 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	born = &played
	defer func() { born = was }()
	cmd := exec.Command(played.file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	if err := awaitEnd(cmd.Process.Pid); err != nil {
		t.Skip(err)
	}
	s := newSuccessor(newGeneration(), nil)
	s.Pid = cmd.Process.Pid
	if !s.IsOriginal() {
		t.Error("its SIGTERM is not taken for its word")
	}
}
