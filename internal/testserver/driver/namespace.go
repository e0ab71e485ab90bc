//go:build unix

package driver

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// StartAsPID1 starts the command as the first process of a PID namespace, as a
// container's is; it skips the test where that cannot be. What the generations
// say of themselves are numbers of that namespace; a Process has the machine's.
func (c Command) StartAsPID1(tb testing.TB) *Server {
	tb.Helper()
	unshare := []string{"--pid", "--fork", "--mount-proc", "--kill-child", "--"}
	if out, err := exec.Command("unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
		tb.Skipf("no PID namespace here: unshare: %v: %s", err, out)
	}
	if c.Path == "" {
		c.Path = Binary(tb)
	}
	c.Args = append(append(unshare, c.Path), c.Args...)
	c.Path = "unshare"
	c.namespace = true
	return c.Start(tb)
}

// machinePID returns the number that a process has outside of the server's PID
// namespace, 0 if it has ended.
func (s *Server) machinePID(pid int) int {
	if !s.namespace {
		return pid
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", s.first.Pid))
	if err != nil {
		return 0
	}
	for _, candidate := range allProcesses() {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", candidate))
		if err == nil && its == namespace && inside(candidate) == pid {
			return candidate
		}
	}
	return 0
}

// inside returns the number of a process in its own PID namespace.
func inside(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, line, _ := strings.Cut(string(b), "\nNSpid:")
	line, _, _ = strings.Cut(line, "\n")
	numbers := strings.Fields(line)
	if len(numbers) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(numbers[len(numbers)-1])
	return n
}
