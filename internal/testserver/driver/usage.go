//go:build unix

package driver

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Group returns the process group.
func (p *Process) Group() int {
	p.s.tb.Helper()
	group, _ := strconv.Atoi(p.stat()[2])
	return group
}

// Foreground returns the process group in the foreground of the process's
// terminal.
func (p *Process) Foreground() int {
	p.s.tb.Helper()
	group, _ := strconv.Atoi(p.stat()[5])
	return group
}

// CPU returns the processor time that the process has used, in user and kernel
// mode.
func (p *Process) CPU() time.Duration {
	p.s.tb.Helper()
	fields := p.stat()
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ
}

// State returns the process's state, as in R, S, T or Z.
func (p *Process) State() string {
	p.s.tb.Helper()
	return p.stat()[0]
}

// stat returns the fields of /proc/PID/stat from the third on, see proc(5).
func (p *Process) stat() []string {
	p.s.tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		p.s.tb.Fatalf("pid %d: %v\n%s", p.Pid, err, p.s.Output())
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// Memory returns a value of /proc/PID/status, such as VmRSS, in bytes.
func (p *Process) Memory(name string) int {
	p.s.tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		p.s.tb.Fatalf("pid %d: %v\n%s", p.Pid, err, p.s.Output())
	}
	_, line, ok := strings.Cut(string(b), "\n"+name+":")
	fields := strings.Fields(line)
	if !ok || len(fields) < 2 {
		p.s.tb.Fatalf("no %s of pid %d", name, p.Pid)
	}
	n, _ := strconv.Atoi(fields[0])
	return n << 10
}

// Children returns the process's children.
func (p *Process) Children() (pids []int) {
	for _, pid := range allProcesses() {
		if _, parent, err := stat(pid); err == nil && parent == p.Pid {
			pids = append(pids, pid)
		}
	}
	return pids
}
